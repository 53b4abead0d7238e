"""A GPU without a GPU: `gpu/` in front of the path gives `cuda.bindings.runtime` and `tensorrt` on main memory."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GPU = Path(__file__).parent / "gpu"


@dataclass(frozen=True)
class FakeGpu:
    """The two modules; see what they count, and let them fail."""

    runtime: Any
    tensorrt: Any


@contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """Fresh modules for one test; afterwards the real ones are as they were."""
    from nst_core.engines import cuda

    names = ("cuda", "tensorrt")
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}
    for name in kept:
        del sys.modules[name]
    sys.path.insert(0, str(GPU))
    importlib.invalidate_caches()
    cuda.runtime.cache_clear()
    try:
        yield FakeGpu(importlib.import_module("cuda.bindings.runtime"), importlib.import_module("tensorrt"))
    finally:
        sys.path.remove(str(GPU))
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]
        sys.modules.update(kept)
        cuda.runtime.cache_clear()
