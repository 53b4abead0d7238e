"""What `nst-serve` can do besides serving in the foreground, with a real Triton and commands as a user types them."""

import json
import os
import shlex
import shutil
import signal
import ssl
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from nst_core.devices import Device
from nst_core.files import state_folder
from nst_server import state
from nst_server.control import Control
from nst_server.endpoints import Endpoints
from nst_server.errors import ServerError
from nst_server.installation.triton import install_triton
from nst_server.process.supervisor import run_triton
from nst_server.triton_command import ALLOCATOR_VARIABLES, STACK_BYTES
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson

from .serving import BIN, TRITON, certificate, command_line, descendants, run, succeeded

TOKEN = "sesame+open/0="
GRPC_HEADER = "triton-grpc-protocol-nst-token"
CONTENT = np.full((1, 32, 48, 3), 99, np.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("options") / "starry.pth"
    torch.manual_seed(0)
    save(Checkpoint(frozen(Johnson(width=0.125)), ("starry",)), path)
    return path


@pytest.fixture(scope="module")
def repository(checkpoint: Path) -> Path:
    """Two models that are the same."""
    folder = checkpoint.parent / "repository"
    succeeded(run("nst-export", checkpoint, "-r", folder))
    shutil.copytree(folder / "starry", folder / "two")
    config = folder / "two" / "config.pbtxt"
    config.write_text(config.read_text().replace('name: "starry"', 'name: "two"'))
    return folder


@dataclass
class Daemon:
    """A detached `nst-serve`: its ports, what it left in its state file, and how it is called."""

    endpoints: Endpoints
    state: state.State
    messages: str
    authorities: Path | None = None

    def command(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        return run("nst-serve", *arguments, "--http-port", self.endpoints.http_port, **options)

    def http(self, call: str, secret: str | None = None, *, post: bool = False) -> int:
        """The status of an HTTP request."""
        headers = {"nst-token": secret} if secret else {}
        scheme = "https" if self.authorities else "http"
        url = f"{scheme}://127.0.0.1:{self.endpoints.http_port}/v2{call}"
        context = ssl.create_default_context(cafile=self.authorities) if self.authorities else None
        try:
            request = urllib.request.Request(url, b"{}" if post else None, headers)
            with urllib.request.urlopen(request, context=context) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            return error.code

    def grpc(self, call: Callable[[grpc.InferenceServerClient, dict[str, str]], object], secret: str | None) -> bool:
        """Whether a gRPC call is answered; False where it is refused for its secret."""
        address = f"127.0.0.1:{self.endpoints.grpc_port}"
        authorities = str(self.authorities) if self.authorities else None
        headers = {GRPC_HEADER: secret} if secret else {}
        with grpc.InferenceServerClient(address, ssl=bool(authorities), root_certificates=authorities) as client:
            try:
                call(client, headers)
            except InferenceServerException as error:
                assert "restricted" in str(error), error
                return False
            return True


def detach(
    repository: Path | str,
    log: Path | str,
    *options: object,
    authorities: Path | None = None,
    variables: dict[str, str] | None = None,
    folder: Path | None = None,
    triton: Path = TRITON,
) -> Daemon:
    endpoints = Endpoints.free()
    ports = [f"--{kind}-port={getattr(endpoints, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")]
    fixed = ("-r", repository, "--log", log, "--triton", triton, "--device", "cpu", "--detach")
    environment = {**os.environ, **(variables or {})}
    messages = succeeded(run("nst-serve", *fixed, *ports, *options, env=environment, cwd=folder))
    found = state.read(state_folder(), endpoints.http_port)
    assert found is not None
    return Daemon(endpoints, found, messages, authorities)


def infer(client: grpc.InferenceServerClient, headers: dict[str, str]) -> np.ndarray:
    tensor = grpc.InferInput("image", list(CONTENT.shape), "UINT8")
    tensor.set_data_from_numpy(CONTENT)
    answer: np.ndarray = client.infer("starry", [tensor], headers=headers).as_numpy("stylized")
    assert answer.shape == CONTENT.shape
    return answer


OPEN = {"live": "/health/live", "ready": "/health/ready"}
CALLS = {
    "/models/starry": lambda client, headers: client.get_model_metadata("starry", headers=headers),
    "/models/starry/config": lambda client, headers: client.get_model_config("starry", headers=headers),
    "/models/stats": lambda client, headers: client.get_inference_statistics(headers=headers),
    "/models/starry/infer": infer,
    "/systemsharedmemory/status": lambda client, headers: client.get_system_shared_memory_status(headers=headers),
}
CONTROL = {
    "/repository/index": lambda client, headers: client.get_model_repository_index(headers=headers),
    "/repository/models/two/load": lambda client, headers: client.load_model("two", headers=headers),
    "/repository/models/two/unload": lambda client, headers: client.unload_model("two", headers=headers),
    "/trace/setting": lambda client, headers: client.get_trace_settings(headers=headers),
    "/logging": lambda client, headers: client.get_log_settings(headers=headers),
}


def is_post(call: str) -> bool:
    return "repository" in call or "infer" in call


def left(processes: set[int]) -> set[int]:
    """Those that run; the machine's first process collects a detached server's, which may take a while."""
    return {pid for pid in processes if state.started(pid) is not None}


@pytest.fixture(scope="module")
def guarded(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Detached, on every address, with TLS and a token; ended by `nst-serve stop`, which leaves nothing."""
    folder = tmp_path_factory.mktemp("guarded")
    chain, key = certificate(folder)
    (folder / "token").write_text(f"{TOKEN}\n")
    options = ("--address", "0.0.0.0", "--tls-cert", chain, "--tls-key", key, "--token-file", folder / "token")
    daemon = detach(repository, folder / "log", *options, authorities=chain)
    processes = descendants(daemon.state.pid) | {daemon.state.pid}
    assert len(processes) > 2
    yield daemon
    assert "stopped the server" in succeeded(daemon.command("stop"))
    assert not left(processes)
    assert not list(state_folder().glob(f"*{daemon.endpoints.http_port}*"))
    assert "no server of this user" in daemon.command("stop").stderr


def test_a_detached_server_is_ready_and_can_be_asked(guarded: Daemon) -> None:
    assert "ready: starry, two on grpcs://" in guarded.messages
    result = guarded.command("status")
    succeeded(result)
    assert result.stdout.splitlines()[2:] == [
        "device cpu: chosen with --device cpu",
        "starry version 1: ready",
        "two version 1: ready",
    ]
    assert guarded.messages.startswith("device cpu: chosen with --device cpu\n")
    assert f"https://0.0.0.0:{guarded.endpoints.http_port}" in result.stdout


def test_its_state_is_its_users_alone(guarded: Daemon) -> None:
    (file,) = state_folder().glob(f"serve-{guarded.endpoints.http_port}.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert guarded.state.key in file.read_text()
    assert guarded.state.key not in repr(guarded.state)
    assert TOKEN not in file.read_text()


def test_a_second_one_is_refused(guarded: Daemon, repository: Path) -> None:
    result = guarded.command("-r", repository, "--triton", TRITON)
    assert result.returncode == 1
    assert f"(process {guarded.state.pid} serves there already); end it with nst serve stop" in result.stderr


def test_probes_need_no_token(guarded: Daemon) -> None:
    assert [guarded.http(call) for call in OPEN.values()] == [200, 200]
    assert guarded.grpc(lambda client, headers: client.is_server_ready(headers=headers), None)


@pytest.mark.parametrize("call", CALLS)
def test_calls_need_the_token(guarded: Daemon, call: str) -> None:
    for secret in (None, "wrong", guarded.state.key):
        assert guarded.http(call, secret, post=is_post(call)) == 403
        assert not guarded.grpc(CALLS[call], secret)
    # Triton takes the token, and then an inference with nothing in it is wrong for another reason
    assert guarded.http(call, TOKEN, post=is_post(call)) in ((400, 500) if "infer" in call else (200,))
    assert guarded.grpc(CALLS[call], TOKEN)


@pytest.mark.parametrize("call", CONTROL)
def test_model_control_needs_the_key_and_not_only_the_token(guarded: Daemon, call: str) -> None:
    for secret in (None, "wrong", TOKEN):
        assert guarded.http(call, secret, post=is_post(call)) == 403
        assert not guarded.grpc(CONTROL[call], secret)
    if "unload" not in call:
        assert guarded.http(call, guarded.state.key, post=is_post(call)) == 200
        assert guarded.grpc(CONTROL[call], guarded.state.key)


def test_nothing_but_tls_is_reached_from_outside(guarded: Daemon) -> None:
    outside = {port for address, port in listeners(guarded.state.pid) if address != "127.0.0.1"}
    assert outside == {guarded.endpoints.http_port, guarded.endpoints.grpc_port, guarded.endpoints.metrics_port}
    for port in outside:
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/live", timeout=5)
    plain = grpc.InferenceServerClient(f"127.0.0.1:{guarded.endpoints.grpc_port}")
    with plain, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
        plain.is_server_live()
    context = ssl.create_default_context(cafile=guarded.authorities)
    with urllib.request.urlopen(
        f"https://127.0.0.1:{guarded.endpoints.metrics_port}/metrics", context=context
    ) as answer:
        assert b'nst_requests_total{model="starry"' in answer.read()


def listeners(pid: int) -> set[tuple[str, int]]:
    """Where a process and its descendants listen, as /proc has it: IPv4 addresses, or `*`, and ports."""
    inodes = set()
    for process in descendants(pid) | {pid}:
        with suppress(OSError):  # a process that has ended
            for descriptor in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                local = address.endswith("0100007F")  # 127.0.0.1, also within IPv6
                found.add(("127.0.0.1" if local else "*", int(port, 16)))
    return found


def test_secrets_do_not_show_among_the_processes(guarded: Daemon) -> None:
    shown = [command_line(pid) for pid in descendants(guarded.state.pid) | {guarded.state.pid}]
    assert any("nst-token=***" in arguments for arguments in shown)
    for secret in (TOKEN, guarded.state.key):
        assert not any(secret in arguments for arguments in shown)


def test_a_large_image_goes_through_tls_unharmed(guarded: Daemon) -> None:
    """A request and an answer of 5 MB each, over HTTP behind TLS and over gRPC."""
    import tritonclient.http as http

    large = np.random.default_rng(0).integers(0, 256, (1, 1200, 1400, 3)).astype(np.uint8)
    answers = []
    authorities = str(guarded.authorities)

    def context(**_: object) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=authorities)

    address = f"127.0.0.1:{guarded.endpoints.http_port}"
    with http.InferenceServerClient(address, ssl=True, ssl_context_factory=context, network_timeout=120) as client:
        tensor = http.InferInput("image", list(large.shape), "UINT8")
        tensor.set_data_from_numpy(large)
        answers.append(client.infer("starry", [tensor], headers={"nst-token": TOKEN}).as_numpy("stylized"))
    address = f"127.0.0.1:{guarded.endpoints.grpc_port}"
    with grpc.InferenceServerClient(address, ssl=True, root_certificates=authorities) as client:
        tensor = grpc.InferInput("image", list(large.shape), "UINT8")
        tensor.set_data_from_numpy(large)
        answers.append(np.array(client.infer("starry", [tensor], headers={GRPC_HEADER: TOKEN}).as_numpy("stylized")))
    assert np.array_equal(answers[0], answers[1])


def test_a_model_is_unloaded_and_loaded_by_command(guarded: Daemon) -> None:
    assert "no longer serves two" in succeeded(guarded.command("unload", "two"))
    result = guarded.command("status")
    succeeded(result)  # nobody wants it served
    assert "two version 1: not loaded" in result.stdout
    assert "no model 'two' is loaded" in guarded.command("unload", "two").stderr
    assert "serves two version 1" in succeeded(guarded.command("load", "two"))
    assert "two version 1: ready" in guarded.command("status").stdout
    assert "no model 'nobody' in the repository" in guarded.command("load", "nobody").stderr


def test_a_published_model_is_loaded_over_tls(
    guarded: Daemon, checkpoint: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NST_CA", str(guarded.authorities))
    urls = [f"grpcs://localhost:{guarded.endpoints.grpc_port}", f"https://localhost:{guarded.endpoints.http_port}"]
    messages = succeeded(run("nst-export", checkpoint, "-r", repository, "--name", "three", "--load", urls[0]))
    assert "serves three version 1" in messages
    Control.at(urls[1]).load("three", "1")
    monkeypatch.setenv("NST_STATE", str(checkpoint.parent))  # as on another machine
    for url in urls:
        with pytest.raises(ServerError, match="requires its key"):
            Control.at(url).load("three", "1")
    monkeypatch.setenv("NST_TOKEN", guarded.state.key)
    for url in urls:
        assert [model.version for model in Control.at(url).load("three", "1")] == ["1"]


@pytest.fixture(scope="module")
def local(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Detached with what nst-serve does by itself, from a folder with a `numpy`, and a model that cannot be loaded."""
    folder = tmp_path_factory.mktemp("local")
    shutil.copytree(repository / "starry", folder / "repository" / "starry")
    broken = shutil.copytree(repository / "two", folder / "repository" / "broken")
    (broken / "config.pbtxt").write_text((broken / "config.pbtxt").read_text().replace('name: "two"', 'name: "broken"'))
    (broken / "1" / "model.onnx").write_bytes(b"no model")
    other = shutil.copytree(repository / "two", folder / "repository" / "other") / "config.pbtxt"
    other.write_text(other.read_text().replace('name: "two"', 'name: "other"').replace("KIND_CPU", "KIND_GPU"))
    (folder / "numpy.py").write_text("raise SystemExit('taken from the folder that nst-serve was started in')")
    daemon = detach(folder / "repository", folder / "log", variables={"MALLOC_TOP_PAD_": "1048576"}, folder=folder)
    processes = descendants(daemon.state.pid)
    yield daemon
    deadline = time.monotonic() + 60
    while left(processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left(processes)  # the last test has killed it


def test_one_bad_model_is_named_and_the_others_are_served(local: Daemon) -> None:
    assert "broken version 1 is not served: " in local.messages
    assert "ready: starry on " in local.messages
    result = local.command("status")
    assert result.returncode == 1
    assert "starry version 1: ready" in result.stdout
    assert "broken version 1: " in result.stdout and "Protobuf parsing failed" in result.stdout


def test_a_model_for_the_other_device_is_named_with_both_ways_out(local: Daemon) -> None:
    (line, *_) = local.messages.splitlines()
    assert line.endswith(
        "other was exported for the GPU, but this server uses the CPU (chosen with --device cpu); export it again "
        "with nst export --device cpu, or serve it on a machine with a GPU (--device gpu)"
    )
    assert "other version 1 is not served: " in local.messages


def test_the_allocator_keeps_its_blocks_unless_the_user_says_otherwise(guarded: Daemon, local: Daemon) -> None:
    """In Triton, and in the process of each model."""
    for daemon, wanted in (
        (guarded, ALLOCATOR_VARIABLES),
        (local, ALLOCATOR_VARIABLES | {"MALLOC_TOP_PAD_": "1048576"}),
    ):
        found: list[dict[str, str]] = []
        for pid in descendants(daemon.state.pid):
            with suppress(OSError):  # a process that has ended
                lines = Path(f"/proc/{pid}/environ").read_text().split("\0")
                found.append({name: value for name, _, value in (line.partition("=") for line in lines)})
        assert len(found) > 1
        for variables in found:
            assert wanted.items() <= variables.items() and variables["CUDA_VISIBLE_DEVICES"] == ""


def test_without_a_token_this_machine_may_call_but_not_control(local: Daemon) -> None:
    for call, make in CALLS.items():
        assert local.http(call, post=is_post(call)) in ((400, 500) if "infer" in call else (200,))
        assert local.grpc(make, None)
    for call, make in CONTROL.items():
        assert local.http(call, post=is_post(call)) == 403
        assert not local.grpc(make, None)
    assert {address for address, _ in listeners(local.state.pid)} == {"127.0.0.1"}


def test_its_messages_go_on_in_the_log(local: Daemon) -> None:
    local.command("load", "broken")
    log = Path(local.state.log).read_text()
    assert log.count("broken version 1 is not served: ") == 1  # the first went to the terminal
    assert "Started GRPCInferenceService" in log


def test_a_killed_one_is_noticed(local: Daemon) -> None:
    (file,) = state_folder().glob(f"serve-{local.endpoints.http_port}.json")
    os.kill(local.state.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while local.state.running() and time.monotonic() < deadline:
        time.sleep(0.05)
    result = local.command("status")
    assert result.returncode == 1
    assert f"error: no server of this user runs with HTTP port {local.endpoints.http_port}" in result.stderr
    assert file.exists()  # which the next start overwrites


def test_a_detached_server_that_cannot_start_says_why_and_leaves_nothing(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "starry", tmp_path / "repository" / "starry")
    (tmp_path / "repository" / "starry" / "1" / "model.onnx").write_bytes(b"no model")
    endpoints = Endpoints.free()
    ports = [f"--{kind}-port={getattr(endpoints, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")]
    result = run(
        *("nst-serve", "-r", tmp_path / "repository", "--log", tmp_path / "log", "--triton", TRITON, "--detach"),
        *("--device", "cpu", *ports),
    )
    assert result.returncode == 1
    assert "error: no model could be loaded: starry version 1 is not served: " in result.stderr
    assert "Traceback" not in result.stderr
    assert state.read(state_folder(), endpoints.http_port) is None
    endpoints.check_free()


def test_the_containers_command_is_printed(repository: Path, tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    (tmp_path / "token").write_text(TOKEN)
    options = ("--docker", "--dry-run", "--device", "cpu", "--tls-cert", chain, "--tls-key", key, "--http-port", 8443)
    result = run("nst-serve", "-r", repository, *options, "--token-file", tmp_path / "token", "--address", "0.0.0.0")
    succeeded(result)
    command = shlex.split(result.stdout)
    assert command[:3] == ["docker", "run", "--rm"]
    assert {f"--env={name}={value}" for name, value in ALLOCATOR_VARIABLES.items()} | {
        f"--ulimit=stack={STACK_BYTES}"
    } <= set(command)
    assert not [word for word in command if word.startswith("--gpus")]
    assert f"--mount=type=bind,source={repository},target=/models,readonly" in command
    assert "--publish=0.0.0.0:8001:8001" in command
    published = [word for word in command if word.startswith("--publish=127.0.0.1:")]
    assert [word.rpartition(":")[2] for word in published] == ["8000", "8002"]  # behind our TLS
    assert any(word.startswith("nvcr.io/nvidia/tritonserver:") and word.endswith("-py3") for word in command)
    inside = command[-1]
    assert inside.startswith("exec tritonserver ")
    assert (
        '"--http-restricted-api=metadata,inference,model-config,statistics,shared-memory:nst-token=$NST_TOKEN"'
        in inside
    )
    assert '"--grpc-restricted-protocol=model-repository,trace,logging:nst-token=$NST_KEY"' in inside
    assert '"--grpc-server-key=/tls/key.pem"' in inside
    assert TOKEN not in result.stdout


ODD = 'My "Projects" $(touch pwned): it\'s mödel'
BAD = "x$(touch${IFS}pwned)"


def other_triton(folder: Path) -> Path:
    """Triton's environment by another path, as if it were installed there."""
    environment = folder / ".triton" / "cpu"
    environment.mkdir(parents=True)
    for entry in (TRITON / "cpu").iterdir():
        if entry.name != "backends":
            (environment / entry.name).symlink_to(entry)
    return environment.parent


@pytest.fixture(scope="module")
def odd(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Everything in a folder that bash would read as something else, on IPv6, behind a proxy that nobody answers at.

    In the repository are also two folders whose names are no model's, and four configs that must not reach Triton.
    """
    folder = tmp_path_factory.mktemp("odd") / ODD
    shutil.copytree(repository / "starry", folder / "repository" / "starry")
    (folder / "tmp").mkdir()
    for name in ("my copy", BAD, "folder", "latin", "words", "unread"):
        shutil.copytree(repository / "starry", folder / "repository" / name)
        config = folder / "repository" / name / "config.pbtxt"
        config.write_text(config.read_text().replace('name: "starry"', ""))
    (folder / "repository" / "folder" / "config.pbtxt").unlink()
    (folder / "repository" / "folder" / "config.pbtxt").mkdir()
    (folder / "repository" / "latin" / "config.pbtxt").write_bytes(b'name: "l\xe9"')
    (folder / "repository" / "words" / "config.pbtxt").write_text('instance_group { name: "a;touch pwned" }')
    (folder / "repository" / "unread" / "config.pbtxt").write_text("this is { no config")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"), "http://127.0.0.1:9")
    variables = {"LC_ALL": "C", "TMPDIR": str(folder / "tmp"), "no_proxy": "", "NO_PROXY": "", **proxies}
    daemon = detach(
        *("repository", "triton.log", "--address", "::1", "--poll", 1),
        variables=variables,
        folder=folder,
        triton=other_triton(folder),
    )
    processes = descendants(daemon.state.pid)
    yield daemon
    succeeded(daemon.command("stop", env={**os.environ, **variables}))
    assert not left(processes)
    assert not list(folder.rglob("pwned")) and not Path("/pwned").exists()


def test_whatever_the_folders_are_called(odd: Daemon) -> None:
    assert (
        f"ready: starry on grpc://[::1]:{odd.endpoints.grpc_port} and http://[::1]:{odd.endpoints.http_port}"
        in odd.messages
    )
    with urllib.request.urlopen(f"http://[::1]:{odd.endpoints.http_port}/v2/models/starry/ready") as answer:
        assert answer.status == 200
    with grpc.InferenceServerClient(f"[::1]:{odd.endpoints.grpc_port}") as client:
        infer(client, {})
    log = Path(odd.state.log).read_text()
    assert "nst-serve-" not in log
    assert f"{Path(odd.state.log).parent}/.triton/cpu/backends" in log, "as the user knows them"


def test_what_must_not_reach_triton_is_named_and_the_rest_served(odd: Daemon) -> None:
    refused = [line.partition(" is not served")[0] for line in odd.messages.splitlines() if " is not served" in line]
    assert sorted(refused) == sorted(["repository/my copy", f"repository/{BAD}", "folder", "latin", "words", "unread"])
    result = odd.command("status")
    succeeded(result)
    assert [line for line in result.stdout.splitlines() if " version " in line] == ["starry version 1: ready"]
    assert f"error: '{BAD}' is not a model name" in odd.command("load", BAD).stderr


def test_what_comes_later_is_looked_at_first(odd: Daemon) -> None:
    """A good model and a bad name that appear while nst-serve looks; and a good one that goes."""
    folder = Path(odd.state.repository)
    for name in ("later", "later$(touch pwned)"):
        (folder.parent / "beside").mkdir()
        shutil.copytree(folder / "starry" / "1", folder.parent / "beside" / "1")
        config = (folder / "starry" / "config.pbtxt").read_text().replace('name: "starry"', "")
        (folder.parent / "beside" / "config.pbtxt").write_text(config)
        (folder.parent / "beside").rename(folder / name)
    expect(odd, "later version 1: ready")
    assert "later$(touch pwned) is not served: rename the folder" in Path(odd.state.log).read_text()
    succeeded(odd.command("unload", "later"))
    expect(odd, "later version 1: not loaded")
    succeeded(odd.command("load", "later"))
    shutil.rmtree(folder / "later")
    expect(odd, "later", gone=True)


def expect(daemon: Daemon, line: str, *, gone: bool = False) -> None:
    """Wait until the status has a line, or until nothing in it is ready that has these words."""
    deadline = time.monotonic() + 120
    while True:
        shown = daemon.command("status").stdout
        if not any("ready" in text for text in shown.splitlines() if line in text) if gone else line in shown:
            return
        assert time.monotonic() < deadline, shown
        time.sleep(0.3)


STUB = """#!/bin/sh
case $1 in
*/{model}/*) echo 'stub: error while loading shared libraries: libpython3.x.so.1.0' >&2; exit 127 ;;
esac
exec {stub} "$@"
"""


@pytest.mark.parametrize("model", ["two", "*"])
def test_a_process_that_dies_at_the_start(repository: Path, tmp_path: Path, model: str) -> None:
    """One model is named, and the others are served; for all models the reason is shown, not 300 seconds of silence."""
    for name in ("starry", "two"):
        shutil.copytree(repository / name, tmp_path / "repository" / name)
    installation = install_triton(other_triton(tmp_path), print, Device("cpu", "a test"))
    assert installation.folder is not None
    stub = installation.folder / "backends" / "python" / "triton_python_backend_stub"
    stub.replace(stub.with_name("moved"))
    stub.write_text(STUB.format(model=model, stub=stub.with_name("moved")))
    stub.chmod(0o755)
    heard: list[str] = []
    endpoints = Endpoints.free()
    running = run_triton(
        installation,
        tmp_path / "repository",
        endpoints,
        tmp_path / "log",
        ready_timeout_seconds=200,
        on_error=heard.append,
    )
    reason = (
        "cannot be served: its process ended during loading: stub: error while loading shared libraries: "
        "libpython3.x.so.1.0"
    )
    if model == "*":
        with pytest.raises(ServerError, match=reason), running:
            pass
        return
    with running:
        assert [(model.name, model.ready) for model in Control(endpoints.control).models() if model.version] == [
            ("starry", True)
        ]
    assert heard[0] == f"two {reason} (log: {tmp_path / 'log'})"


NOBODY = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"]
READS_ALL = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
"""For a Python that lies in root's own folder, as on a developer's machine."""


@pytest.mark.skipif(
    os.getuid() != 0 or subprocess.run([*NOBODY, *READS_ALL, "true"], capture_output=True).returncode != 0,
    reason="only root can become another user",
)
def linked(source: str, target: str) -> None:
    """A file in another folder without a copy of its bytes, where the file system can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_a_user_id_without_an_entry_and_without_a_home(repository: Path) -> None:
    """As OpenShift has them: a line that names the variable, and with it everything works."""
    endpoints = Endpoints.free()
    ports = [f"--{kind}-port={getattr(endpoints, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")]
    unset = [word for name in ("HOME", "NST_STATE", "NST_CACHE", "XDG_STATE_HOME") for word in ("-u", name)]
    with tempfile.TemporaryDirectory() as name:  # the tests' own folder is closed to others, and ours may be
        folder = Path(name)
        folder.chmod(0o777)
        shutil.copytree(repository / "starry", folder / "repository" / "starry")
        shutil.copytree(TRITON / "cpu", folder / ".triton" / "cpu", symlinks=True, copy_function=linked)

        def nst_serve(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
            given = [f"{name}={value}" for name, value in variables.items()]
            command = [*NOBODY, *READS_ALL, "env", *unset, *given, BIN / "nst-serve", *arguments]
            return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, timeout=300)

        options = ("-r", "repository", "--triton", ".triton", "--device", "cpu", "--detach", *ports)
        result = nst_serve(*options)
        assert result.returncode == 1
        assert "error: user id 12345 has no home folder; set NST_STATE to a writable" in result.stderr.splitlines()[-1]
        assert "Traceback" not in result.stderr
        assert "ready: " in succeeded(nst_serve(*options, NST_STATE=str(folder / "state")))
        assert "stopped" in succeeded(nst_serve("stop", ports[0], NST_STATE=str(folder / "state")))


def test_options_that_cannot_be_used(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, key = certificate(tmp_path)
    (tmp_path / "words").write_text("two words")
    (tmp_path / "text").write_text("no certificate")
    for options, words in (
        (("--tls-cert", chain), "TLS needs both --tls-cert and --tls-key"),
        (("--tls-cert", chain, "--tls-key", tmp_path / "none"), "none: no such file"),
        (("--tls-cert", tmp_path / "text", "--tls-key", key), "give a certificate and its unencrypted key"),
        (("--tls-cert", chain, "--tls-key", chain), "give a certificate and its unencrypted key"),
        (("--token-file", tmp_path / "words"), "words is not a token"),
        (("--token-file", tmp_path / "none"), "cannot read the token"),
        (("--gpus", "all"), "--gpus needs --docker"),
        (("--dry-run",), "--dry-run needs --docker"),
    ):
        result = run("nst-serve", "-r", repository, *options)
        assert result.returncode == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and words in line, line
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "--docker needs docker in PATH" in run("nst-serve", "-r", repository, "--docker").stderr
    (tmp_path / "serve-8000.json").write_text(json.dumps({"pid": 1}))
    assert "is not a server's state file" in run("nst-serve", "status", "--state", tmp_path).stderr
