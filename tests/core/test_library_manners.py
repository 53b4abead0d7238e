"""As a library nst changes nothing of its host's process, and writes nothing to its terminal.

Settings of Pillow and PyTorch, warnings, logging, random numbers and the environment stay, or come back.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from onnx import TensorProto, helper

import nst_apps
import nst_client
import nst_core
import nst_export
import nst_server
import nst_trainer
from nst_core.devices import Device
from nst_core.images import sample_photographs
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.verification.cpu import open_session
from nst_trainer.training.distributed import connection, team
from nst_trainer.training.initialization import initial_state
from nst_trainer.training.settings import TrainingSettings

LIBRARIES = (nst_core, nst_trainer, nst_server, nst_client, nst_export, nst_apps)
ALLOWED = {"duration", "verbosity"}
"""What a library may take of `nst_core.console`: they write nothing."""

STATE = """
import logging, os, sys, threading, warnings
import numpy, PIL.Image, grpc, tritonclient.grpc, tritonclient.http  # what these change is not ours
from PIL import Image

def state():
    loggers = {name: (logger.level, list(logger.handlers), logger.propagate)
               for name, logger in logging.root.manager.loggerDict.items()
               if name.split('.')[0] in ('PIL', 'grpc', 'asyncio') or name.startswith('nst_')
               if isinstance(logger, logging.Logger)}
    changed = {name: value for name, value in loggers.items() if value != (0, [], True)}
    root = logging.root.level, list(logging.root.handlers), logging.root.disabled
    return Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning, dict(os.environ), root, changed

Image.MAX_IMAGE_PIXELS = 123
before = state()
"""


def run(code: str, *arguments: str) -> None:
    command = [sys.executable, "-c", STATE + code, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


@pytest.mark.parametrize(
    "module", ["nst_core", "nst_core.images", "nst_core.engines.onnx_cuda", "nst_client", "nst_server"]
)
def test_an_import_leaves_the_process_alone(module: str) -> None:
    run(f"import {module}\nassert state() == before, (state(), before)")


@pytest.mark.parametrize("module", ["nst_trainer", "nst_trainer.checkpoint", "nst_export", "nst_export.pipeline"])
def test_an_import_sets_nothing_of_pillow_or_logging(module: str) -> None:
    """PyTorch's own import adds filters of warnings."""
    run(f"import {module}\nassert (state()[0], *state()[3:5]) == (before[0], *before[3:5])")


def test_images_are_read_and_written_beside_a_hosts_own_threads(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from nst_core.images import open_image, save_image
seen, ended = [], threading.Event()

def watch():
    while not ended.is_set():
        seen.append(state() == before)

watcher = threading.Thread(target=watch)
watcher.start()
try:
    for number in range(3):
        save_image(open_image(Path(sys.argv[1])), Path(sys.argv[2]))
finally:
    ended.set()
    watcher.join()
assert seen and all(seen)
assert state() == before
"""
    run(code, str(sample_photographs()[0]), str(tmp_path / "a.png"))


def test_onnx_runtime_is_imported_without_a_trace_in_the_environment() -> None:
    run(
        "from nst_core.packages.onnx_runtime import import_onnxruntime\n"
        "import_onnxruntime()\n"
        "assert state()[3] == before[3]"
    )


def test_a_plot_of_losses_leaves_its_librarys_logger_alone(tmp_path: Path) -> None:
    code = """
from pathlib import Path
from nst_trainer.optimization.trace import write_trace
point = {"seconds": 1.0, "width": 8, "total": 3.0, "style": 1.0, "content": 1.0, "total_variation": 1.0}
write_trace([point], Path(sys.argv[1]))
assert logging.getLogger("matplotlib").level == logging.NOTSET
"""
    run(code, str(tmp_path / "trace.json"))
    assert (tmp_path / "trace.png").exists()


def test_a_training_draws_its_weights_beside_the_hosts_random_numbers() -> None:
    settings = TrainingSettings(width=0.125, seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = (initial_state(settings, 1, torch.device("cpu"), None, None).network for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_settings_of_pytorch_for_a_gpu_end_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def settings() -> tuple[bool, str]:
        return torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()

    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(team, "choose_device", lambda wanted: (torch.device("cuda"), Device("gpu", "a test")))
    before = settings()
    with team.join_team():
        assert settings() == (True, "high")
    assert settings() == before != (True, "high")


def test_the_network_interface_is_in_the_environment_while_processes_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    def connected(backend: str) -> object:
        seen.append(os.environ["GLOO_SOCKET_IFNAME"])
        return None

    seen: list[str] = []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(connection, "_interface_towards", lambda host: "lo")
    monkeypatch.setattr(connection, "_connect", connected)
    connection.connect("gloo")
    assert seen == ["lo"]
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_a_session_of_the_verification_leaves_the_log_of_onnx_runtime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its level is of the whole process, and cannot be asked for to be restored."""
    levels: list[int] = []
    monkeypatch.setattr(import_onnxruntime(), "set_default_logger_severity", levels.append)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert open_session(model.SerializeToString(), "CPUExecutionProvider").get_providers() == ["CPUExecutionProvider"]
    assert levels == []


def test_only_commands_write_to_the_terminal() -> None:
    """Others give their caller a callback, or log."""
    writers = []
    for library in LIBRARIES:
        (folder,) = library.__path__
        for file in Path(folder).rglob("*.py"):
            tree = ast.walk(ast.parse(file.read_text()))
            if not is_of_a_command(file) and any(writes_to_the_terminal(node) for node in tree):
                writers.append(str(file.relative_to(Path(folder).parent)))
    assert writers == []


def is_of_a_command(file: Path) -> bool:
    """Command lines, what they are made of, a program that the server starts, and what `nst stylize` reports."""
    return (
        file.name in ("cli.py", "build_plan.py")
        or file.parent.name == "commands"
        or file.parts[-2:] in [("nst_core", "console.py"), ("nst_core", "options.py"), ("stylize", "report.py")]
    )


def writes_to_the_terminal(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module == "nst_core.console" and not {name.name for name in node.names} <= ALLOWED
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
