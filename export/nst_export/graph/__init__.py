"""The ONNX graph: made from PyTorch, rewritten for the engine that runs it, halved for FP16."""
