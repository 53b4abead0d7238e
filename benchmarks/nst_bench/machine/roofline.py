"""The roofline model: which share of a device's peak rates an engine reaches.

The peak rates are the measured rates of a matrix product and of a memory copy (`machine.description`). An engine cannot
exceed them if it does the counted arithmetic and keeps its feature maps in memory. A share above 1 means that one of
these assumptions does not hold: Winograd convolutions need fewer multiplications, and small feature maps fit into a
cache.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nst_export.inspection import arithmetic
from nst_trainer.networks import StyledNetwork


@dataclass(frozen=True)
class Workload:
    """Arithmetic per image (GFLOP; a multiply-add counts as two) and memory traffic (GB), None if not counted."""

    gflop: float
    gigabytes: float | None

    def shares(self, machine: dict[str, Any], device: str, milliseconds: float) -> dict[str, float]:
        """Return a row's shares of the peak rates for an image that took `milliseconds` on `device` (`CPU`, `GPU`).

        The rates are those of `machine.description.describe`; unmeasured ones are left out.
        """
        rates = machine if device == "CPU" else machine["cuda"]
        shares = {"gflop": self.gflop}
        if rate := rates.get("matrix_product_gflops"):
            shares["share_of_matrix_rate"] = 1000.0 * self.gflop / milliseconds / rate
        if self.gigabytes is not None and (bandwidth := rates.get("memory_gbs")):
            shares["share_of_bandwidth"] = 1000.0 * self.gigabytes / milliseconds / bandwidth
        return shares


def network_workload(network: StyledNetwork, size: int) -> Workload:
    """Count the convolutions for an image of `size`^2 pixels, and a lower bound of their memory traffic.

    The bound is the image in and out (3 bytes per pixel each), every weight once, and every convolution's FP32 result
    written once and read once: a normalisation needs the statistics of the whole feature map before its first value.
    PyTorch counts on meta tensors.
    """
    side = math.ceil(size / network.multiple) * network.multiple
    counted = copy.deepcopy(network).to("meta")
    map_sizes: list[int] = []

    def note_size(module: nn.Module, inputs: Any, result: Tensor) -> None:
        map_sizes.append(result.numel())

    for module in counted.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note_size)
    styles = network.styles
    style_weights = torch.ones(1, styles, device="meta") / styles if styles > 1 else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(torch.zeros(1, 3, side, side, device="meta"), style_weights)
    weights = sum(parameter.numel() for parameter in network.parameters())
    moved = 2 * 3 * size**2 + 4 * weights + 2 * 4 * sum(map_sizes)
    return Workload(counter.get_total_flops() / 1e9, moved / 1e9)


def graph_workload(file: Path, network: StyledNetwork, size: int) -> Workload:
    """Count the workload of an exported file, whose rewrites save arithmetic, with the network's memory traffic."""
    return Workload(arithmetic(onnx.load(file), size) / 1e9, network_workload(network, size).gigabytes)
