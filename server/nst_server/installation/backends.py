"""The backend folder of Triton from PyPI: its own `python`, and our backends, which build on it."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from nst_core import engines
from nst_core.files import atomic_write

OURS = Path(__file__).parents[1] / "backends"


def assemble_backends(folder: Path, triton: Path, version: str) -> Path:
    """Update the backend folder of the environment `folder` for Python `version`, and return it.

    `triton` is the folder with Triton's own files.
    """
    backends = folder.resolve() / "backends"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    for source in filter(Path.is_file, (triton / "backends" / "python").iterdir()):
        _place(source, backends / "python" / source.name)
    _place(stub, backends / "python" / stub.name)
    for model in OURS.glob("*/model.py"):
        backend = backends / model.parent.name
        for source in (*model.parent.glob("*.py"), OURS / "backend_common.py"):
            _place(source, backend / source.name)
        for source in Path(engines.__path__[0]).glob("*.py"):
            _place(source, backend / "engines" / source.name)
    return backends


def _place(source: Path, target: Path) -> None:
    """Copy a file, unless it is already there, by renaming: another Triton may be running the old file."""
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with atomic_write(target) as beside:
        shutil.copyfile(source, beside)
    target.chmod(source.stat().st_mode)
