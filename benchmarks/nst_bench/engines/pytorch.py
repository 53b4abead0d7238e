"""PyTorch in this process: eager, through `torch.compile`, and recorded as CUDA graphs."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from nst_bench.engines.base import MissingEngine, Stylize
from nst_bench.machine.gpu import why_no_cuda
from nst_core.images import Pixels
from nst_export.modules import ServedModel
from nst_trainer.networks import StyledNetwork

CUDA_GRAPHS = 8
"""How many shapes keep their CUDA graph; the least recently used is dropped."""


def pytorch_eager(network: StyledNetwork, device: str) -> Stylize:
    """Return the network in the served module, channels last; `device` is `CPU` or `GPU`."""
    return _stylizing(_served_module(network, device), network, device)


def pytorch_compiled(network: StyledNetwork, device: str) -> Stylize:
    """Return the network through `torch.compile`, once per shape: its symbolic shapes do not support the padding."""
    module = _served_module(network, device)
    if device == "CPU" and not shutil.which(os.environ.get("CXX", "g++")):
        raise MissingEngine("torch.compile needs a C++ compiler; install g++, or set CXX")
    compiled = _stylizing(torch.compile(module, dynamic=False), network, device)

    def stylize(pixels: Pixels) -> Pixels:
        try:
            return compiled(pixels)
        except Exception as error:  # its backends have no common exception
            raise MissingEngine(f"torch.compile failed: {str(error).splitlines()[0]}") from error

    return stylize


def pytorch_cuda_graph(network: StyledNetwork) -> Stylize:
    """Return the network in FP16 by autocast with one CUDA graph per shape, PyTorch's fastest way without an engine."""
    module, style_weights = _served_module(network, "GPU"), _first_style(network, "GPU")

    @lru_cache(CUDA_GRAPHS)
    def recorded(*shape: int) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        image = torch.zeros(1, *shape, dtype=torch.uint8, device="cuda")
        graph, side_stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # Without the cache, the graph casts the weights itself; the cache is freed after the block.
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, cache_enabled=False):
            side_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side_stream):
                for _ in range(3):  # libraries choose their kernels in the first runs
                    module(image, style_weights)
            torch.cuda.current_stream().wait_stream(side_stream)
            with torch.cuda.graph(graph):
                stylized = module(image, style_weights)
        return graph, image, stylized

    def stylize(pixels: Pixels) -> Pixels:
        graph, image, stylized = recorded(*pixels.shape)
        image.copy_(torch.from_numpy(pixels[None]))
        graph.replay()
        result: Pixels = stylized[0].cpu().numpy()
        return result

    return stylize


class CudaTensorStylizer:
    """Stylizes images on the GPU over CUDA shared memory, without copies through main memory."""

    def __init__(self, stylize: Callable[[Any], Any]) -> None:
        """Wrap `stylize`, which takes and returns a CUDA tensor `uint8 [H, W, 3]`."""
        self._stylize = stylize

    def __call__(self, pixels: Pixels) -> Pixels:
        """Stylize one image, as `Stylize` does."""
        result: Pixels = self._stylize(torch.from_numpy(pixels).cuda()).cpu().numpy()
        return result

    def work(self, pixels: Pixels) -> Callable[[], object]:
        """Return a function that stylizes an image from GPU memory to GPU memory and waits for the result."""
        image = torch.from_numpy(pixels).cuda()

        def stylize() -> None:
            self._stylize(image)
            torch.cuda.synchronize()

        return stylize


def _served_module(network: StyledNetwork, device: str) -> ServedModel:
    if device == "GPU" and not torch.cuda.is_available():
        raise MissingEngine(why_no_cuda())
    placed = copy.deepcopy(network).to(_torch_name(device))
    return ServedModel(placed.to(memory_format=torch.channels_last)).eval()  # type: ignore[call-overload]


def _stylizing(module: Callable[..., Tensor], network: StyledNetwork, device: str) -> Stylize:
    where, style_weights = _torch_name(device), _first_style(network, device)

    def stylize(pixels: Pixels) -> Pixels:
        with torch.inference_mode():
            result: Pixels = module(torch.from_numpy(pixels[None]).to(where), style_weights)[0].cpu().numpy()
            return result

    return stylize


def _first_style(network: StyledNetwork, device: str) -> Tensor | None:
    """Return `style_weights` `[1, S]` of the first style, or None for a network of one style."""
    return None if network.styles == 1 else torch.eye(network.styles, device=_torch_name(device))[:1]


def _torch_name(device: str) -> str:
    return "cuda" if device == "GPU" else "cpu"
