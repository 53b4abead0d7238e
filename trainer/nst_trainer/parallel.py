"""Training by several processes, as `torchrun` starts them: gloo on CPUs, nccl on GPUs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from nst_core.errors import InputError


@dataclass(frozen=True)
class Team:
    """The processes of one training; by default there is one."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    def precision(self) -> tuple[torch.dtype, str]:
        """What convolutions are faster in, and why. Statistics, Gram matrices and weights are FP32 anyway."""
        if self.device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "this GPU has instructions for it"
            return torch.float32, "this GPU has no instructions for bfloat16"
        if torch.cpu.get_capabilities().get("avx512_bf16"):
            return torch.bfloat16, "this CPU has instructions for it"
        return torch.float32, "this CPU has no instructions for bfloat16"

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and talks."""
        return self.rank == 0

    def part(self, batch: int) -> range:
        """Which of a batch's pictures this process takes; `InputError` if they do not come out even."""
        if batch % self.size:
            raise InputError(f"batch is {batch}: it must be a multiple of the {self.size} processes")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes: the whole batch's, since losses are means."""
        if self.size == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(gradients, torch.split(flat, [one.numel() for one in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


@contextmanager
def team() -> Iterator[Team]:
    """The team that `torchrun` made this process a part of, or a team of one; on a GPU if there is one."""
    cuda = torch.cuda.is_available()
    if "WORLD_SIZE" not in os.environ:
        yield Team(device=torch.device("cuda" if cuda else "cpu"))
        return
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Team(distributed.get_rank(), distributed.get_world_size(), device)
    finally:
        distributed.destroy_process_group()
