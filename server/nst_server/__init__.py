"""Find or install Triton, and run it on a model repository."""
