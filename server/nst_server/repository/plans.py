"""Build TensorRT plans before a server's first start, for this GPU, and keep them in the user's cache.

Building needs TensorRT, which is in the server's environment, so a process of that environment does it
(`nst_core.engines`, copied there with the backends).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from nst_core.devices import Device, Gpu
from nst_core.engines import plans
from nst_core.engines.building import Progress, ProgressOf, unwatched
from nst_server.errors import ServerError
from nst_server.installation.environment import python, tensorrt_version
from nst_server.installation.triton import Installation
from nst_server.repository.links import linked
from nst_server.repository.models import EngineFile, tensorrt_engines
from nst_server.triton_command import START_SCRIPT

logger = logging.getLogger(__name__)


def prepare(
    installation: Installation,
    repository: Path,
    device: Device,
    on_message: Callable[[str], None],
    progress_of: ProgressOf = unwatched,
) -> None:
    """Build the plans that the newest versions of a repository's TensorRT models lack, one after another.

    `on_message` receives where each plan is kept, or why it cannot be built: Triton serves the other models.
    `progress_of` shows the progress of each. Nothing happens on a CPU, or for a Triton from PATH, which has its own
    backends.
    """
    if installation.folder is None or device.gpu is None:
        return
    for engine in tensorrt_engines(repository):
        if not engine.has_graph or _is_built(engine, device.gpu, installation.folder):
            continue
        try:
            plan, seconds = _build(engine, installation, installation.folder, progress_of)
        except ServerError as error:
            on_message(str(error))
        else:
            on_message(f"the TensorRT plan of {engine.model} is in {plan.parent} ({seconds:.0f} s)")


def missing(repository: Path) -> list[str]:
    """Return a line for each TensorRT model without a plan in its version, which NVIDIA's own backend cannot serve."""
    return [
        f"{engine.version} has no {plans.PLAN}, which NVIDIA's tensorrt backend needs; export it again with "
        "nst export --device gpu on a machine with this GPU"
        for engine in tensorrt_engines(repository)
        if not engine.has_plan
    ]


def _is_built(engine: EngineFile, gpu: Gpu, folder: Path) -> bool:
    """Return whether there is a plan, without starting TensorRT, which takes seconds."""
    version = tensorrt_version(folder)
    if version is None:
        return False
    try:
        profile = plans.Profile.parse(engine.profile)
        key = plans.key_of(engine.version / plans.GRAPH, profile, gpu.name, gpu.compute_capability, version)
        plan = plans.find(engine.version, key)
        if plan:
            logger.info("the TensorRT plan of %s is there already: %s", engine.model, plan)
        return plan is not None
    except (ValueError, OSError):
        return False  # the builder says what is wrong


def _build(engine: EngineFile, installation: Installation, folder: Path, progress_of: ProgressOf) -> tuple[Path, float]:
    """Build a plan; return its file and the seconds that it took, or raise `ServerError` with the reason."""
    script = folder / "backends" / "tensorrt" / "engines" / "build_plan.py"
    command = [str(python(folder)), str(script), str(engine.version), engine.profile, str(engine.multiple)]
    with (
        tempfile.TemporaryFile("w+") as errors,
        linked(engine.version.parents[1], folder) as links,
        subprocess.Popen(
            [sys.executable, "-c", START_SCRIPT, *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env={**os.environ, **links.variables(installation.environment)},
            start_new_session=True,  # Ctrl-C reaches only us, and we end it
        ) as process,
    ):
        try:
            with progress_of(engine.model) as on_progress:
                answer = _followed(process, on_progress)
        except BaseException:
            process.kill()
            raise
        status = process.wait()
        errors.seek(0)
        last = (errors.read().strip().splitlines() or [f"exit status {status}"])[-1]
    if "plan" in answer:
        return Path(str(answer["plan"])), float(str(answer.get("seconds", 0)))
    raise ServerError(f"cannot build a TensorRT plan for {engine.model}: {answer.get('error', last)}")


def _followed(process: subprocess.Popen[str], on_progress: Progress) -> dict[str, object]:
    """Forward the builder's progress until it ends; return its last line, with `plan` or `error`."""
    assert process.stdout is not None
    answer: dict[str, object] = {}
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:
            continue  # TensorRT's own output
        if isinstance(message, dict) and "progress" in message:
            on_progress(float(message["progress"]), str(message.get("note", "")))
        elif isinstance(message, dict):
            answer = message
    return answer
