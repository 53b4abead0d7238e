import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_bench import report
from nst_bench.cli import app
from nst_bench.measure import interleaved, summarize, timed
from nst_core.errors import InputError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "benchmark" / "results.json"


def test_percentiles_of_a_known_sample() -> None:
    summary = summarize([number / 1000 for number in range(1, 101)])
    assert (summary.n, summary.minimum, summary.maximum) == (100, pytest.approx(1), pytest.approx(100))
    assert summary.median == pytest.approx(50.5)
    assert summary.p95 == pytest.approx(95.05)
    assert summary.p99 == pytest.approx(99.01)
    assert summary.spread == pytest.approx((75.25 - 25.75) / 50.5)
    assert summary.samples == tuple(range(1, 101))


def test_a_drift_is_unstable_and_a_wobble_is_not() -> None:
    assert summarize([0.1 + 0.01 * i for i in range(10)]).unstable
    assert not summarize([0.1, 0.101] * 5).unstable
    assert not summarize([0.5]).unstable


def test_a_known_time_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock of our own, that a machine's load cannot disturb."""
    now = 100.0

    def work() -> None:
        nonlocal now
        now += 0.25

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    assert timed(work) == 0.25
    assert interleaved({"a": work, "b": lambda: None}, 2, rest=0.5) == {"a": [0.25, 0.25], "b": [0.0, 0.0]}


def test_works_take_turns() -> None:
    calls: list[str] = []
    ticks: list[int] = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(works, 3, tick=lambda: ticks.append(1))
    assert calls == ["a", "b"] * 3
    assert len(ticks) == 6
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("README.md", "results.json"),
        ("docs/optimization.md", "gatys.json"),
        ("docs/training.md", "quality.json"),
        ("docs/training.md", "training.json"),
        ("docs/export.md", "export.json"),
        ("docs/benchmark.md", "serving.json"),
    ],
)
def test_the_pages_tables_are_those_of_the_committed_results(page: str, name: str) -> None:
    document = report.read(RESULTS.with_name(name))
    begin, end = report.markers(document)
    between = (ROOT / page).read_text().split(begin)[1].split(end)[0]
    assert between.strip() == report.markdown(document).strip(), "run: make readme"


def test_ratios_are_those_of_the_figures() -> None:
    document = report.read(RESULTS)
    median = {(one["engine"], one["size"]): one["median"] for one in document["figures"] if one["phase"] == "steady"}
    assert len(document["speedup"]) == 6
    for one in document["speedup"]:
        gatys = median["Gatys, one iteration", one["size"]] * one["iterations"]
        assert one["ratio"] == pytest.approx(gatys / median["Triton, gRPC", one["size"]])


def test_a_report_is_drawn_again_from_its_json(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(RESULTS), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latency.png", "report.md", "results.json"]
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(RESULTS.read_text())
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")


def test_other_files_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"schema": "nst-bench/99"}')
    (tmp_path / "b.json").write_text("nothing")
    for name in ("a.json", "b.json", "none.json"):
        with pytest.raises(InputError, match="no results of nst-bench"):
            report.read(tmp_path / name)


def test_a_readme_without_markers_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# nothing to fill in\n")
    with pytest.raises(InputError, match="lacks the lines"):
        report.inject(report.read(RESULTS), tmp_path / "README.md")


def test_measuring_what_was_not_exported(tmp_path: Path) -> None:
    models = ROOT / "models" / "starry-night.pth"
    result = CliRunner().invoke(app, ["--checkpoint", str(models), "-r", str(tmp_path), "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "export it first" in result.stderr
