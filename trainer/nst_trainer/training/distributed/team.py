"""Training in several processes, on one machine or many, started by `torchrun`."""

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

GO_ON = "All processes stop; repeat the command on every machine, with --resume if the training had started"
POLL_SECONDS = 0.0005

T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The processes of a training; by default a single process.

    Collective operations raise `TeamError` if another process stopped or was lost.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    connection: Connection | None = None
    chosen: Device | None = None
    """The choice of `device` and its reason, if `join_team` made it."""

    def device_name(self) -> str:
        """Return the device's name for people."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def precision(self) -> tuple[torch.dtype, str]:
        """Return the faster precision for convolutions, and why. Statistics, Gram matrices and weights stay FP32."""
        if self.device.type == "cuda":
            if torch.cuda.is_bf16_supported(including_emulation=False):
                return torch.bfloat16, "this GPU supports it"
            return torch.float32, "this GPU does not support bfloat16"
        if torch.cpu.get_capabilities().get("avx512_bf16"):
            return torch.bfloat16, "this CPU supports it"
        return torch.float32, "this CPU does not support bfloat16"

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the messages."""
        return self.rank == 0

    def part(self, batch: int) -> range:
        """Return this process's positions in a batch; raises `InputError` if it does not divide evenly."""
        if batch % self.size:
            raise InputError(f"--batch is {batch}; give a multiple of {self.size}, the number of processes")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Average each gradient over the processes, which gives that of the whole batch, since losses are means."""
        if not self.connection:
            return
        gradients = [values.grad for values in parameters if values.grad is not None]
        with self._together(self.connection):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
        _spread(flat / self.size, gradients)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Copy the leading process's values into `tensors` on every process."""
        if not self.connection:
            return
        targets = list(tensors)
        with self._together(self.connection), torch.no_grad():
            flat = torch.cat([values.flatten() for values in targets])
            distributed.broadcast(flat, src=0)
            _spread(flat, targets)

    def from_leader(self, make: Callable[[], T]) -> T:
        """Call `make` on the leading process, and return its result on every process; if it raises, all stop."""
        if not self.connection:
            return make()
        box = [make() if self.leads else None]
        with self._together(self.connection):
            distributed.broadcast_object_list(box, src=0, group=self.connection.control)
        return box[0]  # type: ignore[return-value]

    def slowest(self, seconds: float) -> float:
        """Return the longest time of any process, on every process."""
        return max(self._gather(seconds))

    def check_same(self, facts: Mapping[str, object]) -> None:
        """Raise `InputError` for the first of `facts` that differs between processes; it names their hosts."""
        hosts = self.connection.liveness.hosts if self.connection else []
        for rank, theirs in enumerate(self._gather(dict(facts))):
            for name, value in facts.items():
                if theirs[name] != value:
                    own, other = (f"rank {number} on {hosts[number]}" for number in (self.rank, rank))
                    raise InputError(
                        f"{name}: {value} for {own}, but {theirs[name]} for {other}; use the same on every machine"
                    )

    def _gather(self, value: T) -> list[T]:
        """Return every process's `value`, by rank."""
        if not self.connection:
            return [value]
        box: list[T] = [value] * self.size
        with self._together(self.connection):
            distributed.all_gather_object(box, value, group=self.connection.control)
        return box

    @contextmanager
    def _together(self, connection: Connection) -> Iterator[None]:
        """Wait for all processes, so that Ctrl-C and a lost process end the wait; then run the block."""
        try:
            arrival = distributed.barrier(connection.control, async_op=True)
            while not arrival.is_completed():
                if connection.liveness.stops():
                    # PyTorch waits for the missing processes when the last reference is dropped, also at exit.
                    atexit.register(lambda kept: os._exit(1), connection)
                    raise TeamError(f"{connection.liveness.reason()}. {GO_ON}")
                time.sleep(POLL_SECONDS)
            arrival.wait()
            yield
        except RuntimeError as error:  # from gloo or nccl: a connection ended
            raise TeamError(f"{connection.liveness.reason()}. {GO_ON}") from error


@contextmanager
def join_team(wanted: DeviceChoice = "auto") -> Iterator[Team]:
    """Join the team that `torchrun` started, or make a team of one process, on the device of `choose_device`.

    An `NstError` or Ctrl-C inside the block ends the team: the other processes and torchrun's report get the reason.
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
    """Set PyTorch up for training on a GPU, within the block; a CPU needs nothing."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.benchmark = True  # crops have few sizes, so a search per size pays
    torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions are by default
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before[0]
        torch.set_float32_matmul_precision(before[1])


@contextmanager
def _connected(backend: str) -> Iterator[Connection]:
    """Connect to the other processes, and tell them at the end of the block why it ended."""
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
    """Write an error's message into torchrun's report, which otherwise has no reason."""
    try:
        yield
    except NstError as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            report = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": report}))
        raise


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    """Copy the parts of the concatenated `flat` back into the tensors."""
    for values, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        values.copy_(part.view_as(values))
