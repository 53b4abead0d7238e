"""`nst` by itself, and its completion in a shell."""

import os
import subprocess
from pathlib import Path

import pytest

from nst_core.cli import PANELS, umbrella

from .serving import BIN

COMPLETING = {"_NST_COMPLETE": "complete_bash", "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}


def nst(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "80", "TERMINAL_WIDTH": "80", **environment}
    return subprocess.run([BIN / "nst", *words], capture_output=True, encoding="utf-8", env=variables)


def test_alone_it_shows_the_way_first() -> None:
    shown = nst().stderr
    positions = [shown.index(f"\n  {name} ") for names in PANELS.values() for name in names]
    assert positions == sorted(positions)


def test_every_command_has_a_place() -> None:
    assert set(umbrella().commands) == {name for names in PANELS.values() for name in names}


@pytest.mark.parametrize(
    ("line", "word", "completed"),
    [
        ("nst tr", 1, ["train"]),
        ("nst train --learn", 2, ["--learning-rate"]),
        ("nst export --for t", 3, ["tensorrt"]),
        ("nst export great", 2, ["great-wave-fast"]),
        ("nst serve st", 2, ["stop", "status"]),
    ],
)
def test_bash_completes(line: str, word: int, completed: list[str]) -> None:
    completing = {**COMPLETING, "COMP_WORDS": line, "COMP_CWORD": str(word)}
    assert nst(**completing).stdout.split() == completed


def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    installed = nst(
        "--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    )
    assert not installed.returncode, installed.stderr
    assert "nst" in (tmp_path / ".bashrc").read_text()
