"""Ways to a model: Triton over gRPC or HTTP, ONNX Runtime or TensorRT in this process, and shared memory."""
