"""Training by several processes, on one machine or many, as `torchrun` starts them."""

from __future__ import annotations

import atexit
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor

from nst_core.devices import Device, DeviceChoice
from nst_core.errors import InputError, NstError
from nst_trainer.devices import choose_device
from nst_trainer.training.distributed.connection import Connection, TeamError, connect
from nst_trainer.training.distributed.liveness import FOLLOWS, INTERRUPTED

GO_ON = "All processes stop; start the same command on every machine, with --resume where the training had begun"
POLL_SECONDS = 0.0005

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a training; by default a single process.

    What the processes do together raises `TeamError` if one of them stopped or was lost.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    connection: Connection | None = None
    chosen: Device | None = None
    """The choice of `device` and its reason, if `team` made it."""

    def device_name(self) -> str:
        """What a person calls the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

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
        """Which images of a batch this process takes; `InputError` if the processes cannot share it evenly."""
        if batch % self.size:
            raise InputError(f"batch is {batch}: it must be a multiple of the {self.size} processes")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes: the whole batch's, since losses are means."""
        if not self.connection:
            return
        gradients = [values.grad for values in parameters if values.grad is not None]
        with self._together(self.connection):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
        _spread(flat / self.size, gradients)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Give `tensors` the leading process's values on every process."""
        if not self.connection:
            return
        targets = list(tensors)
        with self._together(self.connection), torch.no_grad():
            flat = torch.cat([values.flatten() for values in targets])
            distributed.broadcast(flat, src=0)
            _spread(flat, targets)

    def from_leader(self, make: Callable[[], T]) -> T:
        """What `make` gives on the leading process, on every process; if it raises there, none goes on."""
        if not self.connection:
            return make()
        box = [make() if self.leads else None]
        with self._together(self.connection):
            distributed.broadcast_object_list(box, src=0, group=self.connection.control)
        return box[0]  # type: ignore[return-value]

    def slowest(self, seconds: float) -> float:
        """The longest time that any of the processes took, on every process."""
        return max(self._gather(seconds))

    def check_same(self, facts: Mapping[str, object]) -> None:
        """`InputError` that names the first of `facts` which is not the same on every process, and the hosts."""
        hosts = self.connection.liveness.hosts if self.connection else []
        for rank, theirs in enumerate(self._gather(dict(facts))):
            for name, value in facts.items():
                if theirs[name] != value:
                    own, other = (f"rank {number} on {hosts[number]}" for number in (self.rank, rank))
                    raise InputError(
                        f"{name}: {value} for {own}, but {theirs[name]} for {other}; give every machine the same"
                    )

    def _gather(self, value: T) -> list[T]:
        """What every process gives, by rank."""
        if not self.connection:
            return [value]
        box: list[T] = [value] * self.size
        with self._together(self.connection):
            distributed.all_gather_object(box, value, group=self.connection.control)
        return box

    @contextmanager
    def _together(self, connection: Connection) -> Iterator[None]:
        """Wait until all have come here, in a way that Ctrl-C and a lost process end; then exchange."""
        try:
            arrival = distributed.barrier(connection.control, async_op=True)
            while not arrival.is_completed():
                if connection.liveness.stops():
                    # PyTorch waits for those who never come where the last reference goes, and so would the exit.
                    atexit.register(lambda kept: os._exit(1), connection)
                    raise TeamError(f"{connection.liveness.reason()}. {GO_ON}")
                time.sleep(POLL_SECONDS)
            arrival.wait()
            yield
        except RuntimeError as error:  # of gloo or nccl: a connection ended
            raise TeamError(f"{connection.liveness.reason()}. {GO_ON}") from error


@contextmanager
def join_team(wanted: DeviceChoice = "auto") -> Iterator[Team]:
    """The team that `torchrun` made this process a part of, or a team of one, on the device that `choose_device` says.

    An `NstError` or Ctrl-C inside ends the team: the other processes hear of it, and so does torchrun's report.
    """
    device, chosen = choose_device(wanted)
    with _tuned_for(device):
        if "WORLD_SIZE" not in os.environ:
            yield Team(device=device, chosen=chosen)
            return
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        with _report_to_torchrun(), _connected("nccl" if device.type == "cuda" else "gloo") as connection:
            yield Team(distributed.get_rank(), distributed.get_world_size(), device, connection, chosen)


@contextmanager
def _tuned_for(device: torch.device) -> Iterator[None]:
    """PyTorch's settings for training on a GPU, within the block; nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True  # crops come in few sizes: the fastest way of each is worth a search
    torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions are by default
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _connected(backend: str) -> Iterator[Connection]:
    """The connection to the other processes, which hear at the end of the block how it ended."""
    stop_reason: str | None = None
    connection = connect(backend)
    try:
        yield connection
    except TeamError:
        stop_reason = FOLLOWS
        raise
    except KeyboardInterrupt as interrupt:
        connection.liveness.announce(stop_reason := INTERRUPTED)
        if lost := connection.liveness.find_cause():  # torchrun sends SIGTERM to the others that it started
            raise TeamError(f"{lost}. {GO_ON}") from interrupt
        raise
    except Exception as error:
        stop_reason = str(error) or type(error).__name__
        raise
    finally:
        connection.liveness.leave(stop_reason)
        distributed.destroy_process_group()


@contextmanager
def _report_to_torchrun() -> Iterator[None]:
    """Put an error's line into torchrun's report, which otherwise says that nothing is known."""
    try:
        yield
    except NstError as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            report = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": report}))
        raise


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy what was laid end to end back into the tensors."""
    for values, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        values.copy_(part.view_as(values))
