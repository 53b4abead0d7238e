"""In-process engines: PyTorch, ONNX Runtime, TensorRT, and a served model without its server."""
