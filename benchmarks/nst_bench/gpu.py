"""What paints on an NVIDIA GPU in this process: PyTorch as a CUDA graph, ONNX Runtime CUDA, and TensorRT.

The last two are the engines that the server's backends run (`nst_core.engines`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nst_bench.exported import Exported
from nst_core import devices
from nst_core.contract import IMAGE, STYLE_WEIGHTS, STYLIZED
from nst_core.devices import Device, Gpu
from nst_core.errors import InputError, NstError
from nst_core.images import Pixels
from nst_core.onnx_runtime import import_onnxruntime

GRAPHS = 8
"""CUDA graphs of PyTorch that are kept; the one that has waited longest for its shape ends."""

CONTEXTS = 2
"""Images that TensorRT paints side by side."""

Paint = Callable[[Pixels], Pixels]
"""`uint8 [H, W, 3]` to the same; both in main memory, so that a GPU's copies count, and its work is done."""


class MissingEngine(NstError):
    """An engine that cannot paint here; the message is the reason."""


def torch_device(device: Device) -> torch.device:
    """The chosen device for PyTorch. Raises `InputError` if PyTorch cannot use the GPU that the driver has."""
    if device.gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"{without_cuda()}, which the driver has ({device.gpu.name}): install PyTorch for CUDA")
    return torch.device("cuda")


def without_cuda() -> str:
    """Why PyTorch uses no GPU."""
    built = "is built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} finds none"
    return f"torch {torch.__version__} {built} and cannot use a GPU"


def on_gpu() -> Gpu:
    """The GPU that engines run on, the first that this process may use. Raises `MissingEngine`."""
    found, missing = devices.gpus()
    if not found:
        raise MissingEngine(missing)
    return found[0]


class CudaGraphs:
    """A module in FP16 (autocast) and channels last, recorded once a shape and started again by one call."""

    def __init__(self, module: Callable[..., Tensor], mix: Tensor | None) -> None:
        """`module` paints `uint8 [1, H, W, 3]` on the GPU, in the styles of `mix` `[1, S]` if it has several."""
        self._module, self._mix = module, mix
        self._recorded: OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = OrderedDict()

    def __call__(self, pixels: Pixels) -> Pixels:
        """See `Paint`."""
        recorded = self._recorded.pop(pixels.shape, None) or self._record(pixels)
        self._recorded[pixels.shape] = recorded
        if len(self._recorded) > GRAPHS:
            self._recorded.popitem(last=False)
        graph, image, stylized = recorded
        image.copy_(torch.from_numpy(pixels[None]))
        graph.replay()
        painted: Pixels = stylized[0].cpu().numpy()
        return painted

    def _record(self, pixels: Pixels) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        image = torch.from_numpy(pixels[None]).cuda()
        graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # The cache of cast weights is of one block: a graph must cast them itself, or it would read freed memory.
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, cache_enabled=False):
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(3):  # libraries choose their kernels in the first runs
                    self._module(image, self._mix)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(graph):
                stylized = self._module(image, self._mix)
        return graph, image, stylized


class OnCard:
    """Painting for callers whose pixels are on the card: by CUDA shared memory nothing goes through main memory."""

    def __init__(self, stylize: Callable[[Any], Any]) -> None:
        """`stylize` takes a CUDA tensor `uint8 [H, W, 3]` and gives one."""
        self._stylize = stylize

    def __call__(self, pixels: Pixels) -> Pixels:
        """See `Paint`."""
        painted: Pixels = self._stylize(torch.from_numpy(pixels).cuda()).cpu().numpy()
        return painted

    def work(self, pixels: Pixels) -> Callable[[], object]:
        """One image from the card to the card, done when it returns."""
        image = torch.from_numpy(pixels).cuda()

        def paint() -> None:
            self._stylize(image)
            torch.cuda.synchronize()

        return paint


def by_cuda_sessions(file: Path, exported: Exported) -> Paint:
    """`file` in ONNX Runtime's CUDA provider, a session a shape, as the server's backend runs it."""
    on_gpu()
    from nst_core.engines.onnx_cuda import CudaSessions

    onnxruntime = import_onnxruntime("bench")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        here = ", ".join(onnxruntime.get_available_providers())
        raise MissingEngine(f"ONNX Runtime {onnxruntime.__version__} here has no CUDAExecutionProvider (it has {here})")
    sessions = CudaSessions(file)
    weights = _weights(exported)

    def paint(pixels: Pixels) -> Pixels:
        painted: Pixels = sessions.run({IMAGE: pixels[None], **weights}, [STYLIZED])[0][0]
        return painted

    return paint


def by_tensorrt(exported: Exported, *, tick: Callable[[str], None] = lambda note: None) -> Paint:
    """The plan of a model that was exported for TensorRT, found or built as `nst-serve` does it."""
    gpu = on_gpu()
    if exported.config.backend != "tensorrt":
        raise MissingEngine(f"{exported.folder.name} was not exported for TensorRT: nst-export --for tensorrt")
    from nst_core.engines import plans
    from nst_core.engines.tensorrt import TensorRTEngine

    try:
        plan = plans.ensure(
            exported.version,
            plans.Profile.parse(exported.parameter("profile")),
            int(exported.parameter("multiple")),
            library=plans.tensorrt(),
            gpu=gpu.name,
            compute_capability=gpu.compute_capability,
            on_progress=lambda done, note: tick(f"building the TensorRT plan, {done:.0%}: {note}"),
        )
        engine = TensorRTEngine(plan, contexts=CONTEXTS)
    except (ValueError, RuntimeError) as error:  # a profile, a plan or CUDA
        raise MissingEngine(" ".join(str(error).split())) from error
    weights = _weights(exported)

    def paint(pixels: Pixels) -> Pixels:
        painted: Pixels = engine.run({IMAGE: pixels[None], **weights})[0]
        return painted

    return paint


def _weights(exported: Exported) -> dict[str, np.ndarray]:
    """The first of a model's styles, for one of several."""
    count = len(exported.styles)
    return {STYLE_WEIGHTS: np.eye(1, count, dtype=np.float32)} if count > 1 else {}
