"""Engines for NVIDIA GPUs, used by Triton's backends, by `local:`, by the exporter's checks and by the benchmarks.

Nothing in this package imports anything of nst: Triton's backends are copies of these files, in a process that has
neither nst nor PyTorch. `cuda` is memory, streams and graphs; `plans` builds and keeps TensorRT plans; `tensorrt`
runs them; `onnx_cuda` runs ONNX files with ONNX Runtime's CUDA provider; `dlpack` lends arrays to Triton.
"""
