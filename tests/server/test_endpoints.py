"""Where a server listens, and what it says where it cannot."""

import dataclasses
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core.errors import InputError
from nst_server.cli import app
from nst_server.endpoints import SERVICES, Endpoints
from nst_server.errors import ServerError
from nst_server.triton_command import Launch

needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")


def test_free_ports_are_free_and_different() -> None:
    endpoints = Endpoints.free()
    endpoints.check_free()
    assert len({endpoints.http_port, endpoints.grpc_port, endpoints.metrics_port}) == 3
    assert endpoints.address == "127.0.0.1"


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics"])
def test_a_port_in_use_is_named_with_its_option(tmp_path: Path, protocol: str) -> None:
    (tmp_path / "seven").mkdir()
    (tmp_path / "seven" / "config.pbtxt").write_text('name: "seven"')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = dict(zip(SERVICES, dataclasses.astuple(Endpoints.free())[1:4], strict=True)) | {protocol: port}
        options = [f"--{service}-port={number}" for service, number in ports.items()]
        result = CliRunner().invoke(app, ["-r", str(tmp_path), *options])
    assert result.exit_code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert f"--{protocol}-port" in result.stderr


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_not_mended_by_a_port(address: str) -> None:
    with pytest.raises(
        ServerError, match=r"cannot listen on .*; set --address to an address of this machine"
    ) as raised:
        Endpoints(address=address).check_free()
    assert address in str(raised.value) and "-port" not in str(raised.value)


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        (Endpoints("no.such.name.invalid"), "--address no.such.name.invalid: no such address"),
        (Endpoints("fe80::1%lo"), "zone"),
        (Endpoints("127.0.0.1", 8000, 8001, 8001), "port 8001 is given to two"),
    ],
)
def test_an_address_or_a_port_that_cannot_be(endpoints: Endpoints, words: str) -> None:
    with pytest.raises(InputError, match=words):
        endpoints.check_free()


@pytest.mark.parametrize("port", [0, 65536, 99999])
@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_that_is_none(tmp_path: Path, option: str, port: int) -> None:
    result = CliRunner().invoke(app, ["-r", str(tmp_path), option, str(port)])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)


def test_ipv6_in_urls_and_for_triton(tmp_path: Path) -> None:
    endpoints = Endpoints("::1", 8000, 8001, 8002)
    assert (endpoints.http, endpoints.grpc) == ("http://[::1]:8000", "grpc://[::1]:8001")
    assert (endpoints.metrics, endpoints.control) == ("http://[::1]:8002/metrics", "http://[::1]:8000")
    assert Endpoints("::", 8000).control == "http://[::1]:8000"
    assert Endpoints("0.0.0.0", 8000).control == "http://127.0.0.1:8000"
    assert Endpoints("localhost").listening["grpc"][0] in ("127.0.0.1", "::1"), "Triton's HTTP takes numbers only"
    options = Launch(tmp_path, endpoints).options("r", endpoints.listening, None, None)
    assert {"--http-address=ipv6:::1", "--grpc-address=[::1]", "--metrics-address=ipv6:::1"} <= set(options)
    behind = endpoints.behind_tls()
    assert behind.http == "https://[::1]:8000" and behind.listening["http"][0] == "127.0.0.1"


@needs_ipv6
def test_an_ipv6_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServerError, match=rf"cannot listen on \[::1\]:{port} \(.*\); choose another with --http-port"
        ):
            Endpoints("::1", port).check_free()
