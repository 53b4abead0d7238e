"""The model repository on the server's side: its models, Triton's links to it, and its TensorRT plans."""
