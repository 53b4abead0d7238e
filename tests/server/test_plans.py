"""Plans before a server's start, built by a program in the place of TensorRT."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from nst_core import console
from nst_core import engines as engines_folder
from nst_core.devices import Device, Gpu, choose
from nst_core.engines import plans as engines
from nst_core.engines.plans import GRAPH
from nst_server.installation.environment import site_packages
from nst_server.installation.triton import Installation
from nst_server.repository import plans

from .machines import CPU, H100, program, tensorrt

PROFILE = "16x16/512x512/4x1920x1920"

BUILDER = """
import json, os, sys, time
from pathlib import Path
script, version, profile, multiple = sys.argv[1:]
folder = Path(__file__).parents[1]
with (folder / "asked").open("a") as notes:
    notes.write(json.dumps([script, version, profile, multiple, os.environ["NST_CACHE"]]) + chr(10))
model = Path(version).parent.name
print("[TRT] [I] TensorRT's own words", flush=True)
for done in (0.25, 0.5):
    print(json.dumps({"progress": done, "note": "tactics"}), flush=True)
if model == "refused":
    print(json.dumps({"error": "tensorrt 10.15.1.29 cannot read the graph: no such operator"}), flush=True)
    sys.exit(1)
if model == "killed":
    print("Segmentation fault in libnvinfer", file=sys.stderr)
    sys.exit(139)
if model == "endless":
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
print(json.dumps({"progress": 1.0, "note": "built"}), flush=True)
print(json.dumps({"plan": os.environ["NST_CACHE"] + "/plans/a.plan", "seconds": 12.3}), flush=True)
"""


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An environment with TensorRT 10.15.1.29, as its package's metadata says."""
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "gpu"
    program(folder / "bin" / "python", BUILDER)
    record = site_packages(folder) / "tensorrt_cu13-10.15.1.29.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text("Name: tensorrt-cu13\nVersion: 10.15.1.29\n")
    return Installation(("tritonserver",), {"NST_CACHE": str(tmp_path / "cache")}, folder)


def asked(installation: Installation) -> list[list[str]]:
    assert installation.folder is not None
    notes = installation.folder / "asked"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def key(version: Path, tensorrt: str = "10.15.1.29") -> engines.PlanKey:
    assert H100.gpu is not None
    profile = engines.Profile.parse(PROFILE)
    return engines.key_of(version / "model.onnx", profile, H100.gpu.name, H100.gpu.compute_capability, tensorrt)


def test_a_plan_is_built_with_progress(
    installation: Installation, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    version = tensorrt(tmp_path / "models" / "starry-night", PROFILE)
    messages: list[str] = []
    plans.prepare(installation, tmp_path / "models", H100, messages.append, console.plan_progress)
    script = (
        installation.folder / "backends" / "tensorrt" / "engines" / "build_plan.py" if installation.folder else None
    )
    assert asked(installation) == [[str(script), str(version), PROFILE, "4", str(tmp_path / "cache")]]
    shown = capsys.readouterr().err
    for percent in ("25/100", "50/100", "100/100"):
        assert f"building the TensorRT plan of starry-night {percent}" in shown
    assert "tactics" in shown
    assert messages == [f"the TensorRT plan of starry-night is in {tmp_path / 'cache' / 'plans'} (12 s)"]


def test_the_library_itself_writes_nothing_to_the_terminal(
    installation: Installation, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.0)
    tensorrt(tmp_path / "models" / "starry-night", PROFILE)
    plans.prepare(installation, tmp_path / "models", H100, lambda line: None)
    assert len(asked(installation)) == 1
    assert capfd.readouterr() == ("", "")


def test_a_plan_that_is_there_is_not_built_again(installation: Installation, tmp_path: Path) -> None:
    """One beside its graph and one in the cache; a third is of another TensorRT, a fourth of another graph."""
    cache = engines.cache_folder()
    cache.mkdir(parents=True)
    own, kept, older, changed = (tensorrt(tmp_path / "models" / name) for name in ("own", "kept", "older", "changed"))
    for version, tensorrt_version in ((own, "10.15.1.29"), (older, "10.13.3.9")):
        (version / "model.plan").write_bytes(b"plan")
        (version / "plan.json").write_text(key(version, tensorrt_version).record(b"plan"))
    for version in (kept, changed):
        (cache / key(version).name).write_bytes(b"plan")
        (cache / key(version).name).with_suffix(".json").write_text(key(version).record(b"plan"))
    (changed / "model.onnx").write_bytes(b"another graph")
    plans.prepare(installation, tmp_path / "models", H100, lambda line: None)
    assert [line[1] for line in asked(installation)] == [str(changed), str(older)]


def test_what_cannot_be_built_is_one_line_and_the_others_go_on(installation: Installation, tmp_path: Path) -> None:
    for name in ("killed", "refused", "right"):
        tensorrt(tmp_path / "models" / name)
    messages: list[str] = []
    plans.prepare(installation, tmp_path / "models", H100, messages.append)
    assert messages[0] == "cannot build a TensorRT plan for killed: Segmentation fault in libnvinfer"
    assert messages[1] == (
        "cannot build a TensorRT plan for refused: tensorrt 10.15.1.29 cannot read the graph: no such operator"
    )
    assert messages[2].startswith("the TensorRT plan of right is in ") and len(messages) == 3


def test_a_profile_that_is_none_is_the_builders_to_refuse(installation: Installation, tmp_path: Path) -> None:
    tensorrt(tmp_path / "models" / "a", "large")
    plans.prepare(installation, tmp_path / "models", H100, lambda line: None)
    assert len(asked(installation)) == 1


def test_there_is_nothing_to_build(installation: Installation, tmp_path: Path) -> None:
    """On a CPU, for a Triton from PATH, and for a model of which there is only a plan."""
    tensorrt(tmp_path / "models" / "a")
    plans.prepare(installation, tmp_path / "models", CPU, lambda line: None)
    plans.prepare(Installation(("tritonserver",)), tmp_path / "models", H100, lambda line: None)
    tensorrt(tmp_path / "others" / "a", files=("model.plan",))
    plans.prepare(installation, tmp_path / "others", H100, lambda line: None)
    assert asked(installation) == []


def real_builder(folder: Path, version: str) -> Installation:
    """An environment that builds with the module `tensorrt` that this Python finds."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copytree(engines_folder.__path__[0], folder / "backends" / "tensorrt" / "engines")
    record = site_packages(folder) / f"tensorrt_cu13-{version}.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text(f"Name: tensorrt-cu13\nVersion: {version}\n")
    return Installation(("tritonserver",), {}, folder)


def graph(version: Path) -> None:
    """`stylized` is `image`."""
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["N", "H", "W", 3]) for name in ("image", "stylized")
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Relu", ["pixels"], ["same"]),
        helper.make_node("Cast", ["same"], ["stylized"], to=TensorProto.UINT8),
    ]
    proto = helper.make_graph(nodes, "graph", tensors[:1], tensors[1:])
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), version / GRAPH)


def check_that_one_build_is_enough(installation: Installation, folder: Path, device: Device) -> None:
    """And that the next start finds the plan without starting TensorRT at all."""
    assert installation.folder is not None
    graph(tensorrt(folder / "models" / "same", "16x16/64x64/2x128x128"))
    messages: list[str] = []
    plans.prepare(installation, folder / "models", device, messages.append)
    (line,) = messages
    assert line.startswith(f"the TensorRT plan of same is in {engines.cache_folder()} ("), line
    assert len(list(engines.cache_folder().glob("*.plan"))) == 1
    (installation.folder / "bin" / "python").unlink()
    plans.prepare(installation, folder / "models", device, messages.append)
    assert messages == [line]


def test_the_engines_own_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a library that has TensorRT's names and needs no GPU."""
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "fakes" / "gpu"))
    gpu = Gpu(0, "NVIDIA Fake GPU", "GPU-0", "9.0", 80 << 30, "580.65.06", (13, 0))
    installation = real_builder(tmp_path / "gpu", "10.99.0.1")
    check_that_one_build_is_enough(installation, tmp_path, Device("gpu", "a fake", gpu))


@pytest.mark.gpu
def test_the_real_builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("tensorrt")
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    check_that_one_build_is_enough(real_builder(tmp_path / "gpu", library.__version__), tmp_path, choose("gpu"))


SERVE = """
import sys
from pathlib import Path
from nst_core import devices
from nst_core.devices import Gpu
from nst_server import cli, service
from nst_server.installation.triton import Installation
devices.gpus = lambda: ([Gpu(0, "NVIDIA L4", "GPU-0", "8.9", 24 << 30, "580.65.06", (13, 0))], "")
service.find_triton = lambda environment, say, device: Installation(("tritonserver",), {}, environment / device.kind)
cli.app()
"""


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ctrl_c_ends_the_builder(installation: Installation, tmp_path: Path, sign: signal.Signals) -> None:
    tensorrt(tmp_path / "models" / "endless")
    assert installation.folder is not None
    options = ["-r", str(tmp_path / "models"), "--triton", str(tmp_path), "--log", str(tmp_path / "log")]
    ports = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free(), strict=True)]
    process = subprocess.Popen([sys.executable, "-c", SERVE, *options, *ports], stderr=subprocess.PIPE, text=True)
    noted = installation.folder / "pid"
    wait_for(lambda: (noted.exists() and noted.read_text() != "") or process.poll() is not None)
    builder = int(noted.read_text())
    process.send_signal(sign)
    _, messages = process.communicate(timeout=60)
    wait_for(lambda: gone(builder))
    if sign != signal.SIGKILL:
        assert process.returncode == 130
        assert messages.splitlines()[0] == "device gpu: NVIDIA L4 (compute capability 8.9)"
        assert messages.splitlines()[-1] == "stopped" and "Traceback" not in messages


def free() -> tuple[int, int, int]:
    from nst_server.endpoints import Endpoints

    endpoints = Endpoints.free()
    return endpoints.http_port, endpoints.grpc_port, endpoints.metrics_port


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def wait_for(condition: object, timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
