"""What a device could do at best, and what share of it an engine reaches: the roofline model.

Two bounds: the device's measured rate of matrix products, and its measured rate of copying memory
(`machine.description`). No engine can pass them that does the arithmetic that is counted and whose feature maps lie in
memory. A share above 1 means that one of these does not hold: Winograd's convolutions multiply less often than is
counted, and small feature maps stay in a cache.
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
    """What an image costs: arithmetic (GFLOP, a multiplication and an addition are two), memory traffic (GB).

    The traffic is None where it is not counted.
    """

    gflop: float
    gigabytes: float | None

    def shares(self, machine: dict[str, Any], device: str, milliseconds: float) -> dict[str, float]:
        """The columns of a row for an image that took so long on `device` (`CPU` or `GPU`).

        The rates are those of `machine.description.describe`; shares of those that could not be measured are left out.
        """
        rates = machine if device == "CPU" else machine["cuda"]
        shares = {"gflop": self.gflop}
        if rate := rates.get("matrix_product_gflops"):
            shares["share_of_matrix_rate"] = 1000.0 * self.gflop / milliseconds / rate
        if self.gigabytes is not None and (bandwidth := rates.get("memory_gbs")):
            shares["share_of_bandwidth"] = 1000.0 * self.gigabytes / milliseconds / bandwidth
        return shares


def network_workload(network: StyledNetwork, size: int) -> Workload:
    """The convolutions for an image of `size`^2 pixels, and a lower bound of their memory traffic.

    The bound: the image as it comes and goes (3 bytes a pixel each way), every weight once, and every convolution's
    FP32 result written once and read once. Less is impossible for maps in memory: a normalisation needs the
    statistics of the whole map before its first value can go on. PyTorch counts, on tensors without values.
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
    """The same of an exported file, whose rewrites save arithmetic; its feature maps are those of the network."""
    return Workload(arithmetic(onnx.load(file), size) / 1e9, network_workload(network, size).gigabytes)
