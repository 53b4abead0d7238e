import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import results, run
from nst_bench.cli import app
from nst_bench.run import Step, Subject
from nst_core.devices import Device
from nst_core.distribution import install_command
from nst_core.errors import InputError

WORKS = """
import os
import time
from pathlib import Path

from nst_core.errors import InputError

MACHINE = {"processor": "A (R) Chip", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {}}
MACHINE["matrix_product_gflops"] = 100.0


def good(subject, context):
    context.on_progress("half")
    return {"schema": "nst-bench-cold/1", "date": "2026-01-02 03:04 UTC", "machine": MACHINE, "rows": [{"what": "a",
        "n": 1, "median": 2.0, "p95": 2.0, "p99": 2.0, "spread": 0.0, "unstable": False, "samples": [2.0]}]}

def refuses(subject, context):
    raise InputError("no painting:\\nwhere is it?")

def lacks(subject, context):
    import not_installed_anywhere

def breaks(subject, context):
    raise ValueError("seven")

def dies(subject, context):
    os.kill(os.getpid(), 9)

def dies_late(subject, context):
    context.keep(good(subject, context))
    os.kill(os.getpid(), 9)

def waits(subject, context):
    try:
        context.keep(good(subject, context))
        context.on_progress("waiting")
        time.sleep(600)
    finally:
        (subject.repository / "ended").touch()
"""
"""What a plan's steps do, for processes that import it."""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device) -> Subject:
    """A style with its export, as far as a run looks before it measures; and `works` to import."""
    (tmp_path / "works.py").write_text(WORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "works", raising=False)
    (tmp_path / "models" / "s").mkdir(parents=True)
    (tmp_path / "models" / "s" / "config.pbtxt").touch()
    (tmp_path / "s.pth").touch()
    return Subject(tmp_path / "s.pth", tmp_path / "models", tmp_path / "triton", cpu)


def _plan(*names: str) -> tuple[Step, ...]:
    import works  # type: ignore[import-not-found]

    return tuple(Step(name, 10.0, getattr(works, name)) for name in names)


def test_a_suite_that_fails_is_a_missing_cell_and_the_others_go_on(
    subject: Subject, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, kept, seen = _plan("refuses", "lacks", "breaks", "dies", "dies_late", "good"), [], []
    document = run.measure(
        *(plan, subject),
        keep=lambda one: kept.append(sorted(one["suites"])),
        update=lambda behind, note: seen.append((behind, note)),
    )
    reasons = {name: one.get("missing") for name, one in document["suites"].items()}
    assert reasons == {
        "refuses": "no painting: where is it?",
        "lacks": f"this needs the package 'not_installed_anywhere': {install_command('bench')}",
        "breaks": "ValueError: seven",
        "dies": "its process ended with status -9",
        "dies_late": None,
        "good": None,
    }
    late = document["suites"]["dies_late"]
    assert late["stopped"] == "its process ended with status -9" and late["rows"]
    assert "Traceback" in capfd.readouterr().err  # a defect of ours keeps it
    assert [len(names) for names in kept] == [1, 2, 3, 4, 5, 5, 6]
    assert (document["schema"], document["machine"]["processor"]) == (results.RUN, "A (R) Chip")
    assert [behind for behind, _ in seen] == sorted(behind for behind, _ in seen)
    assert 50.0 <= seen[-1][0] < 60.0 and seen[-1][1] == "good: half"


def test_a_file_says_when_and_where() -> None:
    document = {"date": "2026-11-24 18:30 UTC", "machine": {"processor": "Intel(R) X  5", "cores": 2, "gpu": None}}
    assert run.file_name(document) == "2026-11-24-1830-intel-x-5-2-cores.json"


def test_the_command_writes_a_report(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PLAN", _plan("good", "refuses"))
    monkeypatch.setattr(run, "SHORT", _plan("refuses"))
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    command += ["--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "device cpu: asked for with --device cpu" in result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    (file,) = (tmp_path / "out").glob("*-a-chip-2-cores.json")
    assert results.read(file) == document
    assert "not measured: refuses: no painting" in result.stderr
    assert "Not measured: no painting" in (tmp_path / "out" / "report.md").read_text()
    assert "<h2>refuses</h2>" in (tmp_path / "out" / "report.html").read_text()
    nothing = CliRunner().invoke(app, [*command, "--short"])
    assert nothing.exit_code == 1
    assert "nothing was measured; refuses: no painting" in nothing.stderr


def test_a_stopped_run_keeps_what_is_done(subject: Subject, tmp_path: Path) -> None:
    """Ctrl-C at the real command: the suite ends what it started, and the file is whole."""
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import works; from nst_bench import cli, run\n"
        "names = ('good', works.good), ('waits', works.waits), ('later', works.good)\n"
        "run.PLAN = tuple(run.Step(name, 9, work) for name, work in names)\n"
        f"cli.app(['--checkpoint', {str(subject.checkpoint)!r}, '-r', {str(subject.repository)!r}, '-o', 'out', "
        "'--device', 'cpu'])"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if any('"waits"' in path.read_text() for path in tmp_path.glob("out/[!.]*.json")):
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (file,) = tmp_path.glob("out/[!.]*.json")
    suites = results.read(file)["suites"]
    assert suites["good"]["rows"] and suites["later"] == {"missing": "stopped before it was done"}
    assert suites["waits"]["rows"] and suites["waits"]["stopped"] == "stopped before it was done"
    assert "It ended before it was done: stopped" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
    assert out == ""


def test_the_suite_that_is_stopped_ends_what_it_started(subject: Subject) -> None:
    def update(behind: float, note: str) -> None:
        if note.endswith("waiting"):
            raise KeyboardInterrupt

    kept: list[results.Document] = []
    with pytest.raises(KeyboardInterrupt):
        run.measure(_plan("waits"), subject, keep=kept.append, update=update)
    assert (subject.repository / "ended").is_file()
    assert kept[-1]["suites"]["waits"]["stopped"] == "stopped before it was done"


@pytest.mark.parametrize("name", ["s.pth", "models/s/config.pbtxt"])
def test_what_is_not_there_is_said_before_minutes_are_spent(subject: Subject, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    result = CliRunner().invoke(
        app, ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    assert ("no such file (--checkpoint)" if name == "s.pth" else "export it first: nst-export") in result.stderr
    assert not (tmp_path / "out").exists()


def test_photographs_that_are_not_there_are_said_before_minutes_are_spent(subject: Subject, tmp_path: Path) -> None:
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--photos", str(tmp_path / "none")])
    assert result.exit_code == 1
    assert f"{tmp_path / 'none'}: no such folder" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_short_full_and_minutes_are_not_both() -> None:
    for options in (["--short", "--full"], ["--short", "--minutes", "3"], ["--full", "--minutes", "3"]):
        result = CliRunner().invoke(app, options)
        assert result.exit_code == 1
        assert "--short, --full and --minutes exclude each other: give one of them" in result.stderr
    result = CliRunner().invoke(app, ["--minutes", "0"])
    assert result.exit_code == 1 and "--minutes is 0: it must be above 0" in result.stderr


class Clock:
    """Time that passes only while a step runs: each takes `lasts` of what it has, and remembers its share."""

    def __init__(self, **lasts: float) -> None:
        self.now, self.lasts, self.shares = 1000.0, lasts, dict[str, float]()

    def __call__(self) -> float:
        return self.now

    def alone(self, step: Step, subject: Subject, share: float, *_: Any) -> dict[str, Any]:
        self.shares[step.suite] = round(share, 3)
        self.now += share * self.lasts[step.suite]
        return {"schema": f"nst-bench-{step.suite}/1", "machine": {}, "share": share}


def _unused(subject: Subject, context: run.Context) -> dict[str, Any]:
    raise AssertionError("a test has its own way to run a step")


STEPS = (
    *(Step("speedup", 100, _unused, card=40), Step("latency", 100, _unused, card=60)),
    *(Step("energy", 0, _unused, card=40), Step("export", None, _unused, card=30), Step("cold", 50, _unused, card=20)),
)


def _run(subject: Subject, clock: Clock, minutes: float | None) -> dict[str, Any]:
    return run.measure(*(STEPS, subject), keep=lambda document: None, minutes=minutes, clock=clock, alone=clock.alone)[
        "suites"
    ]


def test_without_a_limit_all_steps_have_their_whole_time(subject: Subject) -> None:
    clock = Clock(speedup=500, latency=100, cold=50)
    suites = _run(subject, clock, None)
    assert clock.shares == {"speedup": 1.0, "latency": 1.0, "cold": 1.0}
    assert suites["energy"] == {"missing": "no NVIDIA GPU (for this test)"} and "export" not in suites


def test_in_the_minutes_that_there_are_what_matters_most_comes_first(subject: Subject) -> None:
    """Three minutes for 250 seconds: the second is shortened to what is left, and the last is left out."""
    clock = Clock(speedup=110, latency=100, cold=50)
    suites = _run(subject, clock, 3.0)
    assert clock.shares == {"speedup": 1.0, "latency": 0.7}
    assert suites["cold"] == {"missing": "no time left (--minutes 3)"}
    assert clock.now <= 1000.0 + 180.0


def test_a_step_that_would_have_too_little_is_left_out_and_a_short_one_goes_on(subject: Subject) -> None:
    """Of 2.5 minutes a late first step leaves 30 seconds: too few for a hundred, enough for fifty."""
    clock = Clock(speedup=120, latency=100, cold=50)
    suites = _run(subject, clock, 2.5)
    assert clock.shares == {"speedup": 1.0, "cold": 0.6}
    assert suites["latency"] == {"missing": "no time left (--minutes 2.5)"}


def test_a_card_has_estimates_of_its_own(subject: Subject, card: Device) -> None:
    clock = Clock(speedup=40, latency=60, energy=40, export=30, cold=20)
    suites = _run(replace(subject, device=card), clock, 3.0)
    assert clock.shares == {"speedup": 1.0, "latency": 1.0, "energy": 1.0, "export": 1.0, "cold": 0.5}
    assert "missing" not in suites["energy"]


def test_a_step_that_is_late_is_stopped_and_keeps_its_part(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which ends what it started."""
    monkeypatch.setattr(run, "GRACE", 2.0)
    kept: list[str] = []
    document = run.measure(
        *(_plan("waits"), subject), keep=lambda one: kept.append(one["suites"]["waits"]["stopped"]), minutes=8 / 60
    )
    late = document["suites"]["waits"]
    assert late["stopped"] == "no time left" and late["rows"]
    assert kept == ["stopped before it was done", "no time left"]
    assert (subject.repository / "ended").is_file()


def test_further_checkpoints_come_behind_the_first(subject: Subject, tmp_path: Path, cpu: Device) -> None:
    plan = run.with_others(run.PLAN, [tmp_path / "gallery.pth"])
    names = [step.suite for step in plan]
    assert names[:5] == ["speedup", "latency", "serving", "latency, gallery", "serving, gallery"]
    assert [step.checkpoint for step in plan[2:5]] == [None, tmp_path / "gallery.pth", tmp_path / "gallery.pth"]
    assert run.with_others(run.SHORT, [])[0] is run.SHORT[0]
    given: list[Path] = []

    def alone(step: Step, subject: Subject, *_: Any) -> dict[str, Any]:
        given.append(subject.checkpoint)
        return {"machine": {}}

    run.measure(plan[2:4], subject, keep=lambda document: None, alone=alone)
    assert given == [subject.checkpoint, tmp_path / "gallery.pth"]
    with pytest.raises(InputError, match=r"gallery.pth: no such file \(--also\)"):
        replace(subject, also=(tmp_path / "gallery.pth",)).check()
    (tmp_path / "gallery.pth").touch()
    with pytest.raises(InputError, match="has no model 'gallery'; export it first"):
        replace(subject, also=(tmp_path / "gallery.pth",)).check()


def test_another_device_than_the_models_is_refused_before_minutes_are_spent(subject: Subject, card: Device) -> None:
    config = subject.repository / subject.model / "config.pbtxt"
    config.write_text("instance_group { kind: KIND_GPU }")
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "was exported for the GPU, and this run measures the CPU (asked for with --device cpu)" in said
    assert "nst-export --device cpu exports it again, or measure with --device gpu" in said
    config.write_text("")
    with pytest.raises(InputError, match="exported for the CPU, and this run measures the GPU"):
        replace(subject, device=card).check()


def test_every_step_of_the_plans_can_be_sent_and_has_a_title(cpu: Device, card: Device) -> None:
    from multiprocessing.reduction import ForkingPickler

    from nst_bench.report import TITLES, title

    for plan in (run.SHORT, run.PLAN, run.FULL):
        for step in plan:
            assert ForkingPickler.dumps(step.work) and step.suite in TITLES
        assert len({step.suite for step in plan}) == len(plan)
    assert title("serving, gallery") == "Serving, gallery"
    for device in (cpu, card):
        assert sum(step.estimate(device) or 0.0 for step in run.PLAN) <= 600
