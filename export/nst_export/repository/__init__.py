"""Triton's model repository: the configuration of a model, and publishing its versions."""
