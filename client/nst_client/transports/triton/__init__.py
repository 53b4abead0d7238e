"""Triton over gRPC and HTTP, and the memory that a client shares with it."""
