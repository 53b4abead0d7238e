import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from nst_bench import results
from nst_bench.cli import app
from nst_bench.compare import FASTER, SAME, SLOWER, Comparison, compare, interval
from nst_bench.measure import FEWEST, Precision, summarize
from nst_bench.suite import schema
from nst_core.errors import InputError

MACHINE: dict[str, Any] = {
    **{"processor": "P", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {}},
    "matrix_product_gflops": 100.0,
}


def _samples(seed: int, *, scale: float = 1.0, count: int = 40) -> list[float]:
    """Seconds around 0.1, a spread of some percent and a late one now and then, each a bit like the one before."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=count + 1)
    late = generator.random(count) < 0.05
    return (0.1 * scale * np.exp(0.04 * noise[1:] + 0.03 * noise[:-1] + 0.3 * late)).tolist()


def _document(
    engines: dict[str, list[float]], *, suite: str = "latency", size: int = 256, model: str = "m", **machine: Any
) -> dict[str, Any]:
    rows = [
        {"engine": name, "size": size, "phase": "steady", **asdict(summarize(seconds))}
        for name, seconds in engines.items()
    ]
    return {
        **{"schema": schema(suite), "date": "2026-01-01 00:00 UTC", "machine": {**MACHINE, **machine}},
        **{"model": {"name": model}, "rows": rows},
    }


def _verdicts(comparison: Comparison) -> dict[str, str]:
    return {row.key[1]: row.verdict for row in comparison.rows}


def _engines(seed: int, count: int = 30) -> dict[str, list[float]]:
    return {f"engine {number}": _samples(1000 * seed + number) for number in range(count)}


def test_the_same_distribution_is_not_slower() -> None:
    """Thirty rows: with the tolerance none is called slower; without, one document in twenty may err by chance."""
    erred = []
    for seed in range(10):
        before, after = _document(_engines(seed)), _document(_engines(seed + 50))
        comparison = compare(before, after)
        assert set(_verdicts(comparison).values()) == {SAME}
        assert comparison.exit_code == 0
        assert comparison.verdict == "nothing became slower; 0 of 30 became faster"
        erred.append(set(_verdicts(compare(before, after, tolerance=0.0)).values()) != {SAME})
    assert sum(erred) <= 2


def test_a_fifth_slower_is_found_among_others() -> None:
    after = _engines(60) | {"engine 7": _samples(61, scale=1.2), "engine 9": _samples(62, scale=0.8)}
    comparison = compare(_document(_engines(1)), _document(after))
    found = _verdicts(comparison)
    assert found["engine 7"] == SLOWER and found["engine 9"] == FASTER
    assert sum(judged != SAME for judged in found.values()) == 2
    (slower,) = comparison.slower
    assert slower.low and slower.high and slower.low < 1.2 < slower.high
    assert slower.ratio == pytest.approx(1.2, rel=0.05)
    assert comparison.exit_code == 1
    beginning = "1 of 30 became slower; the most, latency / engine 7 / 256² / steady, takes 1."
    assert comparison.verdict.startswith(beginning)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 200 pairs of samples of one distribution nine in ten intervals of 90 % hold 1, or a few more."""
    held = 0
    for seed in range(200):
        sides = [_samples(number, count=20) for number in (seed, seed + 500)]
        before, after = (Precision.of(side) for side in sides)
        assert before and after
        factor, middle = interval(before, after, 0.9), float(np.median(sides[1]) / np.median(sides[0]))
        held += middle / factor <= 1.0 <= middle * factor
    assert 180 <= held <= 199


def test_quantiles_are_those_of_the_tables() -> None:
    def reach(confidence: float, freedom: float) -> float:
        sides = Precision(1.0, freedom), Precision(0.0, 2.0)
        return math.log(interval(*sides, confidence))

    assert reach(0.95, 10) == pytest.approx(2.228, abs=0.001)
    assert reach(0.99, 5) == pytest.approx(4.032, abs=0.001)
    assert reach(0.95, 1e6) == pytest.approx(1.960, abs=0.001)


def test_a_rate_that_falls_is_slower() -> None:
    def document(rates: list[float]) -> dict[str, Any]:
        row = {"callers": 4, "rate": float(np.median(rates)), "rates": rates, "rate_unstable": False}
        return {**_document({}), "throughput": {"rows": [row]}}

    before = document([10.0, 10.1, 9.9, 10.05, 9.95, 10.0])
    comparison = compare(before, document([7.0, 7.1, 6.9, 7.0, 7.05, 6.95]))
    (row,) = comparison.rows
    assert row.key == ("latency", "throughput", "4 callers", "a second")
    assert (row.verdict, row.ratio) == (SLOWER, pytest.approx(10 / 7, rel=0.01))
    few = compare(before, document([7.0, 7.1, 6.9]))
    assert few.rows[0].verdict == f"fewer than {FEWEST} samples"
    assert few.exit_code == 2


def test_what_only_one_has_is_said() -> None:
    """A suite, a row, and a row that could no longer be measured."""
    first, second = _document({"a": _samples(1), "b": _samples(2), "c": _samples(3)}), _document({"a": _samples(4)})
    second["rows"].append({"engine": "b", "size": 256, "phase": "steady", "missing": "not installed"})
    run = {name: first[name] for name in ("date", "machine")} | {"schema": schema("run")}
    a = run | {"suites": {"latency": first, "cold": _document({}, suite="cold"), "gatys": {"missing": "no memory"}}}
    b = run | {"suites": {"latency": second, "gatys": _document({}, suite="gatys")}}
    remarks = compare(a, b).remarks
    assert "only in A: the suite cold" in remarks
    assert "not measured in A: gatys: no memory" in remarks
    assert "not measured in B: latency / b / 256² / steady: not installed" in remarks
    assert "only in A: latency / c / 256² / steady" in remarks
    assert compare(a, second).exit_code == 0  # a run and one suite's document have that suite in common


def test_nothing_is_said_of_what_cannot_be_compared() -> None:
    before = _document({"a": _samples(1)})
    elsewhere = compare(before, _document({"a": _samples(2)}, cores=64))
    assert elsewhere.exit_code == 2
    assert elsewhere.verdict == "not comparable: different machines: P, 2 cores; P, 64 cores"
    other = compare(before, _document({"a": _samples(2)}, model="other"))
    assert other.exit_code == 2
    assert other.verdict == "not comparable: latency: different models, m and other"
    drifting = compare(before, _document({"a": [0.1 + 0.01 * number for number in range(20)]}))
    assert (drifting.rows[0].verdict, drifting.exit_code) == ("*unstable*", 2)
    old = _document({"a": _samples(2)})
    old["rows"][0]["median_precision"] = None
    assert compare(before, old).rows[0].verdict == "no samples"
    with pytest.raises(InputError, match="no suite in common: A has latency; B has cold"):
        compare(before, _document({"a": _samples(1)}, suite="cold"))


def test_the_command_tells_ci(tmp_path: Path) -> None:
    """0 as fast, 1 slower, 2 not comparable; the last line is JSON; wrong input is one line."""
    files = {"a": _samples(1), "same": _samples(2), "slow": _samples(3, scale=1.2)}
    for name, seconds in files.items():
        results.write(_document({"engine": seconds}), tmp_path / f"{name}.json")
    (tmp_path / "wrong.json").write_text("{}")

    def run(other: str, *options: str) -> Any:
        return CliRunner().invoke(app, ["compare", str(tmp_path / "a.json"), str(tmp_path / other), *options])

    same, slow, slow_but = run("same.json"), run("slow.json"), run("slow.json", "--tolerance", "0.5")
    assert (same.exit_code, slow.exit_code, slow_but.exit_code) == (0, 1, 0), same.output + slow.output
    document = json.loads(slow.stdout.splitlines()[-1])
    assert document["schema"] == "nst-bench-compare/1"
    assert (document["slower"], document["rows"][0]["key"]) == (1, ["latency", "engine", "256²", "steady"])
    for name in ("wrong.json", "none.json"):
        wrong = run(name)
        assert wrong.exit_code == 2
        assert len(wrong.stderr.splitlines()) == 1 and "results file" in wrong.stderr
