"""A served model: its files in a model repository, a Triton that serves it, and client processes."""
