"""Asking a server to load a model: what it says, and where the key goes."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from nst_core.errors import InputError
from nst_server.control import Control, cause
from nst_server.errors import ServerError


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers the same to everybody: its URL, and the headers that it has got."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers)
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", received
        server.shutdown()


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("answer", [b"[]", b"<html>", b'{"a": 1}', b'["a"]', b""])
def test_the_key_goes_to_the_server_and_not_to_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str, answer: bytes
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with answering(b"[]") as (proxy, intercepted), answering(answer) as (server, received):
        monkeypatch.setenv(variable, proxy)
        control = Control(server, "secret")
        assert control.live()
        if answer == b"[]":
            assert control.models() == []
        else:
            with pytest.raises(ServerError, match="is not Triton"):
                control.models()
    assert received[-1]["nst-token"] == "secret" and not intercepted


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_proxy_of_any_variable_is_used(scheme: str) -> None:
    """In a process of its own: gRPC keeps channels, and reads the environment as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        url = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        environment = {f"{protocol}_proxy": url for protocol in ("http", "https", "grpc", "all")}
        environment |= {name.upper(): url for name in environment} | {"NST_TOKEN": "the key"}
        code = "import sys; from nst_server.control import Control; Control.at(sys.argv[1]).load('seven', '1')"
        tried = subprocess.run(
            [sys.executable, "-c", code, f"{scheme}://127.0.0.1:9"],
            env={key: value for key, value in os.environ.items() if "proxy" not in key.lower()} | environment,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert "no answer from Triton" in tried.stderr
        proxy.settimeout(0)
        with pytest.raises(BlockingIOError):
            proxy.accept()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_is_not_there_loads_nothing(scheme: str) -> None:
    control = Control.at(f"{scheme}://127.0.0.1:9")
    assert not control.live()
    with pytest.raises(ServerError, match=rf"no answer from Triton at {scheme}://127.0.0.1:9: "):
        control.load("seven", "1")


@pytest.mark.parametrize(
    "url", ["127.0.0.1", "grpc://", "http://h:99999", "grpc://h:-1", "http://h:port", "ftp://h:21", "grpc://:8001"]
)
def test_what_is_no_servers_address(url: str) -> None:
    with pytest.raises(InputError, match="is not a server"):
        Control.at(url)


def test_authorities_that_are_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NST_CA", "/no/such/file.pem")
    with pytest.raises(InputError, match=r"NST_CA=/no/such/file\.pem: no such file"):
        Control.at("https://server.example:8000")


def test_a_key_does_not_show() -> None:
    assert "secret" not in repr(Control("http://server.example:8000", "secret"))


@pytest.mark.parametrize("name", ["x$(touch pwned)", "my copy", "-a", "../a", ""])
def test_what_is_no_models_name_is_never_sent(name: str) -> None:
    with answering(b"[]") as (url, received), pytest.raises(InputError, match="is not a model name"):
        Control(url).load(name)
    assert not received


@pytest.mark.parametrize(
    ("reason", "wanted"),
    [
        ("Internal: TritonModelException: bad file\n\nAt:\n  /a/model.py(3): f\n", "bad file"),
        (r"Internal: TritonModelException: bad file\n\nAt:\n  /a/model.py(3): f\n", "bad file"),
        ("load failed for model 'a': version 1 is at UNAVAILABLE state: Invalid argument: no GPU;\n", "no GPU"),
        ("unloaded", "unloaded"),
    ],
)
def test_the_reason_of_a_failure_comes_without_the_names_of_tritons_layers(reason: str, wanted: str) -> None:
    assert cause(reason) == wanted
