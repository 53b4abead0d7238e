"""`--progress-json`: what a command appends, and what reads it."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import typer

from nst_core import events
from nst_core.console import one_line_errors, progress
from nst_core.errors import InputError, WriteError
from nst_core.events import EventLog, EventReader


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_bar_and_the_file_are_fed_by_the_same_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "PROGRESS_SECONDS", 0.0)
    file = tmp_path / "events"
    with one_line_errors("train", command="nst train", progress_json=file) as log:
        with progress("training", 4, share=lambda done: (done / 4) ** 2) as update:
            for done in range(3):
                update(done, "fine", style_loss=float("nan") if done else 1.5)
        with progress("checking", 2, unit="images") as update:
            update(2, "")
        log.end("finished", output=tmp_path / "style.pth")
    started, *steps, checked, finished = logged(file)
    assert (started["event"], started["command"], started["pid"]) == ("started", "nst train", os.getpid())
    assert [(step["task"], step["done"], step["total"], step["unit"]) for step in steps] == [
        ("training", done, 4, "steps") for done in range(3)
    ]
    assert [step["fraction"] for step in steps] == [0.0, 0.0625, 0.25]
    assert steps[0]["seconds_left"] is None and steps[2]["seconds_left"] >= 0
    assert [step["style_loss"] for step in steps] == [1.5, None, None]
    assert (checked["task"], checked["unit"], checked["fraction"]) == ("checking", "images", 1.0)
    assert finished == {"event": "finished", "time": finished["time"], "output": str(tmp_path / "style.pth")}


def test_events_of_a_fast_task_are_few(tmp_path: Path) -> None:
    """The first and the last are there, and so is each task's own."""
    log = EventLog(tmp_path / "events")
    for task in ("a", "b"):
        for done in range(101):
            log.progress(task, done, 100)
    log.close()
    assert [(event["task"], event["done"]) for event in logged(tmp_path / "events")] == [
        ("a", 0),
        ("a", 100),
        ("b", 0),
        ("b", 100),
    ]


@pytest.mark.parametrize(
    ("error", "event", "message"),
    [
        (InputError("width is -1:\n above 0"), "failed", "width is -1: above 0"),
        (ModuleNotFoundError("torch", name="torch"), "failed", "the package 'torch' is not installed; run "),
        (KeyboardInterrupt(), "interrupted", None),
        (typer.Exit(3), "failed", None),
        (typer.Exit(0), "finished", None),
        (ZeroDivisionError("by zero"), "failed", "ZeroDivisionError: by zero"),
    ],
)
def test_the_last_event_says_how_it_ended(
    tmp_path: Path, error: BaseException, event: str, message: str | None
) -> None:
    with (
        pytest.raises((typer.Exit, ZeroDivisionError)),
        one_line_errors("train", command="nst train", progress_json=tmp_path / "events"),
    ):
        raise error
    last = logged(tmp_path / "events")[-1]
    assert last["event"] == event
    assert last.get("message", "").startswith(message or "") and ("message" in last) == (message is not None)


def test_a_file_that_cannot_be_written_is_one_line_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (tmp_path, tmp_path / "none" / "events", Path("/dev/fd/987")):
        with pytest.raises(typer.Exit), one_line_errors("train", command="nst train", progress_json=place):
            raise AssertionError("work has begun")
        error = capsys.readouterr().err
        assert error.startswith(f"error: --progress-json: cannot write {place}: ") and error.count("\n") == 1
    with pytest.raises(WriteError):
        EventLog(tmp_path)


def test_a_fifo_and_an_open_descriptor_work_and_a_reader_that_goes_ends_nothing(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.extend(fifo.read_text().splitlines()))
    reader.start()
    with one_line_errors("train", command="nst train", progress_json=fifo):
        pass
    reader.join(60)
    assert [json.loads(line)["event"] for line in read] == ["started", "finished"]

    out, into = os.pipe()
    with one_line_errors("train", command="nst train", progress_json=Path(f"/dev/fd/{into}")) as log:
        os.close(into)
        assert json.loads(os.read(out, 10_000))["event"] == "started"
        os.close(out)
        log.write("published")
        log.write("published")


def test_events_are_read_as_they_come(tmp_path: Path) -> None:
    file = tmp_path / "events"
    reader = EventReader(file)
    assert reader.read() == []
    file.write_bytes(b'{"event": "started"}\nnot JSON\n[1]\n{"event": "pro')
    assert reader.read() == [{"event": "started"}]
    with file.open("ab") as more:
        more.write(b'gress"}\n')
    assert reader.read() == [{"event": "progress"}] and reader.read() == []
    file.write_bytes(b'{"event": "again"}\n')
    assert reader.read() == [{"event": "again"}]
