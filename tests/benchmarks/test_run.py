import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nst_bench import results, run
from nst_bench.cli import app
from nst_bench.run import Step, Subject

WORKS = """
import os
import time
from pathlib import Path

from nst_core.errors import InputError

MACHINE = {"processor": "A (R) Chip", "cores": 2, "memory_gib": 4.0, "gpu": None, "system": "S", "versions": {}}
MACHINE["matrix_product_gflops"] = 100.0


def good(subject, *, tick):
    tick("half")
    return {"schema": "nst-bench-cold/1", "date": "2026-01-02 03:04 UTC", "machine": MACHINE, "rows": [{"what": "a",
        "n": 1, "median": 2.0, "p95": 2.0, "p99": 2.0, "spread": 0.0, "unstable": False, "samples": [2.0]}]}

def refuses(subject, *, tick):
    raise InputError("no painting:\\nwhere is it?")

def lacks(subject, *, tick):
    import not_installed_anywhere

def breaks(subject, *, tick):
    raise ValueError("seven")

def dies(subject, *, tick):
    os.kill(os.getpid(), 9)

def waits(subject, *, tick):
    try:
        tick("waiting")
        time.sleep(600)
    finally:
        (subject.repository / "ended").touch()
"""
"""What a plan's steps do, for processes that import it."""


@pytest.fixture
def subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A style with its export, as far as a run looks before it measures; and `works` to import."""
    (tmp_path / "works.py").write_text(WORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "works", raising=False)
    (tmp_path / "models" / "s").mkdir(parents=True)
    (tmp_path / "models" / "s" / "config.pbtxt").touch()
    (tmp_path / "s.pth").touch()
    return Subject(tmp_path / "s.pth", tmp_path / "models", tmp_path / "triton")


def _plan(*names: str) -> tuple[Step, ...]:
    import works  # type: ignore[import-not-found]

    return tuple(Step(name, 10.0, getattr(works, name)) for name in names)


def test_a_suite_that_fails_is_a_missing_cell_and_the_others_go_on(
    subject: Subject, capfd: pytest.CaptureFixture[str]
) -> None:
    plan, kept, seen = _plan("refuses", "lacks", "breaks", "dies", "good"), [], []
    document = run.measure(
        *(plan, subject),
        keep=lambda one: kept.append(sorted(one["suites"])),
        update=lambda behind, note: seen.append((behind, note)),
    )
    reasons = {name: one.get("missing") for name, one in document["suites"].items()}
    assert reasons == {
        "refuses": "no painting: where is it?",
        "lacks": "this needs the package 'not_installed_anywhere': pip install 'nst[bench]'",
        "breaks": "ValueError: seven",
        "dies": "its process ended with status -9",
        "good": None,
    }
    assert "Traceback" in capfd.readouterr().err  # a defect of ours keeps it
    assert [len(names) for names in kept] == [1, 2, 3, 4, 5]
    assert (document["schema"], document["machine"]["processor"]) == (results.RUN, "A (R) Chip")
    assert [behind for behind, _ in seen] == sorted(behind for behind, _ in seen)
    assert 40.0 <= seen[-1][0] < 50.0 and seen[-1][1] == "good: half"


def test_a_file_says_when_and_where() -> None:
    document = {"date": "2026-11-24 18:30 UTC", "machine": {"processor": "Intel(R) X  5", "cores": 2, "gpu": None}}
    assert run.file_name(document) == "2026-11-24-1830-intel-x-5-2-cores.json"


def test_the_command_writes_a_report(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "PLAN", _plan("good", "refuses"))
    monkeypatch.setattr(run, "SHORT", _plan("refuses"))
    command = ["--checkpoint", str(subject.checkpoint), "-r", str(subject.repository), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
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
        "run.PLAN = tuple(run.Step(one.__name__, 10.0, one) for one in (works.good, works.waits, works.good))\n"
        f"cli.app(['--checkpoint', {str(subject.checkpoint)!r}, '-r', {str(subject.repository)!r}, '-o', 'out'])"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("out/*.json")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    (file,) = tmp_path.glob("out/*.json")
    suites = results.read(file)["suites"]
    assert suites["good"]["rows"] and suites["waits"] == {"missing": "stopped before it was done"}
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
    assert kept[-1]["suites"] == {"waits": {"missing": "stopped before it was done"}}


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


def test_short_and_full_are_not_both() -> None:
    result = CliRunner().invoke(app, ["--short", "--full"])
    assert result.exit_code == 1
    assert "give one of them" in result.stderr


def test_every_step_of_the_plans_can_be_sent_and_has_a_title() -> None:
    from multiprocessing.reduction import ForkingPickler

    from nst_bench.report import TITLES

    for plan in (run.SHORT, run.PLAN, run.FULL):
        for step in plan:
            assert ForkingPickler.dumps(step.work) and step.suite in TITLES
        assert len({step.suite for step in plan}) == len(plan)
    assert sum(step.seconds for step in run.PLAN) <= 600
