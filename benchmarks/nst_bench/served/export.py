"""Models that the benchmarks export themselves, as `nst-export` does by default."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from nst_core.devices import Device
from nst_export.export_plan import ExportPlan, runtime_for
from nst_export.pipeline import export_and_publish
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson


def untrained_checkpoint(width: float) -> Checkpoint:
    """Johnson's network of `width` with random weights: it is exactly as fast as after training."""
    torch.manual_seed(0)
    return Checkpoint(frozen(Johnson(width=width)), (f"untrained-{width:g}",))


def export_checkpoint(
    checkpoint: Checkpoint,
    repository: Path,
    device: Device | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> str:
    """Export a checkpoint for `device` (the processor if not given) into `repository`, and return the model's name."""
    name = checkpoint.styles[0]
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.pth"
        save(checkpoint, file)
        export_and_publish(file, name, repository, default_export_plan(device), on_progress=say)
    return name


def default_export_plan(device: Device | None) -> ExportPlan:
    """What `nst-export` makes for the device by default."""
    cores = os.cpu_count() or 1
    return ExportPlan(runtime=runtime_for(device), cores=cores) if device else ExportPlan(cores=cores)
