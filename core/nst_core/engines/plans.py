"""TensorRT plans: what they are for, and finding those that are built already.

A plan is for one graph, one kind of GPU and one version of TensorRT (`PlanKey`). It lies beside its graph, as
`model.plan` with the key in `plan.json`, where the exporter has built it, and else in the user's cache. `building`
builds plans.
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
"""Files of a version folder: the graph, its plan, and the plan's key."""


class PlanError(RuntimeError):
    """A plan that cannot be built, found or used; the message is a line with the reason and what to do."""


@dataclass(frozen=True)
class Profile:
    """The shapes of a plan's images: the smallest, the shape it is fastest for, and the largest."""

    minimum: Shape
    optimum: Shape
    maximum: Shape

    @classmethod
    def parse(cls, text: str) -> Profile:
        """Of `16x16/512x512/4x1920x1920`, each height x width with or without a batch before it.

        Raises `ValueError` with one line.
        """
        shapes: list[Shape] = []
        for part in text.split("/"):
            sides = [int(side) for side in part.split("x")] if re.fullmatch(r"\d+x\d+(x\d+)?", part) else []
            if not sides or 0 in sides:
                raise ValueError(f"{part!r} is no shape: give min/opt/max, such as 16x16/512x512/4x1920x1920")
            batch, height, width = sides if len(sides) == 3 else (1, *sides)
            shapes.append((batch, height, width))
        if len(shapes) != 3 or any(not a <= b <= c for a, b, c in zip(*shapes, strict=True)):
            raise ValueError(f"{text!r} is no profile: give min/opt/max, no side smaller than the side before it")
        return cls(*shapes)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return "/".join("x".join(map(str, shape if shape[0] > 1 else shape[1:])) for shape in self.all)

    @property
    def all(self) -> tuple[Shape, Shape, Shape]:
        """Minimum, optimum and maximum."""
        return self.minimum, self.optimum, self.maximum

    def shapes(self, axes: Sequence[int | str], multiple: int) -> list[tuple[int, ...]]:
        """The three shapes of a tensor with `axes`.

        An axis is a size or a symbol: `N` (batch), `H` and `W` (pixels), `h` and `w` (pixels over the network's
        `multiple`, rounded up), these four also with a factor before them, such as `2h`.
        """
        return [tuple(_side(axis, shape, multiple) for axis in axes) for shape in self.all]

    def holds(self, shape: Shape) -> Shape:
        """The shape nearest to `shape` that the plan takes."""
        batch, height, width = (min(max(a, b), c) for a, b, c in zip(self.minimum, shape, self.maximum, strict=True))
        return batch, height, width


def _side(axis: int | str, shape: Shape, multiple: int) -> int:
    if isinstance(axis, int):
        return axis
    batch, height, width = shape
    sides = {"N": batch, "H": height, "W": width, "h": ceil(height / multiple), "w": ceil(width / multiple)}
    factor, symbol = axis[:-1] or "1", axis[-1:]
    if symbol not in sides or not factor.isdigit():
        raise PlanError(f"the graph has an axis {axis!r}; the shapes of a profile give N, H, W, h and w")
    return int(factor) * sides[symbol]


@dataclass(frozen=True)
class PlanKey:
    """What a plan is for; a plan is of use only where all of it is the same.

    `gpu` is its name as the driver has it, `compute_capability` such as `9.0`, `tensorrt` as `version_of` gives it,
    `model_sha256` of the graph's file (empty where there is only a plan), `profile` as `str(Profile)`.
    """

    gpu: str
    compute_capability: str
    tensorrt: str
    model_sha256: str
    profile: str

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        gpu = re.sub(r"[^a-z0-9]+", "-", self.gpu.lower().removeprefix("nvidia")).strip("-")
        capability = self.compute_capability.replace(".", "")
        profile = hashlib.sha256(self.profile.encode()).hexdigest()[:8]
        return f"{self.model_sha256[:16]}-{gpu}-sm{capability}-trt{self.tensorrt}-{profile}.plan"

    def shown(self) -> str:
        """GPU and TensorRT, for a message."""
        return f"{self.gpu} (compute capability {self.compute_capability}) and TensorRT {self.tensorrt}"

    def record(self, plan: bytes) -> str:
        """The text of a plan's `plan.json`."""
        return json.dumps({**asdict(self), "plan_sha256": _sha256(plan)}, indent=2) + "\n"


def version_of(library: Any) -> str:
    """A library's version for a key: `10.15.1.29`, or `rtx-1.7.1.116` of `tensorrt_rtx`."""
    return f"rtx-{library.__version__}" if library.__name__ == "tensorrt_rtx" else str(library.__version__)


def import_tensorrt() -> Any:
    """The module `tensorrt`; raises `PlanError` that says how to install it."""
    how = "pip install tensorrt-cu13, or tensorrt-cu12 for a driver of CUDA 12"
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: without its libraries
        raise PlanError(f"TensorRT cannot be used ({one_line(str(error))}): {how}") from error
    if not hasattr(module, "Runtime"):  # a folder of that name in the path, such as that of Triton's backend
        raise PlanError(f"TensorRT cannot be used (it is not installed): {how}")
    return module


def cache_folder() -> Path:
    """Where built plans are kept: `$NST_CACHE/plans`, else `$XDG_CACHE_HOME/nst/plans`, else `~/.cache/nst/plans`.

    It is `plans` in `nst_core.files.cache_folder()`. Raises `PlanError` for a user without a home folder.
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
        raise PlanError(f"user id {os.getuid()} has no home folder: set NST_CACHE to a folder that it can write to")
    return Path(home)


def key_of(graph: Path, profile: Profile, gpu: str, compute_capability: str, tensorrt: str) -> PlanKey:
    """The key of the plan that is wanted; without its graph, the key matches a plan of any graph."""
    sha256 = _sha256(graph.read_bytes()) if graph.is_file() else ""
    # CUDA adds the slice to the name of a card in slices, NVML does not.
    return PlanKey(gpu.partition(" MIG ")[0], compute_capability, tensorrt, sha256, str(profile))


def find(version: Path, key: PlanKey) -> Path | None:
    """A plan for `key` that is built already: the version's own, else the cache's; None where there is none.

    A `model.plan` without a `plan.json` is taken as it is: somebody put it there, and TensorRT itself refuses a
    plan that it cannot run. A damaged plan is none.
    """
    own = version / PLAN
    if own.is_file() and _differences(version, key) == [] and _is_whole(own, version / RECORD):
        return own
    kept = cache_folder() / key.name
    return kept if key.model_sha256 and kept.is_file() and _is_whole(kept, kept.with_suffix(".json")) else None


def mismatch(version: Path, key: PlanKey) -> str | None:
    """Why the version's own `model.plan` is not for `key`, with the way to another, in one line; None if it is."""
    if not (version / PLAN).is_file():
        return None
    different = _differences(version, key)
    if not different:
        return None
    reasons = "; ".join(f"{label} {own}, here {here}" for label, own, here in different)
    if (version / GRAPH).is_file():
        rest = f"or delete {PLAN} and {RECORD}, and nst-serve builds a plan from {GRAPH}"
    else:
        rest = f"its {GRAPH} is not there to build another plan from"
    return f"{version / PLAN} is a plan for something else ({reasons}): export it again on this machine, {rest}"


def _differences(version: Path, key: PlanKey) -> list[tuple[str, str, str]]:
    """Where the version's `plan.json` is not `key`: what, there, here. Nothing if there is no such file."""
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
    """Whether a plan is what its record says; a plan without a record is trusted."""
    if not record.is_file():
        return plan.parent != cache_folder() and plan.stat().st_size > 0
    try:
        wanted = json.loads(record.read_text()).get("plan_sha256")
        return wanted is None or wanted == _sha256(plan.read_bytes())
    except (ValueError, AttributeError, OSError):
        return False


def logger_of(library: Any) -> Any:
    """A logger that keeps TensorRT's latest errors, for one line of ours, and prints nothing.

    Its `take_errors()` returns and forgets them.
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
    """A text of several lines as one line."""
    return " ".join(text.split())
