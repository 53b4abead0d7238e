"""Video files: decoding and encoding frames, and joining finished parts with the sound."""
