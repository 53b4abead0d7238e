"""The ONNX graph: exported from PyTorch, rewritten for the engine that runs it, converted to FP16."""
