"""Every command that the pages show is run, in their order, in a folder that has what they name.

A block of commands is a scene: its lines run one after the other, a server in the foreground until the next one starts
or the block ends. A line that stands on several pages runs once. What cannot run here stands in `NOT_HERE` with the
reason, and `test_pages.py` has each of nst's commands read its words all the same. A line that is new on a page is
run: if it cannot be, it is mended, or written down here.
"""

import ast
import asyncio
import inspect
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nst_client import StyleClient
from nst_core.images import open_image
from nst_server.endpoints import Endpoints

from ..end_to_end.serving import BIN, TRITON
from .pages import (
    Block,
    Mention,
    command,
    lines_of,
    mentioned_commands,
    nst_commands,
    parsed,
    python_blocks,
    shell_blocks,
    simple_commands,
)

NOT_HERE = {
    r"make ": "sets up environments, trains for days or measures for minutes; its targets are looked up",
    r"pip install|\S+/pip install|python -m venv": "fetches packages; the extras are looked up",
    r"docker ": "needs Docker; tests/deploy builds by the same files where there is one",
    r"kubectl |aws ": "needs a cluster and storage; tests/deploy checks the files",
    r"ffmpeg ": "needs FFmpeg's command",
    r"tritonserver ": "needs NVIDIA's container",
    r"ray start|nst batch ": "needs a cluster, or half a minute of Ray: tests/end_to_end/test_batch.py",
    r"torchrun ": "needs machines: tests/trainer/test_machines.py",
    r"nst bench(?! (compare|report|capacity))": "measures for minutes to an hour: tests/benchmarks",
    r"nst webcam(?! --input)": "needs a camera",
    r"nst serve --docker(?!.*--dry-run)": "needs Docker: tests/server/test_docker.py",
    r"nst export .*--(target|for) |nst export verify": "needs TensorRT: tests/export/test_tensorrt.py",
    r"nst export .*(--tiled|--device cpu)": "takes its time once more: tests/export/test_tiles.py, test_commands.py",
    r"nst export .*--load": "takes its time once more: tests/end_to_end/test_publishing.py",
    r"nst export (?!(models/)?starry-night-fast|(gallery|painting)\.pth|inspect |verify )": "takes its time",
    r"nst export starry-night-fast gallery": "takes its time, with another file",
    r"nst stylize .*--style (starry-night|udnie-johnson|[a-z-]+(?<!night)-fast) ": "needs its export",
    r"nst --(install|show)-completion": "changes the reader's shell: tests/end_to_end/test_umbrella.py",
    r"python dev/": "simulates ten million images, or drives a browser",
}
"""Lines that begin like this are not run, and why."""

SUBSTITUTIONS = (
    (r"0\.0\.0\.0", "127.0.0.1"),  # the tests listen for nobody else
    (r"server\.example|(?<=//)(server|painter)(?=:)", "localhost"),
    (r"192\.0\.2\.7", "127.0.0.1"),
    (r"--minutes [\d.]+", "--minutes 0.1"),
    (r"--to gallery(?= )", "--to models/gallery.pth -o gallery.pth"),  # which is small there
    (r"--from gallery(?= )", "--from models/gallery.pth"),
    (r"PRICE", "0.05"),
)
"""What is another in the tests than on a page."""

QUICKLY = {
    r"nst optimize ": "--size 32 --iterations 1",
    r"nst texture (?!\S+\.pth|gravel|strawberries)": "--shape 32x32 --iterations 1",
    r"nst train (?!--add)": "--batch 1 --crop 128 --style-size 64",
    r"nst train (?!--add)(?!.*--from)": "--width 0.125",
    r"nst train (?!--add)(?!.*--minutes)": "--iterations 2",
    r"nst train --add": "--batch 1 --crop 64 --style-size 64",
}
"""Options that come after those of a page, so that it takes a second."""

PYTHON_NOT_HERE = {"frames.contiguous()": "needs an image on a GPU: tests/client/test_cuda_memory.py"}
"""Snippets with this in them are compiled only, and why."""

IN_THIS_PROCESS = r"nst (optimize|texture|train|export) "
"""What computes with PyTorch, which is imported once."""


@dataclass
class Reader:
    """Somebody with a folder who types what the pages say. `endpoints` are those of the server that runs."""

    folder: Path
    endpoints: Endpoints
    done: set[str] = field(default_factory=set)
    serving: subprocess.Popen[bytes] | None = None
    """What runs in the foreground of another terminal."""
    own_server: bool = False
    """Whether the block has servers of its own."""
    below: str = "."
    """Where `cd` went, from the folder on."""

    def typed(self, line: str) -> None:
        """Run a line of a page, or nothing where it ran before or cannot run here."""
        line = umbrella(line)
        of_a_scene = self.own_server and re.match(r"nst serve\b", line)
        if (line in self.done and not of_a_scene) or not_here(line):
            return
        self.done.add(line)
        here = self.here(line)
        if line.startswith("cd "):
            self.below = line.removeprefix("cd ")
        elif re.match(r"nst serve(?! (stop|status|load|unload)\b| .*--(detach|dry-run))|nst web\b", line):
            self.start(here)
        elif re.match(IN_THIS_PROCESS, line):
            more = [options for pattern, options in QUICKLY.items() if re.match(pattern, line)]
            self.call([*simple_commands(here)[0], *" ".join(more).split()])
        else:
            shell = ["bash", "-euo", "pipefail", "-c", here]
            result = subprocess.run(shell, capture_output=True, timeout=300, check=False, **self.terminal())
            assert result.returncode == 0, f"{here}\n{result.stdout.decode()}{result.stderr.decode()}"

    def here(self, line: str) -> str:
        """The line with this machine's ports and the substitutions."""
        for pattern, other in SUBSTITUTIONS:
            line = re.sub(pattern, other, line)
        ports = self.endpoints
        for port, own in ((8000, ports.http_port), (8001, ports.grpc_port), (8002, ports.metrics_port)):
            line = re.sub(rf":{port}\b", f":{own}", line)
        if re.match(r"nst serve (stop|status|load|unload)\b", line):
            return f"{line} --http-port {ports.http_port}"
        if line.startswith("nst serve"):
            more = f"--http-port {ports.http_port} --grpc-port {ports.grpc_port} --metrics-port {ports.metrics_port}"
            return f"{line} {more}" + ("" if "--docker" in line else f" --triton '{TRITON}'")
        return re.sub(r"^nst web\b", "nst web --port 0", line)

    def terminal(self) -> dict[str, Any]:
        """Options of a process: the folder, and an environment with the server's address and without a screen."""
        own = {"PATH": f"{BIN}:{os.environ['PATH']}", "NST_URL": self.endpoints.grpc, "SDL_VIDEODRIVER": "dummy"}
        return {"cwd": self.folder / self.below, "env": {**os.environ, "CUDA_VISIBLE_DEVICES": "", **own}}

    def call(self, words: list[str]) -> None:
        try:
            command(words[0]).main(words[1:], prog_name=words[0])
        except SystemExit as end:
            assert not end.code, words

    def start(self, line: str) -> None:
        """In the foreground, until it is ready."""
        self.stop()
        log = self.folder / "foreground.txt"
        with log.open("wb") as output:
            self.serving = subprocess.Popen(
                ["bash", "-c", f"exec {line}"], stdout=output, stderr=output, **self.terminal()
            )
        deadline = time.monotonic() + 300
        while "ready: " not in log.read_text():
            assert self.serving.poll() is None and time.monotonic() < deadline, f"{line}\n{log.read_text()}"
            time.sleep(0.05)

    def stop(self) -> None:
        """Ctrl-C in the other terminal; what `nst-serve stop` has ended is over already."""
        process, self.serving = self.serving, None
        if process is not None:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) in (0, 130), (self.folder / "foreground.txt").read_text()

    @contextmanager
    def scene(self, text: str) -> Iterator[None]:
        """A block, with ports of its own if it starts servers itself."""
        before = self.endpoints
        self.own_server = "nst serve" in umbrella(text)
        self.endpoints = Endpoints.free() if self.own_server else before
        try:
            yield
            self.stop()
            if "--detach" in text and "serve stop" not in text:
                self.typed("nst serve stop")
        finally:
            self.endpoints, self.own_server, self.below = before, False, "."
            if self.serving is not None:  # a line before failed
                self.serving.kill()
                self.serving = None


def umbrella(text: str) -> str:
    """Commands by the one name that they have under `nst`."""
    return re.sub(r"\bnst-(train|export|serve|bench)\b(?= |$)", r"nst \1", text, flags=re.MULTILINE)


def not_here(line: str) -> str | None:
    """Why a line is not run."""
    return next((reason for pattern, reason in NOT_HERE.items() if re.match(pattern, umbrella(line))), None)


@pytest.fixture(scope="module")
def reader(furnished: Path) -> Iterator[Reader]:
    reader = Reader(furnished, Endpoints.free())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        reader.typed("nst serve --detach")
        yield reader
    reader.done.discard("nst serve stop")
    reader.typed("nst serve stop")


@pytest.mark.parametrize("block", shell_blocks(), ids=str)
def test_the_commands_of_a_block(reader: Reader, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    with reader.scene(block.text):
        for line in lines_of(block):
            reader.typed(line)


def whole(mention: Mention) -> bool:
    """Whether a sentence shows a command to be typed, with its files, and not only what it is called."""
    read = [parsed(words) for words in nst_commands(mention.text)]
    return all(command.arguments and not command.missing for command in read)


@pytest.mark.parametrize("page", sorted({mention.page for mention in mentioned_commands()}))
def test_the_commands_within_sentences(reader: Reader, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader.folder)
    for mention in mentioned_commands():
        if mention.page == page and whole(mention):
            reader.typed(mention.text)


@pytest.mark.parametrize("block", python_blocks(), ids=str)
def test_python(reader: Reader, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the sentences around it call its images and its client."""
    monkeypatch.chdir(reader.folder)
    code = compile(reader.here(block.text), str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if any(part in block.text for part in PYTHON_NOT_HERE):
        return
    content = open_image(Path("photograph.jpg")).pixels
    with StyleClient(reader.endpoints.grpc) as client:
        names: dict[str, Any] = {"content": content, "panorama": content, "token": "sesame"}
        names["batch"] = np.stack([content] * 2)
        names |= {"asyncio": asyncio, "Image": Image, "Path": Path, "StyleClient": StyleClient, "client": client}
        outcome = eval(code, names)
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)


def test_what_is_not_run_stands_on_a_page() -> None:
    lines = [line for block in shell_blocks() for line in lines_of(block)]
    lines += [mention.text for mention in mentioned_commands()]
    for pattern in NOT_HERE:
        assert any(re.match(pattern, umbrella(line)) for line in lines), f"no page has {pattern} any more"
    for part in PYTHON_NOT_HERE:
        assert any(part in block.text for block in python_blocks()), f"no page has {part} any more"
