"""TensorRT plans: building them from an ONNX graph, and finding those that are built already.

A plan is for one graph, one kind of GPU and one version of TensorRT (`PlanKey`). It lies beside its graph, as
`model.plan` with the key in `plan.json`, where the exporter has built it, and else in the user's cache. Both libraries
of NVIDIA's build plans, `tensorrt` for the GPU at hand and `tensorrt_rtx` for GPUs that need not be there.

    python plans.py VERSION_FOLDER PROFILE MULTIPLE

makes sure that there is a plan for GPU 0 and prints JSON, a line each: `{"progress": 0.4, "note": "..."}`, and last
`{"plan": "/path", "seconds": 12.3}`, or `{"error": "..."}` with exit status 1.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import pwd
import re
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

Shape = tuple[int, int, int]
"""Batch, height, width."""

Progress = Callable[[float, str], None]
"""Takes the done fraction, 0 to 1, and what TensorRT does now."""

GRAPH, PLAN, RECORD = "model.onnx", "model.plan", "plan.json"
"""Files of a version folder: the graph, its plan, and the plan's key."""


class PlanError(RuntimeError):
    """A plan that cannot be had or used; the message is one line with the reason and what to do."""


@dataclass(frozen=True)
class Profile:
    """The shapes of a plan's pictures: the smallest, the one it is fastest for, and the largest."""

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
            raise ValueError(f"{text!r} is no profile: give min/opt/max, no side smaller than the one before")
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
    sides = {"N": batch, "H": height, "W": width, "h": -(-height // multiple), "w": -(-width // multiple)}
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


def tensorrt() -> Any:
    """The module `tensorrt`; raises `PlanError` that says how to install it."""
    how = "pip install tensorrt-cu13, or tensorrt-cu12 for a driver of CUDA 12"
    try:
        module = importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:  # OSError: without its libraries
        raise PlanError(f"TensorRT cannot be used ({_line(str(error))}): {how}") from error
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
    """The key of the plan that is wanted; a graph that is not there is one of which only the plan is kept."""
    sha256 = _sha256(graph.read_bytes()) if graph.is_file() else ""
    # CUDA adds the slice to the name of a card in slices, NVML does not.
    return PlanKey(gpu.partition(" MIG ")[0], compute_capability, tensorrt, sha256, str(profile))


def find(version: Path, key: PlanKey) -> Path | None:
    """A plan for `key` that is built already: the version's own, else the cache's; None where there is none.

    A `model.plan` without a `plan.json` is taken as it is: somebody put it there, and TensorRT itself refuses one
    that it cannot run. A damaged plan is none.
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
    """Whether a plan is what its record says; one without a record is trusted."""
    if not record.is_file():
        return plan.parent != cache_folder() and plan.stat().st_size > 0
    try:
        wanted = json.loads(record.read_text()).get("plan_sha256")
        return wanted is None or wanted == _sha256(plan.read_bytes())
    except (ValueError, AttributeError, OSError):
        return False


def ensure(
    version: Path,
    profile: Profile,
    multiple: int,
    *,
    library: Any,
    gpu: str,
    compute_capability: str,
    on_progress: Progress = lambda done, note: None,
) -> Path:
    """The plan for a version's graph on this GPU; built into the cache where there is none.

    Two processes that want the same plan build it once. Raises `PlanError`.
    """
    key = key_of(version / GRAPH, profile, gpu, compute_capability, version_of(library))
    if found := find(version, key):
        return found
    if refused := mismatch(version, key):
        raise PlanError(refused)
    if not key.model_sha256:
        raise PlanError(f"{version}: neither {PLAN} nor {GRAPH} is there; export the model again")
    target = cache_folder() / key.name
    with _locked(target, on_progress):
        if found := find(version, key):
            return found
        timings = cache_folder() / f"{target.name.split('-', 1)[1].rsplit('-', 1)[0]}.timings"
        graph = (version / GRAPH).read_bytes()
        plan = build(graph, profile, multiple, library=library, on_progress=on_progress, timing_cache=timings)
        try:
            _write(target.with_suffix(".json"), key.record(plan).encode())
            _write(target, plan)
        except OSError as error:
            raise PlanError(f"cannot keep the plan in {target.parent}: {error.strerror}; set NST_CACHE") from error
    return target


@contextmanager
def _locked(target: Path, on_progress: Progress) -> Iterator[None]:
    """Nobody else builds this plan meanwhile; the lock ends with its process, however that ends."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.with_suffix(".lock").open("w")
    except OSError as error:
        raise PlanError(f"cannot write to {target.parent}: {error.strerror}; set NST_CACHE to a folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            on_progress(0.0, "waiting for another process, which builds this plan")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build(
    graph: bytes,
    profile: Profile,
    multiple: int,
    *,
    library: Any,
    on_progress: Progress = lambda done, note: None,
    timing_cache: Path | None = None,
    compute_capabilities: Sequence[str] = (),
) -> bytes:
    """A plan of an ONNX graph, whose element types are the plan's precision.

    `library` is the module `tensorrt` or `tensorrt_rtx`. `compute_capabilities` are names such as `SM89` of GPUs that
    need not be here, for `tensorrt_rtx`; else the plan is for the current GPU, and `timing_cache` keeps what was
    measured for the next build. Raises `PlanError` with TensorRT's own words.
    """
    called = f"{library.__name__} {library.__version__}"
    logger = logger_of(library)
    builder = library.Builder(logger)
    network = builder.create_network(_strongly_typed(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise PlanError(f"{called} cannot read the graph: {_line(reasons)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_optimization_profile(builder, network, profile, multiple))
    config.clear_flag(library.BuilderFlag.TF32)  # its eleven bits are FP16's precision, not FP32's
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
        for position, name in enumerate(compute_capabilities):
            config.set_compute_capability(getattr(library.ComputeCapability, name), position)
    monitor = _monitor_of(library, on_progress)
    config.progress_monitor = monitor
    with _timings(config, timing_cache):
        plan = builder.build_serialized_network(network, config)
    if monitor.interrupted is not None:
        raise monitor.interrupted
    if plan is None:
        raise PlanError(f"{called} could not build a plan: {_line(logger.said()) or 'it gave no reason'}")
    on_progress(1.0, "built")
    return bytes(plan)


def _strongly_typed(library: Any) -> int:
    """The network's flags: TensorRT takes every precision from the graph. TensorRT 11 does so always."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder: Any, network: Any, profile: Profile, multiple: int) -> Any:
    shapes = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        axes = [size if size >= 0 else tensor.get_dimension_name(at) for at, size in enumerate(tuple(tensor.shape))]
        shapes.set_shape(tensor.name, *profile.shapes(axes, multiple))
    return shapes


def logger_of(library: Any) -> Any:
    """A logger that keeps TensorRT's latest errors, for one line of ours, and prints nothing.

    Its `said()` gives and forgets them.
    """

    class Logger(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            library.ILogger.__init__(self)
            self._errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.Severity.ERROR, library.ILogger.Severity.INTERNAL_ERROR):
                self._errors = [*self._errors[-4:], message]

        def said(self) -> str:
            errors, self._errors = self._errors, []
            return _line("; ".join(errors))

    return Logger()


def _monitor_of(library: Any, on_progress: Progress) -> Any:
    """TensorRT's nested phases as one fraction that never falls.

    An exception in `on_progress`, or Ctrl-C, must not pass through TensorRT's frames: it ends the build and is kept in
    `interrupted`.
    """

    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            library.IProgressMonitor.__init__(self)
            self.interrupted: BaseException | None = None
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[int, int]] = {}  # outermost first: steps done, steps
            self._done = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (0, max(1, num_steps))
            self._tell(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
            self._tell(phase_name)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _tell(self, phase_name: str) -> None:
            with self._lock:
                fraction, share = 0.0, 1.0
                for done, steps in self._phases.values():
                    fraction += share * min(done, steps) / steps
                    share /= steps
                self._done = max(self._done, min(fraction, 1.0))
            try:
                on_progress(self._done, phase_name)
            except BaseException as error:
                self.interrupted = error

    return Monitor()


@contextmanager
def _timings(config: Any, path: Path | None) -> Iterator[None]:
    """TensorRT's measurements of earlier builds with this GPU and version, read before and kept after."""
    if path is None:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # a damaged file is no reason
    yield
    try:
        _write(path, bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise PlanError(f"cannot write to {path.parent}: {error.strerror}; set NST_CACHE to a folder") from error


def _write(path: Path, content: bytes) -> None:
    """A file that appears whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{secrets.token_hex(8)}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _line(text: str) -> str:
    """Text of several lines in one."""
    return " ".join(text.split())


def main(arguments: Sequence[str]) -> int:
    """The command of this module's docstring; the exit status."""
    from . import cuda

    started = time.monotonic()
    if len(arguments) != 3 or not arguments[2].isdigit():
        _print(error="usage: plans.py VERSION_FOLDER PROFILE MULTIPLE")
        return 1
    try:
        gpu, capability = cuda.card(0)
        plan = ensure(
            *(Path(arguments[0]), Profile.parse(arguments[1]), int(arguments[2])),
            library=tensorrt(),
            gpu=gpu,
            compute_capability=capability,
            on_progress=lambda done, note: _print(progress=round(done, 3), note=note),
        )
    except (PlanError, ValueError, OSError, ImportError, cuda.CudaError) as error:
        _print(error=_line(str(error)))
        return 1
    _print(plan=str(plan), seconds=round(time.monotonic() - started, 1))
    return 0


def _print(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    # As a script this folder is first in the path, where `cuda` would be the module here and not NVIDIA's package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(importlib.import_module("engines.plans").main(sys.argv[1:]))
