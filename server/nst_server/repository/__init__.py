"""The model repository as the server sees it: its models, the links that Triton gets to it, its TensorRT plans."""
