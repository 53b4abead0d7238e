"""What `--help` says on a terminal of 80 columns, of every command."""

import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import Any

import pytest

from .pages import command, shipped_styles


def commands(taken: Any, name: str) -> Iterator[tuple[str, Any]]:
    """A command and those below it, by what is typed."""
    yield name, taken
    for own, below in getattr(taken, "commands", {}).items():
        yield from commands(below, f"{name} {own}")


COMMANDS = dict(commands(command("nst"), "nst"))


def shown(name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    taken, written = COMMANDS[name], io.StringIO()
    with taken.make_context(name, [], resilient_parsing=True) as context, redirect_stdout(written):
        returned = taken.get_help(context)
    return written.getvalue() or str(returned)


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_cut_off_at_80_columns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(name, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    cut = [line for line in text.splitlines() if "\u2026" in line]
    assert not cut, "\n".join(cut)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_verbose_and_quiet(name: str) -> None:
    offered = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {"--verbose", "-v", "--quiet", "-q"} <= offered


def test_the_styles_of_an_example_ship() -> None:
    """An interpolation in the help of `--style`, as `name:0.7,other:0.3`."""
    known = {style for styles in shipped_styles().values() for style in styles}
    helps = {
        name: option.help for name, command in COMMANDS.items() for option in command.params if option.name == "style"
    }
    wrong = {
        (name, style)
        for name, text in helps.items()
        for style in re.findall(r"([\w-]+):0\.\d", text or "")
        if style not in known
    }
    assert not wrong, f"no shipped model has these styles: {sorted(wrong)}"
