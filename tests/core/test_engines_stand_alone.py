"""Triton's backends are copies of `nst_core.engines`, in an environment that has neither nst nor PyTorch."""

import ast
from pathlib import Path

import nst_core.engines

FILES = sorted(Path(nst_core.engines.__path__[0]).rglob("*.py"))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_the_engines_import_nothing_of_ours() -> None:
    assert FILES
    for file in FILES:
        assert not {name for name in imported(file) if name.startswith("nst_") or name in ("torch", "onnx")}, file
