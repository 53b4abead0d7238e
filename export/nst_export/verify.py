"""The gate: an exported model answers as PyTorch does, on real photographs, or is not published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from nst_core.errors import NstError
from nst_core.images import Pixels, fitted, open_picture, sample_photographs
from nst_export.served import INPUT, OUTPUT, STYLE_WEIGHTS, ServedModel
from nst_trainer.networks import StyledNetwork

SHAPES = ((1, 256, 256), (1, 333, 501), (1, 480, 270), (3, 128, 100), (2, 181, 255))
"""(batch, height, width): square, odd, portrait, batches of three and two, odd batch; the smallest comes to them."""

MAX_LEVELS = 1
"""Largest difference allowed in any value, in levels of 255: one is rounding."""

ENGINES = {"ONNX Runtime": "CPUExecutionProvider", "OpenVINO": "OpenVINOExecutionProvider"}
"""What may serve the file on a CPU; those that are installed here are checked."""


class ExportError(NstError):
    """A model that cannot be exported, or whose export does not agree with PyTorch."""


@dataclass(frozen=True)
class Agreement:
    """One shape on one engine. Differences in levels of 255; `psnr` in dB, None where nothing differs."""

    engine: str
    shape: tuple[int, int, int]
    maximum: int
    mean: float
    psnr: float | None

    @property
    def passed(self) -> bool:
        """No value is further off than rounding."""
        return self.maximum <= MAX_LEVELS

    def summary(self) -> dict[str, Any]:
        """For the checkpoint's and the model's papers."""
        return {**asdict(self), "passed": self.passed}


def verify(model: ServedModel, path: Path) -> list[Agreement]:
    """Compare the ONNX file with `model` on every installed CPU engine and every one of `examples`.

    All checks run; then an `ExportError` names all that failed, with their figures.
    """
    agreements: list[Agreement] = []
    expected = [(feeds, _by_pytorch(model, feeds)) for feeds in examples(model.network)]
    for engine, provider in ENGINES.items():
        if provider not in onnxruntime.get_available_providers():
            continue
        session = _session(path, provider)
        for feeds, wanted in expected:
            answer = session.run([OUTPUT], feeds)[0]
            agreements.append(_compare(engine, answer, wanted))
    if failed := [one for one in agreements if not one.passed]:
        figures = "; ".join(f"{one.engine} at {one.shape}: {one.maximum} levels" for one in failed)
        raise ExportError(
            f"the exported model differs from PyTorch by more than {MAX_LEVELS} level of 255: {figures}. Not published"
        )
    return agreements


def shapes(network: StyledNetwork) -> list[tuple[int, int, int]]:
    """What is compared: `SHAPES`, and the smallest picture that the network takes, but for a pixel and three."""
    return [*SHAPES, (1, network.min_side + 1, network.min_side + 3)]


def examples(network: StyledNetwork) -> list[dict[str, Any]]:
    """Inputs by name for every shape: photographs, and for several styles mixes, each style alone among them."""
    feeds: list[dict[str, Any]] = [{INPUT: pictures} for pictures in photographs(shapes(network))]
    if network.styles > 1:
        # At least as many rows as styles: the first rows are one style alone, the others mixes.
        rows = sum(len(one[INPUT]) for one in feeds)
        random = np.random.default_rng(0).random((max(rows, network.styles) - network.styles, network.styles))
        mixes = iter(np.concatenate([np.eye(network.styles), random]).astype(np.float32))
        feeds = [one | {STYLE_WEIGHTS: np.stack([next(mixes) for _ in one[INPUT]])} for one in feeds]
    return feeds


def photographs(shapes: Iterable[tuple[int, int, int]]) -> list[Pixels]:
    """Real photographs cut to the shapes, `uint8 [N, H, W, 3]` each; no two in a batch alike."""
    pictures = [open_picture(path) for path in sample_photographs()]
    batches = []
    for position, (n, height, width) in enumerate(shapes):
        chosen = [pictures[(position + index) % len(pictures)] for index in range(n)]
        batches.append(np.stack([fitted(picture, width, height).pixels for picture in chosen]))
    return batches


def _by_pytorch(model: ServedModel, feeds: dict[str, Any]) -> Pixels:
    with torch.no_grad():
        answer: Pixels = model(
            *(torch.from_numpy(feeds[name]) for name in (INPUT, STYLE_WEIGHTS) if name in feeds)
        ).numpy()
    return answer


def _session(path: Path, provider: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # shape arithmetic stays on the CPU provider, which is no news
    return onnxruntime.InferenceSession(str(path), options, providers=[provider])


def _compare(engine: str, answer: Pixels, wanted: Pixels) -> Agreement:
    n, height, width, _ = wanted.shape
    if answer.shape != wanted.shape or answer.dtype != np.uint8:
        raise ExportError(
            f"{engine} answers {answer.dtype} {answer.shape} where PyTorch has uint8 {wanted.shape}. Not published"
        )
    difference = np.abs(answer.astype(np.int16) - wanted.astype(np.int16))
    squares = float(np.mean(np.square(difference, dtype=np.float64)))
    psnr = 10 * float(np.log10(255**2 / squares)) if squares else None
    return Agreement(engine, (n, height, width), int(difference.max()), float(difference.mean()), psnr)
