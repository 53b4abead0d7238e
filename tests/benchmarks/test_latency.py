"""Engines and peers side by side, and cold starts, with a real Triton and a tiny network."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from nst_bench.engines.base import Stylize
from nst_bench.engines.registry import Engine
from nst_bench.measure import interleaved, summarize, timed, timed_on_gpu
from nst_bench.peers import process
from nst_bench.served.exported import ExportedModel, export_checkpoint, untrained_checkpoint
from nst_bench.served.server import ModelServer, NotReadyError, serve_model
from nst_bench.suite import Context, Document
from nst_bench.suites import cold, latency, peers
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_core.images import Pixels
from nst_server.installation.triton import find_triton
from nst_trainer.checkpoint import Checkpoint, save

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return untrained_checkpoint(0.125)


@pytest.fixture(scope="module")
def repository(tiny: Checkpoint, tmp_path_factory: pytest.TempPathFactory, cpu: Device) -> Path:
    folder = tmp_path_factory.mktemp("latency") / "models"
    export_checkpoint(tiny, folder, cpu)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ModelServer]:
    with serve_model(find_triton(ROOT / ".triton", print), repository, "untrained-0.125") as running:
        yield running


class Sleeper:
    """An engine that takes a known time: it sleeps, and looks at the clock itself."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds, self.taken = seconds, list[float]()

    def __call__(self) -> None:
        started = time.perf_counter()
        time.sleep(self.seconds[len(self.taken)])
        self.taken.append(time.perf_counter() - started)


def test_an_engine_that_takes_a_known_time_is_measured_within_two_per_cent() -> None:
    steady, drifting = Sleeper([0.03] * 9), Sleeper([0.01] * 5 + [0.05] * 4)
    samples = interleaved({"steady": steady, "drifting": drifting}, 9)
    for name, engine in (("steady", steady), ("drifting", drifting)):
        assert summarize(samples[name]).median == pytest.approx(1000 * np.median(engine.taken), rel=0.02)
    assert summarize(samples["drifting"]).unstable


def test_every_engine_has_rows_or_a_reason(
    tiny: Checkpoint,
    server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    cpu: Device,
    measured: Callable[..., Document],
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    parts: list[int] = []
    context = Context(
        cpu,
        latency.LatencyEffort((112, 96), 0.1),
        keep=lambda part: parts.append(len({row["size"] for row in part["rows"] if "median" in row} - {None})),
    )
    document = measured(latency.SUITE, context, tiny, server)
    assert parts == [1, 2]
    assert document["schema"] == "nst-bench-latency/2"
    assert json.loads(json.dumps(document))["model"]["width"] == 0.125
    steady = {(row["engine"], row["device"]): row for row in document["rows"] if row["phase"] == "steady"}
    running = {engine for engine, row in steady.items() if "median" in row}
    assert {("PyTorch eager", "CPU"), ("ONNX Runtime", "CPU"), ("served, HTTP", "CPU")} <= running
    assert {("served, gRPC", "CPU"), ("served, shared memory", "CPU")} <= running
    assert "needs a C++ compiler" in steady["PyTorch compiled", "CPU"]["missing"]
    for engine in running:
        row = steady[engine]
        assert row["n"] >= latency.FEWEST_ROUNDS and row["max_difference"] <= 1
        assert row["gflop"] > 0 and row["share_of_matrix_rate"] > 0 and row["share_of_bandwidth"] > 0
    assert ("in the process (local:)", "CPU") in running
    on_card = {engine: row["missing"] for engine, row in steady.items() if engine[1] == "GPU"}
    assert {name for name, _ in on_card} == {
        *("PyTorch eager", "PyTorch compiled", "PyTorch, CUDA graph, FP16", "ONNX Runtime, CUDA, FP32"),
        *("TensorRT, FP32", latency.CUDA_SHARED_MEMORY),
    }
    assert set(on_card.values()) == {cpu.reason}
    firsts = [row for row in document["rows"] if row["phase"] == "first of a shape"]
    assert {(row["engine"], row["device"]) for row in firsts} == running
    cold_rows = [row for row in document["rows"] if row["phase"] == "cold"]
    assert all(row["n"] == 1 and row["size"] is None for row in cold_rows) and len(cold_rows) >= 2


def test_a_model_of_another_checkpoint_is_refused(tiny: Checkpoint, repository: Path, tmp_path: Path) -> None:
    save(untrained_checkpoint(0.25), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"is not exported from .*other\.pth"):
        ExportedModel(repository / "untrained-0.125").check_source(tmp_path / "other.pth")


def test_an_engine_that_breaks_is_a_reason_and_the_others_go_on(
    tiny: Checkpoint,
    server: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    cpu: Device,
    measured: Callable[..., Document],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """One that does not load, and one that fails at its second size."""

    def breaks(pixels: Pixels) -> Pixels:
        if pixels.shape[0] > 96:
            raise RuntimeError("out of\nmemory")
        return pixels

    def load() -> Stylize:
        raise ValueError("seven")

    engines = [Engine("fine", "CPU", lambda: lambda pixels: pixels), Engine("late", "CPU", lambda: breaks)]
    monkeypatch.setattr(latency, "every_engine", lambda *_, **__: [*engines, Engine("never", "CPU", load)])
    document = measured(latency.SUITE, Context(cpu, latency.LatencyEffort((96, 112), 0.05)), tiny, server)
    steady = {(row["engine"], row["size"]): row for row in document["rows"] if row["phase"] == "steady"}
    assert steady["late", 112]["missing"] == "RuntimeError: out of memory" and "median" in steady["late", 96]
    assert {steady["never", size]["missing"] for size in (96, 112)} == {"ValueError: seven"}
    assert all("median" in steady[name, size] for name in ("fine", "served, gRPC") for size in (96, 112))
    assert "Traceback" in capfd.readouterr().err


def test_what_compiles_is_left_out_first() -> None:
    less = latency.GPU.scaled(0.8)
    assert (less.sizes, less.compiled, less.seconds) == ((256, 512, 1024), (), pytest.approx(8.0))
    assert latency.GPU.scaled(0.5).sizes == (256, 512)


def test_starts_of_the_real_server(repository: Path, cpu: Device) -> None:
    context = Context(cpu, cold.ColdEffort(1, 2, ((64, 64), (80, 72))))
    document = cold.measure(context, model="untrained-0.125", repository=repository, triton=ROOT / ".triton")
    rows = {(row["what"], row["height"], row["width"]): row for row in document["rows"]}
    assert [row["what"] for row in document["rows"]] == sorted((key[0] for key in rows), key=cold.WHAT.index)
    assert set(rows) == {
        *((what, None, None) for what in (cold.START, cold.LOAD, cold.SESSION)),
        *((cold.FIRST, 64, 64), (cold.SHAPE, 80, 72), (cold.STEADY, 64, 64), (cold.STEADY, 80, 72)),
    }
    assert rows[cold.STEADY, 80, 72]["n"] == 2 and rows[cold.STEADY, 80, 72]["warmed_up"] is False


def test_a_server_that_does_not_start_says_why(tmp_path: Path, cpu: Device) -> None:
    (tmp_path / "models" / "empty").mkdir(parents=True)
    (tmp_path / "models" / "empty" / "config.pbtxt").write_text('backend: "none"')
    context = Context(cpu, cold.ColdEffort(1, 1))
    with pytest.raises(NotReadyError, match="ended before it was ready"):
        cold.measure(context, model="empty", repository=tmp_path / "models", triton=ROOT / ".triton")


WORKER = """
import http.server, sys
sys.path.insert(0, {real!r})
import main

class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

if sys.argv[1] == "fastapi":
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[4])), Echo).serve_forever()
if sys.argv[1] == "litserve":
    sys.exit("it has no wings")
main.versions = lambda names, found=main.versions: {{**found(names), "fastapi": "1", "litserve": "2"}}
main.main(sys.argv[1:])
"""
"""The real worker, with a peer that answers what it gets and one that ends in the places of two of its servers."""


def test_peers_take_turns_with_ours(
    tiny: Checkpoint,
    server: ModelServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cpu: Device,
    measured: Callable[..., Document],
) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKER.format(real=str(process.WORKER.parent)))
    shown = (
        peers.Peer("ONNX Runtime", "onnxruntime-openvino", peers.PROCESS, "ONNX Runtime", key="onnxruntime"),
        peers.Peer("Echo", "fastapi", peers.HTTP, "none", "nothing"),
        peers.Peer("Broken", "litserve", peers.HTTP, "none"),
        peers.Peer("Absent", "no-such-package", peers.PROCESS, "none"),
    )
    monkeypatch.setattr(process, "WORKER", script)
    monkeypatch.setattr(peers, "PEERS", shown)
    context = Context(cpu, peers.PeersEffort((96,), 2))
    document = measured(peers.SUITE, context, tiny, server, environment=Path(sys.prefix))
    assert json.loads(json.dumps(document)) == document | {"rows": json.loads(json.dumps(document["rows"]))}
    steady = {(row["peer"], row["way"]): row for row in document["rows"] if row["phase"] == "steady"}
    assert steady["Broken", "HTTP"]["missing"].startswith("does not answer: it has no wings")
    assert steady["Absent", "in a process"]["missing"].endswith("install no-such-package")
    for name in ("ONNX Runtime", "nst, the bare session"):
        assert steady[name, "in a process"]["max_difference"] <= 1 and steady[name, "in a process"]["n"] == 2
    ours, echo = steady["nst, Triton", "HTTP"], steady["Echo", "HTTP"]
    assert ours["ratio"] == 1.0 and echo["ratio"] == pytest.approx(echo["median"] / ours["median"])
    assert echo["max_difference"] is None and echo["version"] == "1"
    assert "pip install onnxruntime-openvino fastapi" in document["command"]


def test_peers_need_an_environment_and_a_processor(tmp_path: Path, cpu: Device, card: Device) -> None:
    """They say so before a server is started."""
    effort = peers.PeersEffort((96,), 2)
    with pytest.raises(
        InputError, match=r"not a virtual environment; create it with python -m venv .*pip install openvino MNN"
    ):
        peers.SUITE.run(Context(cpu, effort), environment=tmp_path / "none")
    with pytest.raises(InputError, match="peers run on the CPU only; use --device cpu"):
        peers.SUITE.run(Context(card, effort), environment=tmp_path / "none")


@pytest.mark.gpu
def test_work_on_a_gpu_is_timed_to_its_end() -> None:
    def work() -> None:
        torch.cuda._sleep(200_000_000)

    def waiting() -> None:
        work()
        torch.cuda.synchronize()

    timed_on_gpu(work)
    assert timed_on_gpu(work) == pytest.approx(timed(waiting), rel=0.05)
