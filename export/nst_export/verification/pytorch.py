"""Compare ONNX files with the model in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import torch
from torch import nn

from nst_core.images import Pixels
from nst_export.errors import ExportError
from nst_export.graph.conversion import input_specs, output_spec
from nst_export.modules import Exportable
from nst_export.verification.agreement import Agreement, Engine, Feeds, Tolerance, require_agreement
from nst_export.verification.examples import example_feeds, shapes_for


def verify(model: Exportable, engines: Iterable[Engine], tolerance: Tolerance) -> list[Agreement]:
    """Compare engines with `model` in PyTorch, at all shapes of `shapes_for`; raises as `require_agreement` does.

    It also raises `ExportError`, before any comparison, if the checkpoint's own values are not finite.
    """
    feeds = example_feeds(model.inputs, shapes_for(model))
    return require_agreement(feeds, lambda feed: run_pytorch(model, feed), engines, tolerance)


def run_pytorch(model: Exportable, feeds: Feeds) -> Pixels:
    """Run the module itself; raises `ExportError` if its values are not finite."""

    def check_finite(module: nn.Module, inputs: Any, values: torch.Tensor) -> None:
        if not values.isfinite().all():
            raise ExportError("not published: the checkpoint's own output is not finite; train it again")

    with torch.no_grad():
        hook = model.network.register_forward_hook(check_finite)
        try:
            answer: Pixels = model(*(torch.from_numpy(feeds[spec.name]) for spec in model.inputs)).numpy()
        finally:
            hook.remove()
    return answer


def check_contract(proto: onnx.ModelProto, model: Exportable) -> None:
    """Raise `ExportError` if names, types or axes of the file's tensors differ from the contract."""
    pairs = zip((*input_specs(proto), output_spec(proto)), (*model.inputs, model.output), strict=True)
    if wrong := [f"{found.shown()} instead of {want.shown()}" for found, want in pairs if found != want]:
        raise ExportError(f"not published: the exported file has {'; '.join(wrong)}")
