"""Build a TensorRT plan in a separate process, which has only the package `engines`.

    python build_plan.py VERSION_FOLDER PROFILE MULTIPLE

builds a plan for GPU 0, unless there is one, and prints lines of JSON: `{"progress": 0.4, "note": "..."}`, and last
`{"plan": "/path", "seconds": 12.3}`, or `{"error": "..."}` with exit status 1.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Run the program; return its exit status."""
    building, cuda, plans = (importlib.import_module(f"engines.{name}") for name in ("building", "cuda", "plans"))
    started = time.monotonic()
    if len(arguments) != 3 or not arguments[2].isdigit():
        _print(error="usage: build_plan.py VERSION_FOLDER PROFILE MULTIPLE")
        return 1
    try:
        gpu, capability = cuda.card(0)
        plan = building.ensure(
            Path(arguments[0]),
            plans.Profile.parse(arguments[1]),
            int(arguments[2]),
            library=plans.import_tensorrt(),
            gpu=gpu,
            compute_capability=capability,
            on_progress=lambda done, note: _print(progress=round(done, 3), note=note),
        )
    except (plans.PlanError, ValueError, OSError, ImportError, cuda.CudaError) as error:
        _print(error=plans.one_line(str(error)))
        return 1
    _print(plan=str(plan), seconds=round(time.monotonic() - started, 1))
    return 0


def _print(**line: Any) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    # For a script this folder is first in the path, where `cuda` would be the module here and not NVIDIA's package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(main(sys.argv[1:]))
