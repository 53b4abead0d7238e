"""Build TensorRT plans from ONNX graphs, once for each type of GPU and version of TensorRT.

`tensorrt` builds for this machine's GPU, `tensorrt_rtx` also for other GPUs.
"""

from __future__ import annotations

import fcntl
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from .plans import (
    GRAPH,
    PLAN,
    PlanError,
    Profile,
    cache_folder,
    find,
    key_of,
    logger_of,
    mismatch,
    one_line,
    version_of,
)

Progress = Callable[[float, str], None]
"""Takes the fraction done, 0 to 1, and what TensorRT is doing."""

ProgressOf = Callable[[str], AbstractContextManager[Progress]]
"""Enter it with the name of a model while its plan is built; it yields a `Progress`."""


@contextmanager
def unwatched(model: str) -> Iterator[Progress]:
    """Show nothing: a `ProgressOf`."""
    yield lambda done, note: None


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
    """Return the plan for a version's graph on this GPU; build it into the cache if there is none.

    `multiple` is the network's, in pixels; `library` is `tensorrt` or `tensorrt_rtx`; `gpu` is the GPU's name. Two
    processes that want the same plan build it once. Raises `PlanError`.
    """
    key = key_of(version / GRAPH, profile, gpu, compute_capability, version_of(library))
    if found := find(version, key):
        return found
    if refused := mismatch(version, key):
        raise PlanError(refused)
    if not key.model_sha256:
        raise PlanError(f"{version}: it has neither {PLAN} nor {GRAPH}; export the model again")
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
            raise PlanError(
                f"cannot write to {target.parent}: {error.strerror}; set NST_CACHE to a writable folder"
            ) from error
    return target


@contextmanager
def _locked(target: Path, on_progress: Progress) -> Iterator[None]:
    """Keep other processes from building this plan; the lock ends with the process, however that ends."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.with_suffix(".lock").open("w")
    except OSError as error:
        raise PlanError(f"cannot write to {target.parent}: {error.strerror}; set NST_CACHE to a folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            on_progress(0.0, "waiting for another process that builds this plan")
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
    """Build a plan of an ONNX graph in the precision of the graph's element types; return its bytes.

    `library` is the module `tensorrt` or `tensorrt_rtx`. `compute_capabilities` are names of GPUs, such as `SM89`,
    that need not be in this machine, for `tensorrt_rtx`; else the plan is for the current GPU, and `timing_cache`
    keeps TensorRT's measurements for the next build. Raises `PlanError` with TensorRT's message.
    """
    called = f"{library.__name__} {library.__version__}"
    logger = logger_of(library)
    builder = library.Builder(logger)
    network = builder.create_network(_strongly_typed(library))
    parser = library.OnnxParser(network, logger)
    if not parser.parse(graph):
        reasons = "; ".join(str(parser.get_error(index)) for index in range(parser.num_errors))
        raise PlanError(f"{called} cannot read the graph: {one_line(reasons)}")
    config = builder.create_builder_config()
    config.add_optimization_profile(_optimization_profile(builder, network, profile, multiple))
    config.clear_flag(library.BuilderFlag.TF32)  # its mantissa has FP16's precision, not FP32's
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
        raise PlanError(f"{called} could not build a plan: {one_line(logger.take_errors()) or 'it gave no reason'}")
    on_progress(1.0, "built")
    return bytes(plan)


def _strongly_typed(library: Any) -> int:
    """Return the network's flags: TensorRT takes every precision from the graph. TensorRT 11 always does."""
    flag = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _optimization_profile(builder: Any, network: Any, profile: Profile, multiple: int) -> Any:
    shapes = builder.create_optimization_profile()
    for position in range(network.num_inputs):
        tensor = network.get_input(position)
        axes = [size if size >= 0 else tensor.get_dimension_name(at) for at, size in enumerate(tuple(tensor.shape))]
        shapes.set_shape(tensor.name, *profile.shapes(axes, multiple))
    return shapes


def _monitor_of(library: Any, on_progress: Progress) -> Any:
    """Report TensorRT's nested phases as one fraction that never falls.

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
            self._report(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                if phase_name in self._phases:
                    self._phases[phase_name] = (step + 1, self._phases[phase_name][1])
            self._report(phase_name)
            return self.interrupted is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

        def _report(self, phase_name: str) -> None:
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
    """Load TensorRT's measurements of earlier builds for this GPU and version before the block; save them after it."""
    if path is None:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)  # the file is damaged
    yield
    try:
        _write(path, bytes(config.get_timing_cache().serialize()))
    except OSError as error:
        raise PlanError(f"cannot write to {path.parent}: {error.strerror}; set NST_CACHE to a folder") from error


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{secrets.token_hex(8)}")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
