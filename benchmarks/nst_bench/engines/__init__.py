"""What stylizes images in this process: PyTorch, ONNX Runtime, TensorRT, and a served model without its server."""
