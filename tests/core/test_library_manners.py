"""As a library nst changes nothing of its host's process: settings of Pillow, warnings, logging, the environment."""

import subprocess
import sys
from pathlib import Path

import pytest

from nst_core.images import sample_photographs

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
