"""What the suites of serving measure: with a server that is slow by a known time, and with a real Triton."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from nst_bench import report, results
from nst_bench.cli import app
from nst_bench.drawing.speedup import GATYS, ITERATIONS
from nst_bench.drawing.words import shown
from nst_bench.engines.baseline import Baseline
from nst_bench.photographs import sample_photograph
from nst_bench.served.callers import Call, Turn, counted_between, send_in_turn, start_callers, summary
from nst_bench.served.server import ModelServer, serve_model
from nst_bench.suite import Context, Document
from nst_bench.suites import perf_analyzer, serving, soak, speedup
from nst_client import MockTransport, Statistics, StyleClient
from nst_client.transports import base as transports
from nst_core.contract import IMAGE
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_export.export_plan import ExportPlan
from nst_export.pipeline import export_and_publish
from nst_server.installation.triton import find_triton
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    save(Checkpoint(frozen(Johnson(width=0.125)), ("tiny",)), folder / "tiny.pth")
    export_and_publish(folder / "tiny.pth", "tiny", folder / "models", ExportPlan(cores=2))
    return folder / "models"


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[ModelServer]:
    with serve_model(find_triton(ROOT / ".triton", print), repository, "tiny") as running:
        yield running


def test_the_whole_suite_with_a_real_triton(
    server: ModelServer, tmp_path: Path, cpu: Device, measured: Callable[..., Document]
) -> None:
    effort = serving.ServingEffort(0.1, 2, 0.2, 0.5, 2, sizes=(32, 64), loaded=(32, 64), callers=(1, 4), mixed=(3,))
    effort = replace(effort, mixed_turn=0.2, sides=(32, 64))
    parts: list[set[str]] = []
    context = Context(cpu, effort, keep=lambda part: parts.append(set(part)))
    document = measured(serving.SUITE, context, server)
    results.write(document, tmp_path / "a.json")
    document = results.read(tmp_path / "a.json")
    assert [(row["size"], row["way"]) for row in document["latency"]] == [
        (size, way) for size in (32, 64) for way in (serving.BARE, *serving.WAYS)
    ]
    for row in document["latency"]:
        bare = next(other for other in document["latency"] if other["size"] == row["size"])
        assert row["ratio"] == pytest.approx(row["median"] / bare["median"])
        assert row["n"] >= serving.FEWEST_REQUESTS
    order = ("latency", "throughput", "throughput_by_size", "mixed", "slowest_against_one", "arrivals")
    assert [sorted(part & set(order)) for part in parts] == [sorted(order[: n + 1]) for n in range(len(order))]
    throughput, arrivals = document["throughput"], document["arrivals"]
    assert throughput["size"] == 64 and [load["size"] for load in document["throughput_by_size"]] == [32]
    for row in throughput["rows"]:
        assert row["n"] == 2 * throughput["requests"]
        assert sum(int(size) * count for size, count in row["batches"].items()) == row["n"]
        assert row["mean"] == pytest.approx(row["queue"] + row["compute"] + row["rest"])
    assert throughput["rows"][0]["batches"] == {"1": throughput["rows"][0]["n"]}
    rates = [row["rate"] for row in arrivals["rows"]]
    assert rates == sorted(rates) and max(rates) < throughput["bare"]["rate"]
    assert arrivals["rate"] == max((row["rate"] for row in arrivals["rows"] if row["within"]), default=None)
    assert document["model"]["width"] == 0.125 and document["model"]["threads"] == 2
    loads = [throughput, *document["throughput_by_size"]]
    mixed = document["mixed"]["rows"]
    assert [(row["mixture"], row["callers"]) for row in mixed] == [(serving.APART, 3), (serving.CHANGING, 3)]
    for row in mixed:
        assert row["n"] == sum(row["batches"][size] * int(size) for size in row["batches"])
        assert row["against_one"] > 0 and row["one_caller"] > 0
    against = [row["against_one"] for load in loads for row in load["rows"] if row["callers"] > 1]
    assert document["slowest_against_one"]["ratio"] == min(*against, *(row["against_one"] for row in mixed))
    assert all(load["rows"][0]["against_one"] == 1.0 for load in loads)
    text = report.markdown(document)
    assert "| 64² | shared memory |" in text and "Poisson" in text
    assert f"| {shown(serving.CHANGING)} | 3 |" in text and "relative to one client" in text


def test_mixtures_have_every_size_once_and_stay_the_same() -> None:
    sizes = serving.mixture(32, 128, 640)
    assert len(set(sizes)) == 32 and sizes[:8] == serving.mixture(8, 128, 640)
    assert all(128 <= side <= 640 for size in sizes for side in size)


def test_the_slowest_of_all_is_named() -> None:
    def row(callers: int, ratio: float, **words: str) -> dict[str, object]:
        return {"callers": callers, "against_one": ratio, **words}

    loads = [{"size": 256, "rows": [row(1, 1.0), row(8, 2.5)]}, {"size": 512, "rows": [row(1, 1.0), row(8, 1.7)]}]
    mixed = [row(8, 0.4, mixture=serving.CHANGING)]
    assert serving.slowest(loads, []) == {"ratio": 1.7, "who": "8 callers at 512²"}
    assert serving.slowest(loads, mixed) == {"ratio": 0.4, "who": "8 callers, each caller changes sizes"}
    assert serving.slowest([{"size": 256, "rows": [row(1, 1.0)]}], []) is None


def test_less_time_is_less_of_everything() -> None:
    half = serving.FULL.scaled(0.5)
    assert (half.latency, half.turn, half.arrivals, half.probes) == (15.0, 3.0, 4.5, 2)
    assert speedup.FULL.scaled(0.5).rounds == 6 and speedup.FULL.scaled(0.5).photos == 1


def test_the_batch_that_is_reported_is_the_batch_that_was_sent(server: ModelServer) -> None:
    """Requests of three and of five images, one at a time; nobody else is there to be put with them."""
    with StyleClient(server.endpoints.grpc) as client:
        before = client.statistics("tiny")
        for size in (3, 5, 5):
            client.stylize(np.repeat(sample_photograph(48, 48)[None], size, axis=0), "tiny")
        deadline = time.monotonic() + 10
        while (after := client.statistics("tiny")).requests < before.requests + 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    counted = counted_between(before, after)
    assert (counted.requests, counted.images, counted.executions) == (3, 13, 3)
    assert counted.batches == {3: 1, 5: 2}
    assert counted.compute_seconds > 0


def test_callers_at_once_are_counted_one_by_one_on_a_cpu(server: ModelServer) -> None:
    """A model for a CPU asks Triton for no batches, which gain nothing there."""
    pixels = sample_photograph(256, 256)
    with start_callers(4, server.endpoints.grpc, "tiny") as callers, StyleClient(server.endpoints.grpc) as client:
        before = client.statistics("tiny")
        calls = callers.closed_loop(4, 40, pixels)
        deadline = time.monotonic() + 10
        while (after := client.statistics("tiny")).requests < before.requests + 40 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(calls) == 40
    counted = counted_between(before, after)
    assert counted.images == 40
    assert counted.batches == {1: 40} and counted.executions == 40


def _note_parts(parts: list[list[str]], part: Document) -> None:
    parts.append([name for name in ("speedup", "equal_loss") if part[name]])


def test_the_speed_up_with_a_real_triton(
    repository: Path, photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpu: Device
) -> None:
    monkeypatch.setattr(speedup, "LONGEST", 3)
    effort = speedup.SpeedupEffort(blocks=1, rounds=2, iterations=2, equal_loss=(64,), sizes=(64,))
    parts: list[list[str]] = []
    keep = partial(_note_parts, parts)
    document = speedup.SUITE.run(
        Context(cpu, effort, keep=keep),
        checkpoint=repository.parent / "tiny.pth",
        repository=repository,
        triton=ROOT / ".triton",
        style=photographs["coffee"],
    )
    assert parts == [["speedup"], ["speedup", "equal_loss"]]
    results.write(document, tmp_path / "a.json")
    document = results.read(tmp_path / "a.json")
    assert document["device"] == "CPU"
    steady = {row["engine"]: row for row in document["rows"] if row["phase"] == "steady"}
    assert set(steady) == {*speedup.SERVED, "in the process", "PyTorch", GATYS}
    assert all(row["n"] == 2 and row["median"] > 0 for row in steady.values())
    assert [(row["served"], row["iterations"]) for row in document["speedup"]] == [
        (way, iterations) for way in speedup.COMPARED for iterations in ITERATIONS
    ]
    assert "64²: speed-up, shared memory" in report.markdown(document)
    assert "| speed-up, shared memory |" in report.one_table(document)
    (equal,) = document["equal_loss"]
    assert equal["size"] == 64 and ("ratio" in equal or "after 3 iterations" in equal["missing"])
    assert "At equal loss" in report.markdown(document)


def test_the_bare_session_stylizes_as_the_server(server: ModelServer) -> None:
    pixels = sample_photograph(61, 83)
    with StyleClient(server.endpoints.grpc) as client:
        answer = client.stylize(pixels, "tiny")
    stylized = Baseline(server.exported.folder).stylize(pixels)
    assert np.abs(answer.astype(int) - stylized.astype(int)).max() <= 1


def test_as_many_bare_sessions_as_instances(repository: Path, tmp_path: Path) -> None:
    config = (repository / "tiny" / "config.pbtxt").read_text()
    version = tmp_path / "two" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").symlink_to(repository / "tiny" / "1" / "model.onnx")
    (tmp_path / "two" / "config.pbtxt").write_text(config.replace("count: 1", "count: 2"))
    bare = Baseline(tmp_path / "two")
    assert len(bare.sessions) == 2
    assert bare.seconds_for(sample_photograph(32, 32), 5) > 0
    (tmp_path / "two" / "config.pbtxt").write_text(config.replace('"onnxruntime"', '"python"'))
    with pytest.raises(InputError, match="two uses the backend 'python', which has no in-process counterpart"):
        Baseline(tmp_path / "two")


def test_what_a_server_counted_between_two_moments() -> None:
    before = Statistics(4, 1, 6, 3, {1: 2, 4: 1}, queue_seconds=0.5, compute_seconds=1.0)
    after = Statistics(8, 1, 14, 5, {1: 2, 4: 3}, queue_seconds=1.0, compute_seconds=2.0)
    counted = counted_between(before, after)
    assert (counted.requests, counted.failures, counted.images, counted.executions) == (4, 0, 8, 2)
    assert counted.batches == {4: 2}
    assert (counted.queue_seconds, counted.compute_seconds) == (pytest.approx(1.5), pytest.approx(3.0))


def test_an_arrival_waits_from_the_moment_when_it_was_due(server: ModelServer) -> None:
    """Ten that are due at once, of which a single connection sends one after the other, and one later."""
    with start_callers(1, server.endpoints.grpc, "tiny") as callers:
        offsets = [0.0] * 10 + [0.5]
        calls = callers.open_loop(offsets, sample_photograph(128, 128))
    dues = [call.due for call in calls]
    assert [due - dues[0] for due in dues] == pytest.approx(offsets)
    assert all(call.seconds > 0 for call in calls)


def test_a_server_that_takes_a_known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 ms an image on a clock of our own, that a machine's load cannot disturb: twenty a second."""
    now = 100.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def stylize(request: transports.Request) -> transports.Array:
        sleep(0.05)
        return request.inputs[IMAGE]

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    client = StyleClient(transport=MockTransport(stylize))
    calls = send_in_turn(sample_photograph(16, 16), 10 * [(16, 16)], 101.0, partial(client.stylize, style="style"))
    assert calls[0].due == 101.0
    assert [call.seconds for call in calls] == pytest.approx([0.05] * 10)
    turn = Turn(calls, Statistics(10, 0, 10, 10, {1: 10}, queue_seconds=0.01, compute_seconds=0.03))
    assert turn.rate == pytest.approx(20.0)
    row = summary([turn])
    assert (row["median"], row["queue"], row["compute"], row["rest"]) == pytest.approx((50.0, 10.0, 30.0, 10.0))
    assert (row["batch"], row["batches"]) == (1.0, {"1": 10})


def test_a_caller_that_fails_says_why_and_goes_on(server: ModelServer) -> None:
    with start_callers(2, server.endpoints.grpc, "tiny") as callers:
        with pytest.raises(InputError, match="pass uint8"):
            callers.closed_loop(2, 4, np.zeros((8, 8), np.uint8))
        assert len(callers.closed_loop(2, 4, sample_photograph(32, 32))) == 4
        pids = callers.pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_the_soak_with_a_real_triton(server: ModelServer, cpu: Device, measured: Callable[..., Document]) -> None:
    effort = soak.SoakEffort(minutes=0.1, callers=2, every_seconds=0.25)
    document = measured(soak.SUITE, Context(cpu, effort), server)
    assert document["errors"] == {}
    assert document["requests"] >= document["shapes"] > 0
    trends = document["trends"]
    assert all(trends[name]["peak"] >= trends[name]["end"] > 10 for name in (soak.TRITON, soak.STUBS, soak.CALLERS))
    assert document["passed"] == (not any(trend["grew"] for trend in trends.values()))
    assert "images of" in report.markdown(json.loads(json.dumps(document)))


def _samples(of: str) -> tuple[np.ndarray, np.ndarray]:
    """Ten minutes, a sample every two seconds, 500 MiB; noise as an allocator makes it, slow and of some MiB."""
    random = np.random.default_rng(0)
    seconds = np.arange(0.0, 600.0, 2.0)
    noise = np.zeros(len(seconds))
    for before, now in pairwise(range(len(seconds))):
        noise[now] = 0.8 * noise[before] + random.normal(0.0, 1.0)
    shapes = {
        "flat": 0.0 * seconds,
        "growing": 0.1 * seconds,
        "growing, then flat": np.minimum(seconds, 240.0),
        "flat, then growing": 0.1 * np.maximum(0.0, seconds - 360.0),
    }
    return seconds, 500.0 + shapes[of] + noise


@pytest.mark.parametrize(
    ("of", "grew"), [("flat", False), ("growing", True), ("growing, then flat", False), ("flat, then growing", True)]
)
def test_memory_that_goes_on_growing_is_told_from_what_stopped(of: str, grew: bool) -> None:
    assert soak.trend(*_samples(of)).grew == grew


def test_the_rise_and_its_error() -> None:
    """0.1 MiB a second for the half of ten minutes; the error covers the truth and is not too large."""
    found = soak.trend(*_samples("growing"))
    assert abs(found.growth - 30.0) < 2.5 * found.error
    assert 0.1 < found.error < 5.0
    flat = soak.trend(range(20), [100.0] * 20)
    assert (flat.growth, flat.error, flat.grew) == (0.0, 0.0, False)


def test_latency_that_drifts_is_seen_in_the_sizes_that_come_again() -> None:
    """Twice as long in the last third; a size that is asked for once and requests that failed say nothing."""

    def calls(last_third: float) -> list[Call]:
        return [
            Call(float(number), number + (last_third if number >= 200 else 1.0), soak.SIZES[number % 3])
            for number in range(300)
        ]

    slow = calls(2.0)
    slow[5] = slow[5]._replace(done=900.0, error="TimedOut: late")
    assert soak.latency_drift(slow) == pytest.approx(2.0)
    assert soak.latency_drift(calls(1.0)) == pytest.approx(1.0)
    assert soak.latency_drift([]) is None


def test_the_memory_of_a_process() -> None:
    """A process of its own: the one of the tests gives memory back when it likes."""
    code = "print(flush=True); input(); held = b'1' * (64 << 20); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        before = soak.resident_mib(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        assert soak.resident_mib(process.pid) - before == pytest.approx(64, abs=8)
        process.communicate(b"\n")
    assert soak.resident_mib(2**30) == 0


def test_the_table_of_perf_analyzer_is_read(tmp_path: Path) -> None:
    """As version 2.51.0 wrote it here."""
    table = tmp_path / "figures.csv"
    table.write_text(
        "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
        "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
        "4,39.6733,11,3774,3079,43,12038,335,2,16823,23096,46592,46892\n"
    )
    assert perf_analyzer.read(table) == perf_analyzer.Figures(39.6733, 16.823)


def test_commands_that_lack_the_model_say_so(tmp_path: Path) -> None:
    for command in ("serving", "soak"):
        result = CliRunner().invoke(app, [command, "--model", "none", "-r", str(tmp_path), "-o", str(tmp_path / "o")])
        assert result.exit_code == 1
        assert "run nst export none.pth" in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []
