"""What a device could do at best, and what share of it an engine reaches.

Two bounds: the device's measured rate of matrix products, and its measured rate of copying memory
(`machine.description`). Neither can be passed by an engine that does the arithmetic that is counted and whose feature
maps lie in memory. A share above 1 says that one of these does not hold: Winograd's convolutions multiply less often
than is counted, and small feature maps stay in a cache.
"""

from __future__ import annotations

import copy
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
    """What one picture costs: arithmetic (GFLOP, a multiplication and an addition are two), memory moved (GB)."""

    gflop: float
    gigabytes: float


@dataclass(frozen=True)
class Roofline:
    """A device's measured rates, GFLOP/s and GB/s; None where they could not be measured."""

    gflops: float | None
    gbs: float | None

    @classmethod
    def of(cls, machine: dict[str, Any], device: str = "CPU") -> Roofline:
        """As `nst_bench.machine.description.describe` has them; `device` is `CPU` or `GPU`."""
        rates = machine if device == "CPU" else machine["cuda"]
        return cls(rates.get("matrix_product_gflops"), rates.get("memory_gbs"))

    def shares(self, work: Workload, milliseconds: float) -> dict[str, float]:
        """What a row says of a picture that took so long."""
        seconds = milliseconds / 1000.0
        if self.gflops is None or self.gbs is None:
            return {"gflop": work.gflop}
        return {
            "gflop": work.gflop,
            "share_of_matrix_rate": work.gflop / seconds / self.gflops,
            "share_of_bandwidth": work.gigabytes / seconds / self.gbs,
        }


def network_workload(network: StyledNetwork, size: int) -> Workload:
    """The convolutions of one picture of `size`^2 pixels, and a lower bound of the memory that they move.

    The bound: the picture as it comes and goes (3 bytes a pixel each way), every weight once, and every convolution's
    FP32 result written once and read once. Less is impossible for maps in memory: a normalisation needs the
    statistics of the whole map before its first value can go on. PyTorch counts, on tensors without values.
    """
    height = -(-size // network.multiple) * network.multiple
    counted = copy.deepcopy(network).to("meta")
    maps: list[int] = []

    def note(module: nn.Module, inputs: Any, result: Tensor) -> None:
        maps.append(result.numel())

    for module in counted.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    styles = network.styles
    mix = torch.ones(1, styles, device="meta") / styles if styles > 1 else None
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(torch.zeros(1, 3, height, height, device="meta"), mix)
    weights = sum(parameter.numel() for parameter in network.parameters())
    moved = 2 * 3 * size**2 + 4 * weights + 2 * 4 * sum(maps)
    return Workload(counter.get_total_flops() / 1e9, moved / 1e9)


def graph_workload(file: Path, network: StyledNetwork, size: int) -> Workload:
    """The same of an exported file, whose rewrites save arithmetic; its feature maps are those of the network."""
    return Workload(arithmetic(onnx.load(file), size) / 1e9, network_workload(network, size).gigabytes)
