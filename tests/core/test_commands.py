import logging
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
from typer.testing import CliRunner

from nst_core.console import PACKAGES, duration, one_line_errors, progress, say, show
from nst_core.distribution import install_command
from nst_core.errors import InputError
from nst_core.options import CommandLine, option, options_of

BIN = Path(sys.executable).parent


def test_the_umbrella_finds_every_command() -> None:
    result = subprocess.run([BIN / "nst", "--help"], capture_output=True, text=True, check=True)
    for command in ("train", "export", "serve", "stylize", "styles", "video", "webcam", "web", "bench"):
        assert f"\n  {command} " in result.stdout


def test_no_command_has_a_name_that_is_not_ours() -> None:
    """A program called `optimize` in PATH would hide somebody else's."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert all(name == "nst" or name.startswith("nst-") for name in project["scripts"])
    assert {"optimize", "texture"} <= set(project["entry-points"]["nst.commands"])


def test_the_umbrella_says_its_version() -> None:
    result = subprocess.run([BIN / "nst", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == "nst 0.1.0\n"


@pytest.mark.parametrize("command", ["nst-train", "nst-export", "nst-serve", "nst-bench"])
def test_commands_have_their_own_names_and_start_without_torch(command: str) -> None:
    """`--help` must not wait for torch."""
    code = (
        f"import sys; sys.argv = [{command!r}, '--help']\n"
        "from importlib.metadata import entry_points\n"
        f"app = entry_points(group='console_scripts', name={command!r})[{command!r}].load()\n"
        "try: app()\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules and 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_client_needs_nothing_of_torch() -> None:
    code = "import sys, nst_client, nst_server.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as end, one_line_errors("train"):
        raise InputError("width is -1:\n it must be above 0")
    assert end.value.exit_code == 1
    assert capsys.readouterr().err == "error: width is -1: it must be above 0\n"


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), one_line_errors("train"):
        import not_installed_anywhere  # type: ignore[import-not-found]  # noqa: F401
    assert install_command("train") in " ".join(capsys.readouterr().err.split())


def test_a_missing_module_of_ours_is_a_defect_and_keeps_its_traceback() -> None:
    with pytest.raises(ModuleNotFoundError), one_line_errors("train"):
        import nst_nothing  # type: ignore[import-not-found]  # noqa: F401


def test_ctrl_c_ends_with_130() -> None:
    with pytest.raises(typer.Exit) as end, one_line_errors("train"):
        raise KeyboardInterrupt
    assert end.value.exit_code == 130


def test_progress_in_a_log_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 3, every=0.0) as update:
        for done in range(1, 4):
            update(done, "fine")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[-1] == "working 3/3  0:00 left  fine"


def test_duration() -> None:
    assert [duration(seconds) for seconds in (0, 75.2, 3700)] == ["0:00", "1:15", "1:01:40"]


@dataclass(frozen=True)
class Brush:
    strokes: int = option(3, "How many.")
    wet: bool = option(False, "Straight from the tube.")

    def __post_init__(self) -> None:
        if self.strokes < 0:
            raise InputError(f"strokes is {self.strokes}: it must be above 0")


def test_options_are_those_of_the_settings() -> None:
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @options_of(Brush)
    def command(settings: Brush, content: Path) -> None:
        seen.append((settings, content))

    run = CliRunner().invoke
    assert "How many." in run(app, ["--help"]).output
    assert run(app, ["a.png", "--strokes", "7", "--wet"]).exit_code == 0
    assert run(app, ["a.png"]).exit_code == 0
    assert seen == [(Brush(7, True), Path("a.png")), (Brush(), Path("a.png"))]
    assert run(app, ["a.png", "--strokes", "-1"]).stderr == "error: strokes is -1: it must be above 0\n"


def test_options_that_were_not_given_are_left_to_the_preset() -> None:
    seen: list[object] = []
    app = typer.Typer()

    @app.command()
    @options_of(Brush, unset=True)
    def command(settings: dict[str, object]) -> None:
        seen.append(settings)

    CliRunner().invoke(app, ["--strokes", "0"])
    CliRunner().invoke(app, [])
    assert seen == [{"strokes": 0}, {}]


@pytest.mark.parametrize(
    "command",
    [
        ["nst-export", 300 * "x" + ".pth"],
        ["nst", "video", 300 * "x" + ".mp4", "-s", "starry", "-o", "o.mp4"],
        ["nst", "optimize", 300 * "x" + ".jpg", 300 * "y" + ".jpg", "-o", "o.png"],
    ],
    ids=lambda command: command[1] if command[0] == "nst" else command[0],
)
def test_a_name_that_no_file_can_have_is_one_line(command: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).parent / command[0]), *command[1:]], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")


@pytest.fixture
def noisy() -> CommandLine:
    """A program with a subcommand; both say, log and show something."""
    app = CommandLine()

    def speak(name: str) -> None:
        log = logging.getLogger("nst_client.transports")
        say(f"message of {name}")
        with progress("working", 1) as update:
            update(1, "")
        log.debug("details of %s", name)
        log.info("information of %s", name)
        log.warning("warning [of] %s", name)
        log.error("error of %s", name)
        show(f"result of {name}")

    @app.callback(invoke_without_command=True)
    def group(context: typer.Context) -> None:
        if not context.invoked_subcommand:
            speak("group")

    @app.command()
    def below() -> None:
        speak("below")

    return app


def heard(app: CommandLine, *arguments: str) -> list[str]:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.stderr.splitlines()


ERRORS = ["error: error of below", "result of below"]
MESSAGES = ["message of below", "working 1/1  ? left"]
WARNING = "warning: warning [of] below"


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ([], [*MESSAGES, WARNING, *ERRORS]),
        (["-v"], [*MESSAGES, "info: information of below", WARNING, *ERRORS]),
        (
            ["-vv"],
            [
                *MESSAGES,
                "debug: nst_client.transports: details of below",
                "info: information of below",
                WARNING,
                *ERRORS,
            ],
        ),
        (["--quiet"], ERRORS),
    ],
)
def test_every_command_is_as_verbose_as_asked(
    noisy: CommandLine, options: list[str], lines: list[str], place: str
) -> None:
    assert heard(noisy, *([*options, "below"] if place == "before" else ["below", *options])) == lines


def test_a_group_without_a_command_is_quiet_too(noisy: CommandLine) -> None:
    assert heard(noisy, "-q") == ["error: error of group", "result of group"]


def test_verbosity_ends_with_the_command(noisy: CommandLine, capsys: pytest.CaptureFixture[str]) -> None:
    heard(noisy, "-vv", "below", "-q")
    for name in PACKAGES:
        assert logging.getLogger(name).level == logging.NOTSET and not logging.getLogger(name).handlers
    say("heard")
    assert capsys.readouterr().err == "heard\n"


def test_verbose_and_quiet_exclude_each_other(noisy: CommandLine) -> None:
    result = CliRunner().invoke(noisy, ["below", "-v", "-q"])
    assert result.exit_code == 2 and "--verbose or --quiet" in result.stderr


def test_a_traceback_in_the_log_is_whole(noisy: CommandLine) -> None:
    @noisy.command()
    def broken() -> None:
        try:
            raise RuntimeError("[deep] inside")
        except RuntimeError:
            logging.getLogger("nst_client").exception("it has failed")

    lines = heard(noisy, "broken")
    assert lines[0] == "error: it has failed" and lines[-1] == "RuntimeError: [deep] inside"


def test_every_package_with_commands_has_a_log() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    folders = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {Path(folder).name for folder in folders} == set(PACKAGES)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--share", "2"], "'2'"),
        (["--share=2"], "'2'"),
        (["--side", "wide"], "'wide'"),
        (["--kind", "fsat"], "'fsat' is not one of 'fast', 'slow'; did you mean 'fast'?"),
    ],
)
def test_a_value_that_is_refused_is_shown(words: list[str], shown: str) -> None:
    app = CommandLine()

    @app.command()
    def paint(
        share: Annotated[float, typer.Option(max=1)] = 1.0,
        side: int = 1,
        kind: Literal["fast", "slow"] = "fast",
    ) -> None:
        raise AssertionError("not reached")

    refused = CliRunner().invoke(app, words)
    assert refused.exit_code == 2
    assert f"Invalid value for '{words[0].partition('=')[0]}'" in refused.stderr and shown in refused.stderr
