import time

import pytest

from nst_bench.measure import interleaved, summarize, timed


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
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = interleaved(works, 3)
    assert calls == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}
