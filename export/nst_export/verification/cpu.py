"""Engines on the CPU: ONNX Runtime's own execution provider, and OpenVINO if it is installed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nst_core.contract import STATISTICS
from nst_core.images import Pixels
from nst_core.packages.onnx_runtime import import_onnxruntime
from nst_export.verification.agreement import Engine, Feeds

ONNX_RUNTIME, OPENVINO = "ONNX Runtime", "OpenVINO"

PROVIDERS = {ONNX_RUNTIME: "CPUExecutionProvider", OPENVINO: "OpenVINOExecutionProvider"}
"""Execution providers for ONNX files on a CPU, by the names of their engines."""


def installed_providers() -> Mapping[str, str]:
    """Return those of `PROVIDERS` that this machine's ONNX Runtime has."""
    available = import_onnxruntime().get_available_providers()
    return {name: provider for name, provider in PROVIDERS.items() if provider in available}


def onnx_engines(path: Path, *, openvino: bool = True) -> list[Engine]:
    """Open the file on every installed execution provider; without `openvino` only on ONNX Runtime's own.

    ONNX Runtime's own also reports whether all values are finite.
    """
    others = {name: provider for name, provider in _providers(openvino).items() if name != ONNX_RUNTIME}
    return [_watching_engine(path), *(_plain_engine(path, name, provider) for name, provider in others.items())]


def _watching_engine(path: Path) -> Engine:
    """Open the file on ONNX Runtime's own provider, with the values before the clip as a second output."""
    proto = onnx.load(path)
    clipped = [node.input[0] for node in proto.graph.node if node.op_type == "Clip"]
    unclipped = clipped[-1] if clipped else proto.graph.output[0].name
    if clipped:
        proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(unclipped))
    output = proto.graph.output[0].name
    session = open_session(proto.SerializeToString(), PROVIDERS[ONNX_RUNTIME])

    def run(feeds: Feeds) -> tuple[Pixels, bool | None]:
        stylized, values = session.run([output, unclipped], feeds)
        return stylized, bool(np.isfinite(values).all())

    return Engine(ONNX_RUNTIME, run)


def _plain_engine(path: Path, name: str, provider: str) -> Engine:
    session = open_session(path, provider)
    return Engine(name, lambda feeds: (session.run(None, feeds)[0], None))


def tiled_engines(statistics: Path, tiled: Path, *, openvino: bool = True) -> list[Engine]:
    """Open both parts of a tiled model as one engine with the output of the whole model.

    `openvino` is as in `onnx_engines`.
    """
    return [_tiled_engine(statistics, tiled, name, provider) for name, provider in _providers(openvino).items()]


def _tiled_engine(statistics: Path, tiled: Path, name: str, provider: str) -> Engine:
    first, second = open_session(statistics, provider), open_session(tiled, provider)

    def run(feeds: Feeds) -> tuple[Pixels, bool | None]:
        found = first.run([STATISTICS], feeds)[0]
        return second.run(None, feeds | {STATISTICS: found})[0], bool(np.isfinite(found).all())

    return Engine(f"{name}, in two parts", run)


def _providers(openvino: bool) -> Mapping[str, str]:
    return {name: provider for name, provider in installed_providers().items() if openvino or name == ONNX_RUNTIME}


def open_session(model: Path | bytes, provider: str) -> Any:
    """Open an ONNX Runtime session on `provider`, without log messages (except OpenVINO's own warnings)."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides that shape arithmetic stays on the CPU provider, as intended
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=[provider]
    )
