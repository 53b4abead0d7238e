"""Transports to a model: Triton over gRPC or HTTP, or ONNX Runtime or TensorRT in this process."""
