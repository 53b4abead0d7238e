"""Engines for NVIDIA GPUs, used by Triton's backends, by `local:`, by the exporter's checks and by the benchmarks.

Nothing in this package imports anything of nst: Triton's backends are copies of these files, in a process that has
neither nst nor PyTorch.

    cuda            memory, streams and graphs
    plans           TensorRT plans: their keys, and finding them    building, build_plan    building them
    tensorrt        running plans                                   deserialized, slots     its parts
    onnx_cuda       ONNX files on ONNX Runtime's CUDA provider      pinned                  its memory on the host
    dlpack          arrays lent to Triton
"""
