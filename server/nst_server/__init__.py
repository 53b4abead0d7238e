"""Finding Triton, installing it where there is none, and running it on a model repository."""
