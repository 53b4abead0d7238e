"""TensorRT plans: their keys, and finding plans that are already built.

A plan is for one graph, one type of GPU and one version of TensorRT (`PlanKey`). It is beside its graph, as
`model.plan` with the key in `plan.json`, if the exporter built it, and else in the user's cache. `building` builds
plans.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import pwd
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path
from typing import Any

Shape = tuple[int, int, int]
"""Batch, height, width."""

GRAPH, PLAN, RECORD = "model.onnx", "model.plan", "plan.json"
"""Files of a version's folder: the graph, its plan, and the plan's key."""


class PlanError(RuntimeError):
    """A plan cannot be built, found or used; the message is one line with the reason and what to do."""


@dataclass(frozen=True)
class Profile:
    """The shapes of a plan's images: the minimum, the optimum that it is fastest for, and the maximum."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Parse `16x16/512x512/4x1920x1920`: each height x width, optionally with the batch before it.

        Raises `ValueError` with one line.
        """
        shapes: list[Shape] = []
        for part in text.split("/"):
            sides = [int(side) for side in part.split("x")] if re.fullmatch(r"\d+x\d+(x\d+)?", part) else []
            if not sides or 0 in sides:
                raise ValueError(f"{part!r} is not a shape; give min/opt/max, such as 16x16/512x512/4x1920x1920")
            batch, height, width = sides if len(sides) == 3 else (1, *sides)
            shapes.append((batch, height, width))
        if len(shapes) != 3 or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise ValueError(f"{text!r} is not a profile; give min/opt/max, none smaller than the one before")
        return cls(*shapes)

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        return "/".join("x".join(map(str, shape if shape[0] > 1 else shape[1:])) for shape in self.all)

    @property
    def all(self) -> tuple[Shape, Shape, Shape]:
        """Minimum, optimum and maximum."""
        return self.minimum, self.optimum, self.maximum

    def shapes(self, axes: Sequence[int | str], multiple: int) -> list[tuple[int, ...]]:
        """Return the minimum, optimum and maximum shape of a tensor with `axes`.

        An axis is a size or a symbol: `N` (batch), `H` and `W` (pixels), `h` and `w` (pixels divided by the network's
        `multiple`, rounded up); a factor may precede a symbol, such as `2h`.
        """
        return [tuple(_side(axis, shape, multiple) for axis in axes) for shape in self.all]

    def holds(self, shape: Shape) -> Shape:
        """Return the shape nearest to `shape` that the plan accepts."""
        batch, height, width = (min(max(a, b), c) for a, b, c in zip(self.minimum, shape, self.maximum, strict=True))
        return batch, height, width


def _side(axis: int | str, shape: Shape, multiple: int) -> int:
    if isinstance(axis, int):
        return axis
    batch, height, width = shape
    sides = {"N": batch, "H": height, "W": width, "h": ceil(height / multiple), "w": ceil(width / multiple)}
    factor, symbol = axis[:-1] or "1", axis[-1:]
    if symbol not in sides or not factor.isdigit():
        raise PlanError(f"the graph has an axis {axis!r}, but a profile gives only N, H, W, h and w")
    return int(factor) * sides[symbol]


@dataclass(frozen=True)
class PlanKey:
    """What a plan is for; a plan is usable only where all of it matches.

    `gpu` is the name from the driver, `compute_capability` such as `9.0`, `tensorrt` as `version_of` returns it,
    `model_sha256` of the graph's file (empty if there is only a plan), `profile` as `str(Profile)`.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    model_sha256: str
    profile: str

    @property
    def name(self) -> str:
        """The plan's file name in the cache."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower().removeprefix("nvidia")).strip("-")
        capability = self.compute_capability.replace(".", "")
        profile = hashlib.sha256(self.profile.encode()).hexdigest()[:8]
        return f"{self.model_sha256[:16]}-{gpu}-sm{capability}-trt{self.tensorrt}-{profile}.plan"

    def shown(self) -> str:
        """Format GPU and TensorRT for a message."""
        return f"{self.gpu} (compute capability {self.compute_capability}) and TensorRT {self.tensorrt}"

    def record(self, plan: bytes) -> str:
        """Return the text of a plan's `plan.json`."""
        return json.dumps({**asdict(self), "plan_sha256": _sha256(plan)}, indent=2) + "\n"


def version_of(library: Any) -> str:
    """Return a library's version for a key: `10.15.1.29`, or `rtx-1.7.1.116` for `tensorrt_rtx`."""
    return f"rtx-{library.__version__}" if library.__name__ == "tensorrt_rtx" else str(library.__version__)


def import_tensorrt() -> Any:
    """Import the module `tensorrt`; raises `PlanError` that says how to install it."""
    how = "run pip install tensorrt-cu13, or tensorrt-cu12 for a driver with CUDA 12"
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: without its libraries
        raise PlanError(f"cannot import TensorRT ({one_line(str(error))}); {how}") from error
    if not hasattr(module, "Runtime"):  # a folder of that name in the path, such as Triton's backend
        raise PlanError(f"TensorRT is not installed; {how}")
    return module


def cache_folder() -> Path:
    """Return the folder of built plans: `plans` in `nst_core.files.cache_folder()`.

    That is `$NST_CACHE/plans`, else `$XDG_CACHE_HOME/nst/plans`, else `~/.cache/nst/plans`. Raises `PlanError` for a
    user without a home folder.
    """
    if own := os.environ.get("NST_CACHE"):
        return Path(own) / "plans"
    shared = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(shared) if Path(shared).is_absolute() else _home() / ".cache"
    return folder / "nst" / "plans"


def _home() -> Path:
    home = os.environ.get("HOME", "")
    if not Path(home).is_absolute():
        with suppress(KeyError):  # the user has no entry in the system's list
            home = pwd.getpwuid(os.getuid()).pw_dir
    if not Path(home).is_absolute():
        raise PlanError(f"user id {os.getuid()} has no home folder; set NST_CACHE to a writable folder")
    return Path(home)


def key_of(graph: Path, profile: Profile, gpu: str, compute_capability: str, tensorrt: str) -> PlanKey:
    """Return the key of the plan that is wanted; without its graph, the key matches a plan of any graph."""
    sha256 = _sha256(graph.read_bytes()) if graph.is_file() else ""
    # CUDA adds the MIG slice to a GPU's name, NVML does not.
    return PlanKey(gpu.partition(" MIG ")[0], compute_capability, tensorrt, sha256, str(profile))


def find(version: Path, key: PlanKey) -> Path | None:
    """Return a plan for `key` that is already built: the version's own, else the cache's; None if there is none.

    A `model.plan` without a `plan.json` is used as it is: the user put it there, and TensorRT itself refuses a plan
    that it cannot run. A damaged plan is ignored.
    """
    own = version / PLAN
    if own.is_file() and _differences(version, key) == [] and _is_whole(own, version / RECORD):
        return own
    kept = cache_folder() / key.name
    return kept if key.model_sha256 and kept.is_file() and _is_whole(kept, kept.with_suffix(".json")) else None


def mismatch(version: Path, key: PlanKey) -> str | None:
    """Explain in one line why the version's own `model.plan` does not match `key`, and what to do; None if it does."""
    if not (version / PLAN).is_file():
        return None
    different = _differences(version, key)
    if not different:
        return None
    reasons = "; ".join(f"{label} {own}, but here {here}" for label, own, here in different)
    if (version / GRAPH).is_file():
        rest = f"or delete {PLAN} and {RECORD}, and nst serve builds a plan from {GRAPH}"
    else:
        rest = f"since there is no {GRAPH} to build another plan from"
    return f"{version / PLAN} does not fit this machine ({reasons}); export the model again here, {rest}"


def _differences(version: Path, key: PlanKey) -> list[tuple[str, str, str]]:
    """List where the version's `plan.json` differs from `key`: what, there, here. Empty if there is no such file."""
    if not (version / RECORD).is_file():
        return []
    try:
        kept = json.loads((version / RECORD).read_text())
        values = {field.name: str(kept[field.name]) for field in fields(PlanKey)}
    except (ValueError, KeyError, TypeError) as error:
        return [(RECORD, f"is damaged ({error!r})", key.shown())]
    labels = {"gpu": "GPU", "compute_capability": "compute capability", "tensorrt": "TensorRT", "profile": "shapes"}
    wanted = asdict(key)
    if not key.model_sha256:
        values["model_sha256"] = ""
    return [
        (labels.get(name, f"SHA-256 of {GRAPH}"), value, wanted[name])
        for name, value in values.items()
        if value != wanted[name]
    ]


def _is_whole(plan: Path, record: Path) -> bool:
    """Return whether a plan matches the checksum in its record; a plan without a record is trusted."""
    if not record.is_file():
        return plan.parent != cache_folder() and plan.stat().st_size > 0
    try:
        wanted = json.loads(record.read_text()).get("plan_sha256")
        return wanted is None or wanted == _sha256(plan.read_bytes())
    except (ValueError, AttributeError, OSError):
        return False


def logger_of(library: Any) -> Any:
    """Return a logger that prints nothing and keeps TensorRT's latest errors.

    Its `take_errors()` returns them in one line and forgets them.
    """

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self._errors = [*self._errors[-4:], message]

        def take_errors(self) -> str:
            errors, self._errors = self._errors, []
            return one_line("; ".join(errors))

    return Logger()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def one_line(text: str) -> str:
    """Join the lines of a text."""
    return " ".join(text.split())
