import dataclasses
import socket
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_core.errors import InputError
from nst_server.cli import app
from nst_server.endpoints import SERVICES, Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import Installation
from nst_server.launch import Launch
from nst_server.process.supervisor import run_triton

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
    with pytest.raises(ServerError, match=r"cannot listen on .*: give an address of this machine") as raised:
        Endpoints(address=address).check_free()
    assert address in str(raised.value) and "-port" not in str(raised.value)


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        (Endpoints("no.such.name.invalid"), "--address no.such.name.invalid: no such address"),
        (Endpoints("fe80::1%lo"), "zone"),
        (Endpoints("127.0.0.1", 8000, 8001, 8001), "port 8001 stands for two"),
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


def test_a_missing_or_empty_repository_says_how_to_fill_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    for folder, words in ((tmp_path, "no model in it"), (tmp_path / "none", "no such model repository")):
        result = CliRunner().invoke(app, ["-r", str(folder)])
        assert result.exit_code == 1
        assert words in result.stderr
        assert "nst-export" in result.stderr
        assert result.stderr.count("\n") == 1


def server_that(tmp_path: Path, does: str) -> tuple[Installation, Path]:
    """A repository, and a program in Triton's place, to see what becomes of its failures."""
    (tmp_path / "models" / "seven").mkdir(parents=True)
    (tmp_path / "models" / "seven" / "config.pbtxt").write_text('name: "seven"')
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\n{does}\n")
    program.chmod(0o755)
    return Installation((str(program),)), tmp_path / "models"


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    installation, models = server_that(
        tmp_path, """echo 'E0101 00:00:00.000000 1 model.cc:1] "failed to load seven"'; exit 3"""
    )
    heard: list[str] = []
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", on_error=heard.append)
    with pytest.raises(ServerError, match="failed to load seven"), running:
        pass
    assert heard == ["failed to load seven"]
    assert "failed to load seven" in (tmp_path / "log").read_text()


def test_a_server_that_ends_without_an_error_is_quoted(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, "echo starting; echo 'docker: no daemon' >&2; exit 125")
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log")
    with pytest.raises(ServerError, match="exit status 125, docker: no daemon"), running:
        pass


def test_a_server_that_never_is_ready_is_ended_with_its_children(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, f"sleep 600 & echo $! > {tmp_path}/child; wait")
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", ready_timeout_seconds=1.0)
    with pytest.raises(ServerError, match="not ready after 1 s"), running:
        pass
    assert ended(int((tmp_path / "child").read_text()))


def test_a_process_of_a_model_that_dies_at_the_start_is_told_with_its_reason(tmp_path: Path) -> None:
    """It says why and ends, and the Triton that has started it waits for it for ever."""
    installation, models = server_that(
        tmp_path, "(echo 'stub: error while loading shared libraries: libpython3.so.1' >&2) & exec sleep 600"
    )
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log")
    with pytest.raises(ServerError) as raised, running:
        pass
    assert str(raised.value) == (
        "seven cannot be served: the process ended while it was loaded: stub: error while loading shared libraries: "
        f"libpython3.so.1 (its log: {tmp_path / 'log'})"
    )


def test_triton_is_told_what_to_load_and_never_what_a_name_makes_bash_do(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, f'printf "%s\\n" "$@" > {tmp_path}/arguments; exit 3')
    for name in ("my copy", "x$(touch${IFS}pwned)", "eight"):
        (models / name).mkdir()
        (models / name / "config.pbtxt").write_text("")
    heard: list[str] = []
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "log", poll=1.0, on_error=heard.append)
    with pytest.raises(ServerError), running:
        pass
    arguments = (tmp_path / "arguments").read_text().splitlines()
    assert [word for word in arguments if "load-model" in word] == ["--load-model=eight", "--load-model=seven"]
    assert "--model-control-mode=explicit" in arguments, "it looks for nothing itself"
    assert [line.partition(" is not served")[0] for line in heard] == [
        f"{models}/my copy",
        f"{models}/x$(touch${{IFS}}pwned)",
    ]


def ended(pid: int, patience: float = 10.0) -> bool:
    """Whether a process is gone or a zombie; a killed one needs a moment on a busy machine."""
    status = Path(f"/proc/{pid}/status")
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            if "State:\tZ" in status.read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    installation, models = server_that(tmp_path, "exit 0")
    (tmp_path / "file").write_text("")
    running = run_triton(installation, models, Endpoints.free(), tmp_path / "file" / "log")
    with pytest.raises(Exception, match="cannot write the log"), running:
        pass
