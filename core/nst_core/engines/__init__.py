"""Engines for NVIDIA GPUs, used by Triton's backends, by `local:`, by the exporter's checks and by the benchmarks.

Nothing in this package imports the rest of nst: Triton's backends use copies of these files, in a process without nst
and PyTorch.

    cuda            memory, streams and graphs
    plans           find TensorRT plans by their keys               building, build_plan    build them
    tensorrt        run plans                                       deserialized, slots     its parts
    onnx_cuda       run ONNX files on the CUDA provider             pinned                  its memory on the host
    dlpack          lend arrays to Triton
"""
