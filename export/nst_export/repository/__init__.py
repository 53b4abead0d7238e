"""Triton's model repository: configure a model, and publish its versions."""
