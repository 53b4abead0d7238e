"""`deploy/triton.sh`, the container's command, with a real Triton; and that the dashboard finds what it looks for."""

import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nst_client import Rejected, StyleClient
from nst_server.access import Access
from nst_server.endpoints import Endpoints
from nst_server.installation.triton import Installation, find_triton
from nst_server.triton_command import ALLOCATOR_VARIABLES, STACK_BYTES

from . import queries

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy/triton.sh"
TOKEN, KEY = "sesame", "abcdef"
AGE = 0.3
"""Seconds of a connection here, so that several end during a test."""

CONTENT = np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)
OF_GPUS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}
"""Triton has these on a machine with a GPU only."""

OF_PROMETHEUS = {"job", "instance", "namespace"}
"""Labels that Prometheus adds."""


@dataclass
class Container:
    """What runs in it: where it listens, its arguments and its stack."""

    endpoints: Endpoints
    arguments: list[str]
    stack: str
    ca: Path

    def client(self, token: str | None = TOKEN) -> StyleClient:
        return StyleClient(self.endpoints.grpc.replace("grpc:", "grpcs:"), ca=self.ca, token=token)


def model(folder: Path) -> None:
    """`stylized` is `image`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3]) for name in ("image", "stylized")
    ]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["stylized"])], "graph", tensors[:1], tensors[1:]
    )
    (folder / "same/1").mkdir(parents=True)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, folder / "same/1/model.onnx")
    (folder / "same/config.pbtxt").write_text(
        'backend: "onnxruntime"\n'
        "instance_group { kind: KIND_CPU count: 1 }\n"
        'parameters { key: "styles" value: { string_value: "same" } }\n'
    )


def binaries(folder: Path, installation: Installation) -> None:
    """`tritonserver` as NVIDIA's container has it in PATH; it notes what it is given."""
    environment = " ".join(f"{name}='{value}'" for name, value in installation.environment.items())
    program = folder / "tritonserver"
    program.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > {folder}/arguments\n'
        f"ulimit -s > {folder}/stack\n"
        f'exec env {environment} {" ".join(installation.binary)} "$@"\n'
    )
    program.chmod(0o755)


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    folder = tmp_path_factory.mktemp("container")
    model(folder / "models")
    binaries(folder, find_triton(ROOT / ".triton", print))
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.crt")]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, *files]
    subprocess.run(command, check=True, capture_output=True)
    secrets = {"NST_TOKEN": TOKEN, "NST_KEY": KEY, "NST_TLS": str(folder), "NST_MODELS": str(folder / "models")}
    environment = {**os.environ, **secrets, **ALLOCATOR_VARIABLES, "PATH": f"{folder}:{os.environ['PATH']}"}
    endpoints = Endpoints.free()
    listening = [
        option
        for service, (address, port) in endpoints.listening.items()
        for option in (f"--{service}-address={address}", f"--{service}-port={port}")
    ]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [SCRIPT, *listening, f"--grpc-max-connection-age={round(AGE * 1000)}"],
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
        try:
            wait_until_ready(process, endpoints, log)
            arguments = (folder / "arguments").read_text().splitlines()
            yield Container(endpoints, arguments, (folder / "stack").read_text().strip(), folder / "tls.crt")
            process.send_signal(signal.SIGTERM)  # as Docker and Kubernetes end it: the script is Triton by now
            assert process.wait(60) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], endpoints: Endpoints, log: Path) -> None:
    """By the probe that needs no token."""
    deadline = time.monotonic() + 120
    while True:
        with suppress(OSError), urllib.request.urlopen(f"{endpoints.http}/v2/health/ready", timeout=5):
            return
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_it_asks_for_what_nst_serve_asks_for(container: Container) -> None:
    assert set(Access(KEY, TOKEN).options("0.0.0.0")) <= set(container.arguments)
    assert {"--exit-on-error=false", "--model-control-mode=explicit", "--load-model=*"} <= set(container.arguments)
    assert container.stack in (str(STACK_BYTES >> 10), "unlimited")


def test_it_asks_for_the_key_alone_without_a_token(tmp_path: Path) -> None:
    """Here a program that only says what it is given stands for Triton."""
    program = tmp_path / "tritonserver"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NST_KEY": KEY, "NST_TLS": str(tmp_path)}
    arguments = subprocess.run(
        [SCRIPT], capture_output=True, text=True, env=environment, check=True
    ).stdout.splitlines()
    guards = {option for option in arguments if "restricted" in option}
    assert guards == set(Access(KEY).options("0.0.0.0"))
    assert "--model-repository=/models" in arguments and not [option for option in arguments if "ssl" in option]


def test_it_stylizes_by_tls_with_the_token_only(container: Container) -> None:
    with container.client() as client:
        assert np.array_equal(client.stylize(CONTENT, "same"), CONTENT)
    with container.client(token=None) as client, pytest.raises(Rejected, match="needs a token"):
        client.stylize(CONTENT, "same")


def test_connections_that_end_by_age_lose_nothing(container: Container) -> None:
    with container.client() as client:
        end = time.monotonic() + 6 * AGE
        while time.monotonic() < end:
            assert np.array_equal(client.stylize(CONTENT, "same"), CONTENT)


def test_a_token_that_is_none(tmp_path: Path) -> None:
    """It would become options of the command line."""
    environment = {**os.environ, "NST_TOKEN": "one two", "NST_TLS": str(tmp_path)}
    refused = subprocess.run([SCRIPT], capture_output=True, text=True, env=environment)
    assert refused.returncode == 1 and refused.stderr.startswith("error: NST_TOKEN is not a token")


def test_the_queries_read_what_triton_reports(container: Container) -> None:
    """Every series by its name, with the labels that a query asks for or sums by; a failure makes that of failures."""
    with container.client() as client:
        client.stylize(CONTENT, "same")
    with urllib.request.urlopen(container.endpoints.metrics) as answer:
        text = answer.read().decode()
    reported: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? ", text, re.MULTILINE):
        reported.setdefault(name, set()).update(re.findall(r'(\w+)="', labels))
    for query in queries.queries():
        for name, labels in queries.series(query):
            if name == "up" or name in OF_GPUS:
                continue
            assert name in reported, f"{name} of {query}"
            assert labels - OF_PROMETHEUS <= reported[name], f"{name} of {query}: {reported[name]}"
