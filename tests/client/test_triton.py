"""What goes over the wire, and what a broken or strange answer becomes. A real Triton is in tests/end_to_end."""

import asyncio
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from nst_client import (
    AsyncStyleClient,
    Rejected,
    ServiceError,
    Style,
    StyleClient,
    TimedOut,
    Unavailable,
    Unreachable,
)
from nst_client.transports.statistics import Statistics, from_triton
from nst_client.transports.triton.grpc import CHANNEL_OPTIONS, GrpcTransport
from nst_client.transports.triton.http import HttpTransport
from nst_client.transports.triton.settings import TritonSettings


def listed(url: str, aio: bool, **settings: Any) -> list[Style]:
    """The styles that a client of either kind finds."""
    if not aio:
        with StyleClient(url, **settings) as client:
            return client.styles()

    async def ask() -> list[Style]:
        async with AsyncStyleClient(url, **settings) as client:
            return await client.styles()

    return asyncio.run(ask())


class HttpServer:
    """Reads a request, answers given bytes and ends the connection; `heard` is what was asked."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.answer = b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.socket.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                self.heard.append(self.request(connection))
                connection.sendall(self.answer)

    def request(self, connection: socket.socket) -> bytes:
        answer = connection.recv(65536)
        while b"\r\n\r\n" in answer:
            head, _, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            if len(body) >= (int(length[1]) if length else 0):
                break
            answer += connection.recv(65536)
        return answer


@pytest.fixture
def http_server() -> Iterator[HttpServer]:
    server = HttpServer()
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.socket.shutdown(socket.SHUT_RDWR)
    thread.join()
    server.socket.close()


def answer(status: str, body: str) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


NO_MODELS = answer("200 OK", '{"model_stats":[]}')


@pytest.mark.parametrize("aio", [False, True])
@pytest.mark.parametrize("token", ["sesame", None])
def test_the_token_is_a_header(http_server: HttpServer, token: str | None, aio: bool) -> None:
    http_server.answer = NO_MODELS
    assert listed(f"http://{http_server.host}", aio, token=token) == []
    (request,) = http_server.heard
    headers = [line.lower() for line in request.decode().split("\r\n")]
    assert ("nst-token: sesame" in headers) is (token is not None)


@pytest.mark.parametrize("aio", [False, True])
@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"", Unreachable, "no server answers"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Unreachable, "no server answers"),
        (NO_MODELS[:-5], Unreachable, "no server answers"),
        (b"PRI * HTTP/2.0\r\n\r\n", ServiceError, "HTTP port"),
        (answer("200 OK", "<html>"), ServiceError, "does not answer in Triton's HTTP protocol"),
        (answer("502 Bad Gateway", "<html>"), Unavailable, "status 502"),
        (answer("400 Bad Request", '{"error":"no reason"}'), Rejected, "answered: no reason"),
        (
            answer("403 Forbidden", '{"error":"This API is restricted, expecting header \'nst-token\'"}'),
            Rejected,
            "needs a token; .*--token-file",
        ),
    ],
)
def test_broken_answers_of_http(
    http_server: HttpServer, answer: bytes, error: type[ServiceError], words: str, aio: bool
) -> None:
    http_server.answer = answer
    with pytest.raises(error, match=words) as raised:
        listed(f"http://{http_server.host}", aio, retries=0, timeout=10.0)
    assert raised.type is error


@pytest.mark.parametrize("aio", [False, True])
@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_server_without_tls(http_server: HttpServer, scheme: str, aio: bool) -> None:
    http_server.answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(ServiceError, match=f"does not use TLS; try {scheme[:-1]}://{http_server.host}"):
        listed(f"{scheme}://{http_server.host}", aio, retries=0, timeout=10.0)


class Inference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers that it has no models, or with an error; keeps the metadata."""

    def __init__(self) -> None:
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.metadata: list[dict[str, str]] = []

    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        if self.error:
            context.abort(*self.error)
        return service_pb2.ModelStatisticsResponse()


@pytest.fixture
def grpc_server() -> Iterator[tuple[Inference, str]]:
    service, server = Inference(), grpc.server(ThreadPoolExecutor(2))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"grpc://127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.mark.parametrize("aio", [False, True])
@pytest.mark.parametrize("token", ["sesame", None])
def test_the_token_is_metadata(grpc_server: tuple[Inference, str], token: str | None, aio: bool) -> None:
    service, url = grpc_server
    assert listed(url, aio, token=token) == []
    (metadata,) = service.metadata
    assert metadata.get("triton-grpc-protocol-nst-token") == token


RESTRICTED = "This protocol is restricted, expecting header 'triton-grpc-protocol-nst-token'"


@pytest.mark.parametrize("aio", [False, True])
@pytest.mark.parametrize(
    ("status", "answer", "error", "words"),
    [
        ("UNAVAILABLE", RESTRICTED, Rejected, "does not accept this token; .*NST_TOKEN"),
        ("UNAVAILABLE", "Socket closed", Unreachable, "no server answers"),
        ("NOT_FOUND", "Request for unknown model: 'a' has no available versions", Unavailable, "no available versions"),
        ("UNAVAILABLE", "Exceeds maximum queue size", Unavailable, "maximum queue size"),
        ("INTERNAL", "Stub process 'one_0_0' is not healthy.", Unavailable, "is not healthy"),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", TimedOut, "within 10 s"),
        ("INTERNAL", "out of memory", Rejected, "answered: out of memory"),
    ],
)
def test_errors_of_grpc(
    grpc_server: tuple[Inference, str], status: str, answer: str, error: type[ServiceError], words: str, aio: bool
) -> None:
    service, url = grpc_server
    service.error = grpc.StatusCode[status], answer
    with pytest.raises(error, match=words) as raised:
        listed(url, aio, retries=0, timeout=10.0, token="wrong")
    assert raised.type is error
    assert "wrong" not in str(raised.value).replace("is wrong", "")
    assert len(service.metadata) == 1


def test_channels_take_large_images_and_come_back_soon() -> None:
    """Whoever gives gRPC options must give the sizes too, or answers over 4 MiB are refused."""
    options = dict(CHANNEL_OPTIONS)
    assert options["grpc.max_receive_message_length"] == options["grpc.max_send_message_length"] == 2**31 - 1
    assert options["grpc.max_reconnect_backoff_ms"] <= 1000
    assert options["grpc.keepalive_time_ms"] >= 300_000  # Triton ends connections that are pinged oftener


@pytest.mark.parametrize("kind", [GrpcTransport, HttpTransport])
def test_the_token_is_not_shown(kind: type[GrpcTransport] | type[HttpTransport]) -> None:
    transport = kind(TritonSettings("127.0.0.1:1", token="sesame"))
    assert "sesame" not in repr(transport.settings)
    assert "sesame" not in repr(transport)


def test_statistics_of_two_versions_are_added() -> None:
    """As HTTP has them, and as protobuf's JSON does: numbers as text, noughts left out."""
    first = {
        "name": "a",
        "inference_count": 5,
        "execution_count": 3,
        "inference_stats": {
            "success": {"count": 4, "ns": 9},
            "fail": {"count": 1, "ns": 9},
            "queue": {"count": 4, "ns": 4_000_000_000},
            "compute_input": {"count": 4, "ns": 1_000_000_000},
            "compute_infer": {"count": 4, "ns": 6_000_000_000},
            "compute_output": {"count": 4, "ns": 1_000_000_000},
        },
        "batch_stats": [
            {"batch_size": 1, "compute_infer": {"count": 2, "ns": 1}},
            {"batch_size": 3, "compute_infer": {"count": 1, "ns": 1}},
        ],
    }
    nought: dict[str, str] = {}
    names = ("fail", "queue", "compute_input", "compute_infer", "compute_output")
    second = {
        "name": "a",
        "inference_count": "4",
        "execution_count": "4",
        "inference_stats": dict.fromkeys(names, nought) | {"success": {"count": "4", "ns": "9"}},
        "batch_stats": [{"batch_size": "1", "compute_infer": {"count": "4"}}],
    }
    assert from_triton([first, second]) == Statistics(8, 1, 9, 7, {1: 6, 3: 1}, 0.5, 1.0)
    assert from_triton([]) == Statistics()
