"""Training by several processes, on one machine or many, as `torchrun` starts them: gloo on CPUs, nccl on GPUs."""

from __future__ import annotations

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from nst_core.devices import Device, DeviceChoice
from nst_core.errors import InputError, NstError
from nst_trainer.devices import choose_device
from nst_trainer.training.liveness import FOLLOWS, INTERRUPTED, Watch

CONNECT = timedelta(seconds=120)
"""In which processes that torchrun has started find each other, and an exchange that all have come to ends."""

GO_ON = "All processes stop; start the same command on every machine, with --resume where the training had begun"

T = TypeVar("T")


class TeamError(NstError):
    """Another process of the team stopped or was lost, or they cannot reach each other."""


@dataclass(frozen=True)
class _Links:
    """What connects this process to the others: exchanges of any device are waited for through `control`, on CPUs."""

    control: distributed.ProcessGroup
    watch: Watch


@dataclass(frozen=True)
class Team:
    """The processes of one training; by default there is one.

    What the processes do together raises `TeamError` if one of them stopped or was lost.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    links: _Links | None = None
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
        """Which of a batch's pictures this process takes; `InputError` if they do not come out even."""
        if batch % self.size:
            raise InputError(f"batch is {batch}: it must be a multiple of the {self.size} processes")
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def average(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its mean over the processes: the whole batch's, since losses are means."""
        if not self.links:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        with self._together(self.links):
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(flat)
        _spread(flat / self.size, gradients)

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Give `tensors` the leading process's values on every process."""
        if not self.links:
            return
        own = list(tensors)
        with self._together(self.links), torch.no_grad():
            flat = torch.cat([one.flatten() for one in own])
            distributed.broadcast(flat, src=0)
            _spread(flat, own)

    def from_leader(self, make: Callable[[], T]) -> T:
        """What `make` gives on the leading process, on every process; if it raises there, none goes on."""
        if not self.links:
            return make()
        box = [make() if self.leads else None]
        with self._together(self.links):
            distributed.broadcast_object_list(box, src=0, group=self.links.control)
        return box[0]  # type: ignore[return-value]

    def slowest(self, seconds: float) -> float:
        """The longest time that one of the processes took, on every process."""
        return max(self._gather(seconds))

    def check_same(self, facts: Mapping[str, object]) -> None:
        """`InputError` that names the first of `facts` which is not the same on every process, and the hosts."""
        for rank, theirs in enumerate(self._gather(dict(facts))):
            for name, value in facts.items():
                if self.links and theirs[name] != value:
                    own, other = (f"rank {one} on {self.links.watch.hosts[one]}" for one in (self.rank, rank))
                    raise InputError(
                        f"{name}: {value} for {own}, but {theirs[name]} for {other}; give every machine the same"
                    )

    def _gather(self, value: T) -> list[T]:
        """What every process gives, by rank."""
        if not self.links:
            return [value]
        box: list[T] = [value] * self.size
        with self._together(self.links):
            distributed.all_gather_object(box, value, group=self.links.control)
        return box

    @contextmanager
    def _together(self, links: _Links) -> Iterator[None]:
        """Wait until all have come here, in a way that Ctrl-C and a lost process end; then exchange."""
        try:
            arrival = distributed.barrier(links.control, async_op=True)
            while not arrival.is_completed():
                if links.watch.stops():
                    # PyTorch waits for those who never come where the last reference goes, and so would the exit.
                    atexit.register(lambda kept: os._exit(1), links)
                    raise TeamError(f"{links.watch.reason()}. {GO_ON}")
                time.sleep(0.0005)
            arrival.wait()
            yield
        except RuntimeError as error:  # of gloo or nccl: a connection ended
            raise TeamError(f"{links.watch.reason()}. {GO_ON}") from error


@contextmanager
def team(wanted: DeviceChoice = "auto") -> Iterator[Team]:
    """The team that `torchrun` made this process a part of, or a team of one, on the device that `choose_device` says.

    An `NstError` or Ctrl-C inside ends the team: the other processes hear of it, and so does torchrun's report.
    """
    device, chosen = choose_device(wanted)
    cuda = device.type == "cuda"
    if cuda:
        torch.backends.cudnn.benchmark = True  # crops come in few sizes: the fastest way of each is worth a search
        torch.set_float32_matmul_precision("high")  # TF32, as cuDNN's convolutions are by default
    if "WORLD_SIZE" not in os.environ:
        yield Team(device=device, chosen=chosen)
        return
    if cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    last_word: str | None = None
    with _told_to_torchrun():
        links = _connect("nccl" if cuda else "gloo")
        try:
            yield Team(distributed.get_rank(), distributed.get_world_size(), device, links, chosen)
        except TeamError:
            last_word = FOLLOWS
            raise
        except KeyboardInterrupt as interrupt:
            links.watch.say(last_word := INTERRUPTED)
            if lost := links.watch.blamed():  # torchrun sends SIGTERM to the others that it started
                raise TeamError(f"{lost}. {GO_ON}") from interrupt
            raise
        except Exception as error:
            last_word = str(error) or type(error).__name__
            raise
        finally:
            links.watch.leave(last_word)
            distributed.destroy_process_group()


def _connect(backend: str) -> _Links:
    """Find the other processes, in `CONNECT`."""
    if interface := _interface_towards(os.environ["MASTER_ADDR"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    found: list[_Links] = []
    failed: list[RuntimeError] = []

    def find() -> None:
        try:
            found.append(_links(backend))
        except RuntimeError as error:
            failed.append(error)

    # Gloo waits without end for a process that could not reach this one, and a thread can be left behind.
    finding = threading.Thread(target=find, daemon=True, name="connect")
    try:
        finding.start()
        finding.join(CONNECT.total_seconds())
    finally:
        if finding.is_alive():
            atexit.register(os._exit, 1)
    if not found:
        where = f"interface {os.environ.get('GLOO_SOCKET_IFNAME', 'of the host name')}"
        raise TeamError(
            f"rank {os.environ['RANK']} on {socket.gethostname()} cannot reach the other processes ({where}): every "
            "machine must reach every other's ports; GLOO_SOCKET_IFNAME names the network interface to use"
        ) from (failed[0] if failed else None)
    return found[0]


def _links(backend: str) -> _Links:
    distributed.init_process_group(backend, timeout=CONNECT)
    control = distributed.new_group(backend="gloo")
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=CONNECT, wait_for_workers=False)
    return _Links(control, Watch(store, distributed.get_rank(), distributed.get_world_size()))


def _interface_towards(host: str) -> str | None:
    """The network interface that leads to `host`, None if that cannot be told.

    Left alone gloo takes the address of the host's own name, which on Debian is 127.0.1.1: of no use to other machines.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((host, 9))  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
        except OSError:
            return None
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, 0x8915, name.encode().ljust(256, b"\0"))  # SIOCGIFADDR
            except OSError:  # it has no IPv4 address
                continue
            if answer[20:24] == own:
                return name
    return None


@contextmanager
def _told_to_torchrun() -> Iterator[None]:
    """Put an error's line into torchrun's report, which otherwise says that nothing is known."""
    try:
        yield
    except NstError as error:
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            said = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(file).write_text(json.dumps({"message": said}))
        raise


def _spread(flat: Tensor, tensors: list[Tensor]) -> None:
    """Put what was laid end to end back into the tensors."""
    for one, values in zip(tensors, torch.split(flat, [one.numel() for one in tensors]), strict=True):
        one.copy_(values.view_as(one))
