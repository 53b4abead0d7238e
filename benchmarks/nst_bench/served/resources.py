"""Resources of several suites: a model that their own Triton serves, alone or with its checkpoint.

The keywords are options of the suites' commands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nst_bench import options
from nst_bench.served.exported import ExportedModel, export_checkpoint, untrained_checkpoint
from nst_bench.served.server import ModelServer, serve_model
from nst_bench.suite import Context, Document
from nst_server.installation.triton import find_triton
from nst_trainer import checkpoint as checkpoints
from nst_trainer.checkpoint import Checkpoint, parameters


@contextmanager
def served_model(
    context: Context[Any],
    *,
    model: options.Model = options.MODEL,
    repository: options.Repository = options.REPOSITORY,
    width: options.Width = None,
    triton: options.Triton = options.TRITON,
) -> Iterator[tuple[ModelServer]]:
    """Start Triton with a model of the repository, or with an untrained network of `width`."""
    with tempfile.TemporaryDirectory() as scratch:
        if width is not None:
            repository = Path(scratch) / "model_repository"
            untrained = untrained_checkpoint(width)
            model = export_checkpoint(untrained, repository, context.device, say=context.on_progress)
        ExportedModel(repository / model).check_device(context.device)
        installation = find_triton(triton, context.on_progress, device=context.device)
        with serve_model(installation, repository, model) as running:
            yield (running,)


@contextmanager
def served_checkpoint(
    context: Context[Any],
    *,
    checkpoint: options.Checkpoint = options.CHECKPOINT,
    repository: options.Repository = options.REPOSITORY,
    width: options.Width = None,
    triton: options.Triton = options.TRITON,
) -> Iterator[tuple[Checkpoint, ModelServer]]:
    """Load a checkpoint and start Triton with its exported model, or use an untrained network of `width` for both."""
    if width is None:
        ExportedModel(repository / checkpoint.stem).check_source(checkpoint)
    trained = checkpoints.load(checkpoint) if width is None else untrained_checkpoint(width)
    with served_model(context, model=checkpoint.stem, repository=repository, width=width, triton=triton) as (running,):
        yield trained, running


def describe_network(checkpoint: Checkpoint, name: str) -> Document:
    """Describe a model for a document: its name, network, the network's arguments, and number of parameters."""
    network = checkpoint.network
    return {"name": name, "network": network.name, **network.arguments, "parameters": parameters(network)}
