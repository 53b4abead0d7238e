"""A served model: its files in a repository, a Triton that serves it, and processes that call it."""
