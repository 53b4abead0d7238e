"""The Triton to run: from PATH, from PyPI in an environment for each device, or NVIDIA's container."""
