import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import results, run, suite
from nst_bench.cli import app
from nst_bench.drawing.tables import list_of_rows
from nst_bench.report import title
from nst_bench.run import Run, Step, Subject
from nst_bench.suite import Context, Cost, Document, Effort, Suite
from nst_core.devices import Device
from nst_core.distribution import install_command
from nst_core.errors import InputError

WORKS = """
import os
import time

from nst_bench.suite import Suite
from nst_core.errors import InputError

class OnNoMachine(Suite):
    # A suite whose machine is not measured.

    def run(self, context, **options):
        return self.measure(context, **options)

MACHINE = {"processor": "A (R) Chip", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {}}
MACHINE["matrix_product_gflops"] = 100.0
ROW = {"what": "a", "n": 1, "median": 2.0, "p95": 2.0, "p99": 2.0, "spread": 0.0, "unstable": False, "samples": [2.0]}


def good(context):
    context.on_progress("half")
    return {"schema": "nst-bench-cold/2", "date": "2026-01-02 03:04 UTC", "machine": MACHINE, "rows": [dict(ROW)]}

def refuses(context):
    raise InputError("no style image:\\nwhere is it?")

def lacks(context):
    import not_installed_anywhere

def breaks(context):
    raise ValueError("seven")

def dies(context):
    os.kill(os.getpid(), 9)

def dies_late(context):
    context.keep(good(context))
    os.kill(os.getpid(), 9)

def needs(context, *, style):
    return good(context)

def waits(context, *, repository):
    try:
        context.keep(good(context))
        context.on_progress("waiting")
        time.sleep(600)
    finally:
        (repository / "ended").touch()
"""
"""What a plan's steps do, for processes that import it."""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device) -> Subject:
    """A style with its export, as far as a run looks before it measures; and `works` to import."""
    (tmp_path / "works.py").write_text(WORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "works", raising=False)
    (tmp_path / "models" / "s" / "1").mkdir(parents=True)
    (tmp_path / "models" / "s" / "config.pbtxt").touch()
    (tmp_path / "s.pth").touch()
    return Subject(tmp_path / "s.pth", tmp_path / "models", tmp_path / "triton", cpu)


def _plan(*names: str) -> tuple[Step, ...]:
    import works  # type: ignore[import-not-found]

    return tuple(_step(name, getattr(works, name), 10.0, works.OnNoMachine) for name in names)


def _step(name: str, measure: Callable[..., Document], seconds: float, kind: type[Suite[Any]] = Suite) -> Step:
    suite = kind(name, f"The title of {name}", measure, list_of_rows, Effort())
    return Step(name, suite, Cost(seconds, Effort()))


def test_a_suite_that_fails_is_a_missing_cell_and_the_others_go_on(
    subject: Subject, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, kept, seen = _plan("refuses", "lacks", "breaks", "dies", "dies_late", "needs", "good"), [], []
    document = Run(
        plan,
        subject,
        keep=lambda part: kept.append(sorted(part["suites"])),
        on_progress=lambda behind, note: seen.append((behind, note)),
    ).measure()
    reasons = {name: own.get("missing") for name, own in document["suites"].items()}
    assert reasons == {
        "refuses": "no style image: where is it?",
        "lacks": f"the package 'not_installed_anywhere' is not installed; run {install_command('bench')}",
        "breaks": "ValueError: seven",
        "dies": "its process exited with status -9",
        "dies_late": None,
        "needs": "needs --style",
        "good": None,
    }
    late = document["suites"]["dies_late"]
    assert late["stopped"] == "its process exited with status -9" and late["rows"]
    assert "Traceback" in capfd.readouterr().err  # a defect of ours keeps it
    assert [len(names) for names in kept] == [1, 2, 3, 4, 5, 5, 6, 7]
    assert (document["schema"], document["machine"]["processor"]) == (suite.schema("run"), "A (R) Chip")
    assert [behind for behind, _ in seen] == sorted(behind for behind, _ in seen)
    assert 60.0 <= seen[-1][0] < 70.0 and seen[-1][1] == "good: half"


def test_a_file_says_when_and_where() -> None:
    document = {"date": "2026-11-24 18:30 UTC", "machine": {"processor": "Intel(R) X  5", "cores": 2, "gpu": None}}
    assert run.file_name(document) == "2026-11-24-1830-intel-x-5-2-cores.json"


def test_the_command_writes_a_report(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"default": _plan("good", "refuses"), "short": _plan("refuses")}
    monkeypatch.setattr(run, "plan", lambda length, device, also: steps[length])
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    command += ["--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--samples", str(tmp_path / "samples.json")])
    assert result.exit_code == 0, result.output
    assert "device cpu: chosen with --device cpu" in result.stderr
    document = json.loads(result.stdout.splitlines()[-1])
    (file,) = (tmp_path / "out").glob("*-a-chip-2-cores.json")
    assert results.read(file) == document and "samples" not in result.stdout
    (row,) = json.loads((tmp_path / "samples.json").read_text())["suites"]["good"]["rows"]
    assert row["samples"] == [2.0]
    assert "not measured: refuses: no style image" in result.stderr
    assert "Not measured: no style image" in (tmp_path / "out" / "report.md").read_text()
    assert "<h2>refuses</h2>" in (tmp_path / "out" / "report.html").read_text()
    nothing = CliRunner().invoke(app, [*command, "--short"])
    assert nothing.exit_code == 1
    assert "nothing was measured; refuses: no style image" in nothing.stderr


def test_a_stopped_run_keeps_what_is_done(subject: Subject, tmp_path: Path) -> None:
    """Ctrl-C at the real command: the suite ends what it started, and the file is whole."""
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import works; from nst_bench import cli, run, suite; from nst_bench.drawing import tables\n"
        "names = ('good', works.good), ('waits', works.waits), ('later', works.good)\n"
        "def step(name, work):\n"
        "    own = suite.Suite(name, name, work, tables.list_of_rows, suite.Effort())\n"
        "    return run.Step(name, own, suite.Cost(9, suite.Effort()))\n"
        "run.plan = lambda *_: tuple(step(*pair) for pair in names)\n"
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
    assert "Incomplete: stopped" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "report.html").is_file()
    assert out == ""


def test_the_suite_that_is_stopped_ends_what_it_started(subject: Subject) -> None:
    def update(behind: float, note: str) -> None:
        if note.endswith("waiting"):
            raise KeyboardInterrupt

    kept: list[Document] = []
    with pytest.raises(KeyboardInterrupt):
        Run(_plan("waits"), subject, keep=kept.append, on_progress=update).measure()
    assert (subject.repository / "ended").is_file()
    assert kept[-1]["suites"]["waits"]["stopped"] == "stopped before it was done"


@pytest.mark.parametrize("name", ["s.pth", "models/s/config.pbtxt"])
def test_what_is_not_there_is_said_before_minutes_are_spent(subject: Subject, tmp_path: Path, name: str) -> None:
    (tmp_path / name).unlink()
    result = CliRunner().invoke(
        app, ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    )
    assert result.exit_code == 1
    expected = "no such file; check --checkpoint" if name == "s.pth" else "has no model 's'; run nst export s.pth -r"
    assert expected in " ".join(result.stderr.split())
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
        assert "--short, --full and --minutes exclude each other; give only one of them" in result.stderr
    result = CliRunner().invoke(app, ["--minutes", "0"])
    assert result.exit_code == 1 and "--minutes 0 is not above 0; give a positive number" in result.stderr


class Clock:
    """Time that passes only while a step runs: each takes `lasts` of what it has, and its share is remembered."""

    def __init__(self, **lasts: float) -> None:
        self.now, self.lasts, self.shares = 1000.0, lasts, dict[str, float]()

    def __call__(self) -> float:
        return self.now

    def run(self, step: Step, subject: Subject, share: float, *_: Any) -> dict[str, Any]:
        self.shares[step.name] = round(share, 3)
        self.now += share * self.lasts[step.name]
        return {"schema": suite.schema(step.name), "machine": {}, "share": share}


def _unused(context: Context[Effort]) -> dict[str, Any]:
    raise AssertionError("a test has its own way to run a step")


ON_CPU = {"speedup": 100, "latency": 100, "energy": 0, "cold": 50}
ON_GPU = {"speedup": 40, "latency": 60, "energy": 40, "export": 30, "cold": 20}
"""Seconds of the suites."""


def _run(subject: Subject, clock: Clock, minutes: float | None, estimates: dict[str, int] = ON_CPU) -> dict[str, Any]:
    steps = [_step(name, _unused, seconds) for name, seconds in estimates.items()]
    running = Run(steps, subject, keep=lambda part: None, minutes=minutes, clock=clock, runner=clock.run)
    suites: dict[str, Any] = running.measure()["suites"]
    return suites


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
    suites = _run(replace(subject, device=card), clock, 3.0, ON_GPU)
    assert clock.shares == {"speedup": 1.0, "latency": 1.0, "energy": 1.0, "export": 1.0, "cold": 0.5}
    assert "missing" not in suites["energy"]


def test_a_step_that_is_late_is_stopped_and_keeps_its_part(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of its own, which ends what it started."""
    monkeypatch.setattr(run, "GRACE_SECONDS", 2.0)
    kept: list[str] = []

    def keep(part: Document) -> None:
        kept.append(part["suites"]["waits"]["stopped"])

    document = Run(_plan("waits"), subject, keep=keep, minutes=8 / 60).measure()
    late = document["suites"]["waits"]
    assert late["stopped"] == "no time left" and late["rows"]
    assert kept == ["stopped before it was done", "no time left"]
    assert (subject.repository / "ended").is_file()


def test_a_shipped_style_is_called_by_name(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--checkpoint", "starry-night-fast", "-r", str(tmp_path), "--device", "cpu"])
    assert result.exit_code == 1
    expected = "has no model 'starry-night-fast'; run nst export starry-night-fast -r"
    assert expected in " ".join(result.stderr.split())


def test_further_checkpoints_come_behind_the_first(subject: Subject, tmp_path: Path, cpu: Device) -> None:
    gallery = tmp_path / "gallery.pth"
    steps = run.plan("default", cpu, [gallery, tmp_path / "b.pth"])
    names = [step.name for step in steps]
    further = ["latency, gallery", "serving, gallery", "latency, b", "serving, b"]
    assert names[:7] == ["speedup", "latency", "serving", *further]
    assert [step.checkpoint for step in steps[2:5]] == [None, gallery, gallery]
    assert [step.name for step in run.plan("short", cpu)] == ["speedup"]
    given: list[Path] = []

    def runner(step: Step, subject: Subject, *_: Any) -> dict[str, Any]:
        given.append(subject.checkpoint)
        return {"machine": {}}

    Run(steps[2:4], subject, keep=lambda part: None, runner=runner).measure()
    assert given == [subject.checkpoint, gallery]
    with pytest.raises(InputError, match=r"gallery.pth: no such file"):
        replace(subject, also=(gallery,)).check()
    gallery.touch()
    with pytest.raises(InputError, match="has no model 'gallery'; run nst export gallery -r"):
        replace(subject, also=(gallery,)).check()


def test_another_device_than_the_models_is_refused_before_minutes_are_spent(subject: Subject, card: Device) -> None:
    config = subject.repository / subject.model / "config.pbtxt"
    config.write_text("instance_group { kind: KIND_GPU }")
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "--device", "cpu"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "is exported for the GPU, but this run measures the CPU (chosen with --device cpu)" in message
    assert "export it again with nst export --device cpu, or measure with --device gpu" in message
    config.write_text("")
    with pytest.raises(InputError, match="exported for the CPU, but this run measures the GPU"):
        replace(subject, device=card).check()


def test_every_suite_can_be_sent_and_is_in_its_place(cpu: Device, card: Device) -> None:
    """A suite is a file of its name; runs are what the suites say they are."""
    for name in suite.names():
        found = suite.load(name)
        assert found.name == name and ForkingPickler.dumps(found)
        assert suite.description(name) == inspect.getdoc(found.measure)
    for device in (cpu, card):
        assert sum(step.cost.seconds for step in run.plan("default", device)) <= 600
    assert [step.name for step in run.plan("default", cpu)] == [
        *("speedup", "latency", "serving", "styles", "energy", "cold", "gatys", "soak")
    ]
    full = [step.name for step in run.plan("full", cpu)]
    assert full[8:] == ["methods", "peers", "quality", "training", "export"]
    assert "peers" not in [step.name for step in run.plan("full", card)]
    assert title("serving, gallery") == "Serving, gallery"


def test_a_run_fills_in_what_a_suite_asks_for(subject: Subject) -> None:
    """By the names of its parameters; the defaults of the others are those of its command."""
    assert subject.options_of(suite.load("cold")) == {
        **{"model": "s", "repository": subject.repository, "triton": subject.triton}
    }
    assert subject.options_of(suite.load("gatys")) == {"style": None, "vgg": None}
    with pytest.raises(InputError, match="--style"):
        subject.options_of(suite.load("quality"))


def test_commands_have_the_options_of_their_suites() -> None:
    """Those of `measure`, those of the effort with the limits, and those that all have."""
    result = CliRunner().invoke(app, ["soak", "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    for option in ("--model", "--width", "--minutes", "--callers", "--output", "--samples", "--device", "--quiet"):
        assert option in result.output
    assert "x>=0.5" in result.output and "--full" not in result.output
    assert "--full" in CliRunner().invoke(app, ["latency", "--help"], env={"COLUMNS": "80"}).output
    too_short = CliRunner().invoke(app, ["soak", "--minutes", "0.1"])
    assert too_short.exit_code == 2
