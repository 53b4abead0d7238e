"""The arrows between packages run as CONTRIBUTING.md says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "nst_core": "core",
    "nst_trainer": "trainer",
    "nst_client": "client",
    "nst_server": "server",
    "nst_export": "export",
    "nst_bench": "benchmarks",
}
ALLOWED = {
    "nst_core": set(),
    "nst_trainer": {"nst_core"},
    "nst_client": {"nst_core"},
    "nst_server": {"nst_core"},
    "nst_export": {"nst_core", "nst_trainer", "nst_server"},  # the server's for the key that --load needs
    "nst_bench": {"nst_core", "nst_trainer", "nst_client", "nst_server", "nst_export"},
}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", FOLDERS)
def test_a_package_imports_from_the_floors_below(package: str) -> None:
    files = list((ROOT / FOLDERS[package] / package).rglob("*.py"))
    assert files
    for file in files:
        ours = {name for name in imported(file) if name.startswith("nst_")} - {package}
        assert ours <= ALLOWED[package], f"{file.name} imports {ours - ALLOWED[package]}"


@pytest.mark.parametrize("package", ["nst_core", "nst_client", "nst_server"])
def test_the_light_packages_know_nothing_of_torch(package: str) -> None:
    for file in (ROOT / FOLDERS[package] / package).rglob("*.py"):
        assert not imported(file) & {"torch", "onnx", "nst_trainer"}, file


def test_the_engines_import_nothing_of_ours() -> None:
    """Triton's backends are copies of them, where there is neither nst nor PyTorch."""
    files = list((ROOT / "core" / "nst_core" / "engines").glob("*.py"))
    assert files
    for file in files:
        assert not {name for name in imported(file) if name.startswith("nst_") or name in ("torch", "onnx")}, file
