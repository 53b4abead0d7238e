"""Answers that Triton does not give, from what else may listen at an address: each is a `ServiceError` of one line."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from nst_client import Rejected, ServiceError
from nst_client.transports.base import Request
from nst_client.transports.connect import connect
from nst_client.transports.coroutines import run_blocking
from nst_client.transports.triton.transport import RegionRegistry, TritonTransport

from .test_triton import HttpServer, answer, http_server

__all__ = ["http_server"]

REQUEST = Request("wave", {"image": np.zeros((1, 4, 5, 3), np.uint8)}, "stylized")

Asked = Callable[[TritonTransport], Awaitable[Any]]
CALLS: dict[str, Asked] = {
    "models": lambda transport: transport.models(10.0),
    "config": lambda transport: transport.config("wave", 10.0),
    "statistics": lambda transport: transport.statistics("wave", 10.0),
    "regions": lambda transport: RegionRegistry(transport, "system").names(10.0),
    "infer": lambda transport: transport.infer(REQUEST, 10.0),
}

every_kind = pytest.mark.parametrize("aio", [False, True], ids=["blocking", "asyncio"])


def asked(url: str, call: str, aio: bool) -> Any:
    transport: Any = connect(url, timeout=10.0, shared_memory=False, aio=aio)
    if not aio:
        try:
            return run_blocking(CALLS[call](transport))  # type: ignore[arg-type]
        finally:
            run_blocking(transport.close())

    async def ask() -> Any:
        try:
            return await CALLS[call](transport)
        finally:
            await transport.close()

    return asyncio.run(ask())


def refused(url: str, call: str, aio: bool) -> str:
    """The one line that a call ends with."""
    with pytest.raises(ServiceError) as raised:
        asked(url, call, aio)
    message = str(raised.value)
    assert url in message or isinstance(raised.value, Rejected)
    assert len(message.splitlines()) == 1
    assert len(message) < 700
    return message


def inferred(answer: object, tensors: bytes = b"", length: int | None = None) -> bytes:
    header = json.dumps(answer).encode()
    length = len(header) if length is None else length
    lengths = f"Inference-Header-Content-Length: {length}\r\nContent-Length: {len(header + tensors)}"
    return f"HTTP/1.1 200 OK\r\n{lengths}\r\n\r\n".encode() + header + tensors


OUTPUT = {"name": "stylized", "datatype": "UINT8", "shape": [1, 4, 5, 3], "parameters": {"binary_data_size": 60}}


@every_kind
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", ["null", "7", '"text"', "[]", "{}", "[7]", '{"model_stats":7}', '{"error":"?"}'])
def test_json_of_another_shape(http_server: HttpServer, call: str, body: str, aio: bool) -> None:
    http_server.answer = answer("200 OK", body)
    url = f"http://{http_server.host}"
    if call == "config" and body.startswith("{"):  # it has nothing that the client looks at
        assert asked(url, call, aio).parameters == {}
    elif call == "regions" and (body == "[]" or body.startswith("{")):
        assert asked(url, call, aio) == []
    else:
        assert "is not Triton's" in refused(url, call, aio)


@every_kind
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", ["<!DOCTYPE html><title>Sign in</title>", "", '{"model_stats":[{"name', "\0\1\2"])
def test_pages_with_a_good_status(http_server: HttpServer, call: str, body: str, aio: bool) -> None:
    http_server.answer = answer("200 OK", body)
    assert "does not answer in Triton's HTTP protocol; give Triton's HTTP port" in refused(
        f"http://{http_server.host}", call, aio
    )


@every_kind
@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"model_stats":[{"name":7}]}', "models"),
        ('{"model_stats":[{"name":"a"},{}]}', "models"),
        ('{"parameters":[]}', "config"),
        ('{"parameters":{"styles":"wave"}}', "config"),
        ('{"parameters":{"styles":{"string_value":7}}}', "config"),
        ('{"max_batch_size":"many"}', "config"),
        ('{"max_batch_size":null}', "config"),
        ('{"model_stats":[{"name":"wave"}]}', "statistics"),
        ('{"model_stats":[{"inference_stats":{"success":{"count":"many"}}}]}', "statistics"),
        ('[{"key":"a"}]', "regions"),
    ],
)
def test_fields_of_another_kind(http_server: HttpServer, body: str, call: str, aio: bool) -> None:
    http_server.answer = answer("200 OK", body)
    assert "is not Triton's" in refused(f"http://{http_server.host}", call, aio)


@every_kind
@pytest.mark.parametrize(
    "answer",
    [
        inferred({"outputs": [OUTPUT]}, bytes(59)),
        inferred({"outputs": [OUTPUT]}),
        inferred({"outputs": [OUTPUT | {"parameters": {"binary_data_size": 0}}]}),
        inferred({"outputs": [OUTPUT | {"parameters": {"binary_data_size": "60"}}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"shape": [1, 4, 5]}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"shape": [-1, -4, 5, 3]}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"shape": None}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"datatype": "BYTES"}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"datatype": "COLOURS"}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"datatype": None}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"datatype": "FP32"}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"parameters": {}}]}, bytes(60)),
        inferred({"outputs": [OUTPUT | {"parameters": {}, "data": ["a"]}]}),
        inferred({"outputs": [OUTPUT | {"parameters": {}, "data": [300] * 60}]}),
        inferred({"outputs": [7]}),
        inferred({"outputs": None}),
        inferred({"outputs": [OUTPUT]}, bytes(60), 10_000),
        inferred({"outputs": [OUTPUT]}, bytes(60), -1),
    ],
)
def test_inferences_over_http(http_server: HttpServer, answer: bytes, aio: bool) -> None:
    http_server.answer = answer
    assert "to the inference of wave is not Triton's (" in refused(f"http://{http_server.host}", "infer", aio)


@every_kind
def test_an_inference_over_http_without_binary_data(http_server: HttpServer, aio: bool) -> None:
    http_server.answer = inferred({"outputs": [OUTPUT | {"parameters": {}, "data": list(range(60))}]})
    assert asked(f"http://{http_server.host}", "infer", aio).reshape(-1).tolist() == list(range(60))
    http_server.answer = inferred({"outputs": [OUTPUT | {"name": "other"}]}, bytes(60))
    assert "answered without the output stylized, so model wave is not a style model" in refused(
        f"http://{http_server.host}", "infer", aio
    )


@every_kind
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        ("404 Not Found", "<html>" + "x" * 100_000, "HTTP status 404 without a reason"),
        ("500 Oh", '{"error":7}', "HTTP status 500"),
        ("400 Oh", '{"error":"a\\nb\\n\\nc"}', "answered: a b c"),
        ("400 Oh", json.dumps({"error": "x" * 5000}), "xxx..."),
        ("301 Moved", "", "HTTP status 301"),
    ],
)
def test_refusals_that_are_not_triton_s(http_server: HttpServer, status: str, body: str, words: str, aio: bool) -> None:
    http_server.answer = answer(status, body)
    assert words in refused(f"http://{http_server.host}", "models", aio)


@every_kind
def test_a_redirection_is_not_followed_with_the_token(http_server: HttpServer, aio: bool) -> None:
    http_server.answer = (
        f"HTTP/1.1 302 Found\r\nLocation: http://{http_server.host}/else\r\nContent-Length: 0\r\n\r\n".encode()
    )
    refused(f"http://{http_server.host}", "models", aio)
    assert len(http_server.heard) == 1


class Bytes(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers any call with the same bytes."""

    answer = b""

    def service(self, call: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: self.answer)


@pytest.fixture
def other() -> Iterator[tuple[Bytes, str]]:
    """A gRPC server of something else."""
    handler, server = Bytes(), grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield handler, f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@every_kind
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("answer", [b"\x0a\xff\xff", b"<html>", b"\x07", b"\x80"])
def test_bytes_of_another_service(other: tuple[Bytes, str], call: str, answer: bytes, aio: bool) -> None:
    other[0].answer = answer
    assert "is not Triton's" in refused(other[1], call, aio)


@every_kind
@pytest.mark.parametrize(
    ("datatype", "shape", "contents"),
    [
        ("UINT8", [1, 4, 5, 3], [b""]),
        ("UINT8", [1, 4, 5, 3], []),
        ("UINT8", [1, 4, 5, 3], [bytes(59)]),
        ("UINT8", [1, 4, 5, -3], [bytes(60)]),
        ("UINT8", [-1, -4, 5, 3], [bytes(60)]),
        ("UINT8", [2**62, 4, 5, 3], [bytes(60)]),
        ("FP32", [1, 4, 5, 3], [bytes(60)]),
        ("BYTES", [1, 4, 5, 3], [bytes(60)]),
        ("BF16", [1, 4, 5, 3], [bytes(60)]),
        ("", [1, 4, 5, 3], [bytes(60)]),
    ],
)
def test_inferences_over_grpc(
    other: tuple[Bytes, str], datatype: str, shape: list[int], contents: list[bytes], aio: bool
) -> None:
    answer = service_pb2.ModelInferResponse(model_name="wave", raw_output_contents=contents)
    answer.outputs.add(name="stylized", datatype=datatype, shape=shape)
    other[0].answer = answer.SerializeToString()
    assert "to the inference of wave is not Triton's (" in refused(other[1], "infer", aio)


@every_kind
def test_an_inference_over_grpc_without_outputs(other: tuple[Bytes, str], aio: bool) -> None:
    assert "answered without the output stylized, so model wave is not a style model" in refused(other[1], "infer", aio)
    assert asked(other[1], "models", aio) == []
    with pytest.raises(ServiceError, match="inference_stats"):
        other[0].answer = service_pb2.ModelStatisticsResponse(
            model_stats=[service_pb2.ModelStatistics(name="wave")]
        ).SerializeToString()
        asked(other[1], "statistics", aio)
