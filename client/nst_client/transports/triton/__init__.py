"""Triton over gRPC and HTTP, with shared memory."""
