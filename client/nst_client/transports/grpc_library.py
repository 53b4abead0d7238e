"""Import gRPC and NVIDIA's messages so that gRPC's core does not log to stderr.

gRPC reads `GRPC_VERBOSITY` as it is imported. Errors reach the caller as exceptions, so its log would repeat them.
"""

from nst_core.process import default_variable

with default_variable("GRPC_VERBOSITY", "NONE"):
    import grpc  # type: ignore[import-untyped]
    from tritonclient.grpc import model_config_pb2, service_pb2

__all__ = ["grpc", "model_config_pb2", "service_pb2"]
