"""Video files: frames out of them, frames into them, and finished parts joined with the sound."""
