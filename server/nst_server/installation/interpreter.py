"""A Python that Triton's Python backend can embed: the running Python, another in PATH, or one fetched by uv."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nst_server.errors import ServerError

VERSIONS = ("3.13", "3.12", "3.11")
"""Python versions with a Triton stub and wheels of every package of the environment, in order of preference."""

FETCHED_VERSION = "3.12"
"""The version that uv fetches."""

PROBE = """
import json, sys, sysconfig
from importlib.util import find_spec
variable = sysconfig.get_config_var
print(json.dumps({
    "version": sysconfig.get_python_version(),
    "threaded": bool(variable("Py_GIL_DISABLED")),
    "places": [variable("LIBDIR"), sys.base_prefix + "/lib", "/usr/lib", f"/usr/lib/{variable('MULTIARCH')}"],
    "pip": find_spec("ensurepip") is not None and find_spec("venv") is not None,
}))
"""


@dataclass(frozen=True)
class Interpreter:
    """A Python: its program, version (such as `3.12`), shared library, and whether it brings its own pip."""

    program: Path
    version: str
    library: Path
    has_pip: bool

    def create(self, folder: Path) -> list[str]:
        """Create an empty environment in `folder`; return the command of its pip. Raises `ServerError`."""
        pip = [] if self.has_pip else ["--without-pip"]
        _run(
            [str(self.program), "-I", "-m", "venv", "--clear", *pip, str(folder)],
            f"cannot create an environment in {folder}",
        )
        python = str(folder / "bin" / "python")
        return [python, "-I", "-m", "pip"] if self.has_pip else [sys.executable, "-I", "-m", "pip", "--python", python]


def inspect(program: Path) -> Interpreter:
    """Return the Python of `program`; `ServerError` with what Triton's Python backend lacks in it."""
    try:
        result = subprocess.run([str(program), "-I", "-c", PROBE], capture_output=True, text=True)
        found = json.loads(result.stdout)
    except (OSError, ValueError) as error:  # such as pyenv's for an inactive version
        raise ServerError(f"{program} does not run") from error
    return _interpreter(program, **found)


def _interpreter(program: Path, version: str, threaded: bool, places: list[str | None], pip: bool) -> Interpreter:
    if version not in VERSIONS:
        raise ServerError(f"{program} is Python {version}")
    if threaded:
        raise ServerError(f"{program} is a free-threaded Python")
    name = f"libpython{version}.so.1.0"
    libraries = [Path(place) / name for place in places if place and (Path(place) / name).exists()]
    if not libraries:
        raise ServerError(f"{program} has no {name} (apt-get install libpython{version})")
    if not pip and importlib.util.find_spec("pip") is None:
        raise ServerError(f"{program} has no ensurepip (apt-get install python{version}-venv)")
    return Interpreter(program, version, libraries[0], pip)


def choose(folder: Path, on_message: Callable[[str], None]) -> Interpreter:
    """Return the running Python if Triton can embed it, else the first such in PATH, else one that uv fetches.

    Nothing is installed unless uv is needed, which `on_message` announces; `folder` is where uv puts it. Raises
    `ServerError` with the reasons if there is none.
    """
    reasons = []
    for program in _programs():
        try:
            return inspect(program)
        except ServerError as error:
            reasons.append(str(error))
    needed = f"Triton needs Python {', '.join(reversed(VERSIONS[1:]))} or {VERSIONS[0]} with its shared library"
    on_message(f"{needed}, but {reasons[0]}; fetching Python {FETCHED_VERSION} into {folder} with uv")
    try:
        return _fetch(folder)
    except ServerError as error:
        raise ServerError(
            f"{needed}: {'; '.join(reasons)}; {error}. Install one of them, or serve with --docker"
        ) from error


def _programs() -> Iterator[Path]:
    """Yield the running Python, then all those in PATH, since the first of a version may not run."""
    yield Path(sys.executable)
    for version in VERSIONS:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            if folder and (program := shutil.which(f"python{version}", path=folder)):
                yield Path(program)


def _fetch(folder: Path) -> Interpreter:
    """Fetch a Python into `folder` with uv, which comes from PATH or from PyPI."""
    uv = shutil.which("uv")
    if not uv:
        if importlib.util.find_spec("ensurepip") is None:
            raise ServerError("uv is not in PATH")
        _run([sys.executable, "-I", "-m", "venv", "--clear", str(folder / "uv")], "cannot install uv")
        pip = [str(folder / "uv" / "bin" / "python"), "-I", "-m", "pip", "install", "--quiet"]
        _run([*pip, "uv"], "cannot install uv")
        uv = str(folder / "uv" / "bin" / "uv")
    variables = {
        "UV_PYTHON_INSTALL_DIR": str(folder),
        "UV_PYTHON_PREFERENCE": "only-managed",
        "UV_PYTHON_INSTALL_BIN": "0",
    }
    _run([uv, "python", "install", FETCHED_VERSION], f"uv cannot fetch Python {FETCHED_VERSION}", variables)
    programs = sorted(folder.glob(f"cpython-{FETCHED_VERSION}*/bin/python{FETCHED_VERSION}"))
    if not programs:
        raise ServerError(f"uv installed no Python {FETCHED_VERSION} into {folder}")
    return inspect(programs[-1])


def _run(command: list[str], failed: str, variables: dict[str, str] | None = None) -> None:
    """Run a command to its end; `ServerError` that begins with `failed` if it cannot start or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, env=os.environ | (variables or {}))
    except OSError as error:
        raise ServerError(f"{failed} ({error.strerror})") from error
    if result.returncode != 0:
        raise ServerError(f"{failed} ({reason(result.stderr or result.stdout)})")


def reason(output: str) -> str:
    """Return the last error in the output of pip or uv, with its root cause, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["no reason given"]
    errors = [position for position, line in enumerate(lines) if line.lower().startswith("error:")]
    if not errors:
        return lines[-1]
    causes = [line for line in lines[errors[-1] + 1 :] if line.lower().startswith("cause")]
    return ": ".join([lines[errors[-1]], *(cause.partition(": ")[2] for cause in causes[-1:])])
