"""A training over two machines: two network namespaces with a cable between them and names of their own.

Where namespaces are not possible (no root, no iproute2), two addresses of this machine take their place.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nst_trainer.checkpoint import Checkpoint, load

ITERATIONS = 12
TIMEOUT_SECONDS = 600.0
"""Timeout for a machine to do what it should."""


@dataclass
class Machine:
    """A machine: the prefix of its commands, the folder that is its disk, and its processes."""

    name: str
    prefix: list[str]
    disk: Path
    process: "subprocess.Popen[bytes] | None" = None
    worker: int = 0

    @property
    def errors(self) -> str:
        return (self.disk / "stderr").read_text() if (self.disk / "stderr").exists() else ""

    @property
    def events(self) -> str:
        return (self.disk / "events").read_text() if (self.disk / "events").exists() else ""

    def message(self) -> str:
        """Return the line of the training's own error."""
        lines = [line for line in self.errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.errors
        return lines[0]


def _namespaces() -> bool:
    """Return whether this system can simulate two machines."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "hostname", "other"], capture_output=True)
    return tried.returncode == 0


NAMESPACES = _namespaces()


@pytest.fixture(params=["two namespaces" if NAMESPACES else "two addresses"])
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine, str]]:
    """Machines a and b, and the address of a; all is removed afterwards."""
    disks = {name: tmp_path / name for name in "ab"}
    for disk in disks.values():
        disk.mkdir()
    made: list[Machine] = []
    ours = {name: f"nst-{os.getpid()}-{name}" for name in "ab"}
    try:
        if NAMESPACES:
            _cable(ours)
            rename = 'hostname "$0"; exec "$@"'
            for name in "ab":
                inside = ["ip", "netns", "exec", ours[name], "unshare", "--uts", "sh", "-c", rename, name]
                made.append(Machine(name, inside, disks[name]))
            yield made[0], made[1], "10.77.0.1"
        else:
            made = [Machine(name, [], disks[name]) for name in "ab"]
            yield made[0], made[1], "127.0.0.1"
    finally:
        for machine in made:
            for pid in (machine.process.pid if machine.process else 0, machine.worker):
                if pid and _runs(pid):
                    os.kill(pid, signal.SIGKILL)
            if machine.process:
                machine.process.wait()
        if NAMESPACES:
            for name in ours.values():
                subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def _cable(names: dict[str, str]) -> None:
    """Two namespaces, and a pair of interfaces between them."""
    commands = [f"netns add {name}" for name in names.values()]
    commands.append(f"link add cable netns {names['a']} type veth peer name cable netns {names['b']}")
    for number, name in enumerate(names.values(), 1):
        commands.append(f"-n {name} address add 10.77.0.{number}/24 dev cable")
        commands += [f"-n {name} link set {interface} up" for interface in ("lo", "cable")]
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@pytest.fixture
def photos(tmp_path: Path, photographs: dict[str, Path]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        (folder / f"{name}.jpg").symlink_to(photographs[name])
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(
    machines: tuple[Machine, Machine, str],
    style: Path,
    photos: Path,
    *more: str,
    torchrun: bool = True,
    **of_b: str,
) -> None:
    """The same command on both, as in docs/guides/train.md; `of_b` are options that differ on b.

    Without `torchrun` its variables are given by hand, which is the same to the training, and quicker.
    """
    a, b, address = machines
    port = str(_free_port())
    for number, machine in enumerate((a, b)):
        options = {"width": "0.125", "crop": "64", "style-size": "64", "batch": "2", "every": "50"}
        options |= {"iterations": str(ITERATIONS), "workers": "1"} | (of_b if machine is b else {})
        own = ["--local-addr", f"127.0.0.{number + 1}"] if not machine.prefix else []
        launcher = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)]
        command = [*machine.prefix, sys.executable]
        if torchrun:
            command += [*launcher, "--master-addr", address, "--master-port", port, *own]
        command += ["-m", "nst_trainer", "--style", str(style), "--photos", str(photos), "--output", "style.pth"]
        command += ["--progress-json", "events", *(f"--{name}={value}" for name, value in options.items()), *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        if not torchrun:
            environment |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": port}
        (machine.disk / "events").unlink(missing_ok=True)
        with (machine.disk / "stderr").open("wb") as errors:
            machine.process = subprocess.Popen(command, cwd=machine.disk, env=environment, stderr=errors)
        machine.worker = 0


def _until(true: Callable[[], bool], what: str, *machines: Machine) -> None:
    end = time.monotonic() + TIMEOUT_SECONDS
    while not true():
        assert time.monotonic() < end, f"{what}: {[machine.errors for machine in machines]}"
        time.sleep(0.01)


def _under_way(a: Machine, b: Machine) -> None:
    """Wait for the first iteration, and find the processes that train."""
    _until(lambda: "progress" in a.events or _ended(a), "the first iteration", a, b)
    for machine in (a, b):
        assert machine.process, machine.name
        pid = machine.process.pid
        machine.worker = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def _ended(machine: Machine) -> bool:
    return machine.process is not None and machine.process.poll() is not None


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _all_gone(a: Machine, b: Machine) -> None:
    """Both machines end by themselves, unsuccessfully, and no process stays."""
    _until(lambda: _ended(a) and _ended(b) and not _runs(a.worker) and not _runs(b.worker), "the end", a, b)
    assert a.process and b.process
    assert a.process.returncode != 0
    assert b.process.returncode != 0


def _result(a: Machine, b: Machine) -> Checkpoint:
    _until(lambda: _ended(a) and _ended(b), "the training's end", a, b)
    assert a.process and b.process
    assert (a.process.returncode, b.process.returncode) == (0, 0), a.errors + b.errors
    return load(a.disk / "style.pth")


def test_a_lost_machine_stops_the_other_and_resume_goes_on_exactly(
    machines: tuple[Machine, Machine, str], photos: Path, photographs: dict[str, Path]
) -> None:
    """The process of b is killed, then the whole torchrun of a; the result equals an uninterrupted training's."""
    a, b, _ = machines
    style = photographs["chelsea"]
    _start(machines, style, photos, torchrun=False)
    undisturbed = _result(a, b)
    (a.disk / "style.pth").unlink()

    _start(machines, style, photos)
    _under_way(a, b)
    os.kill(b.worker, signal.SIGKILL)
    _all_gone(a, b)
    host = {machine.name: machine.name if machine.prefix else socket.gethostname() for machine in (a, b)}
    assert f"rank 1 on {host['b']} was lost" in a.message()
    assert "--resume" in a.message()
    report = a.errors.rsplit("Root Cause", 1)[1]
    assert a.message().removeprefix("error: ") in " ".join(report.split()), "torchrun's report says it, too"
    assert (a.disk / "style.pth.resume").exists()

    _start(machines, style, photos, "--resume")
    _under_way(a, b)
    assert a.process
    a.process.kill()
    _all_gone(a, b)
    assert f"torchrun on {host['a']}, which started rank 0, was lost" in a.message()
    assert f"rank 0 on {host['a']} " in b.message()

    assert "(most recent call last) ─" not in a.errors + b.errors, "no traceback of ours"
    _start(machines, style, photos, "--resume")
    result = _result(a, b)
    for term, value in undisturbed.metrics.items():
        if not term.startswith("held out"):  # a disturbed training is checked at other iterations, too
            assert result.metrics[term] == value, term
    assert result.training["iterations_done"] == ITERATIONS
    assert {path.name for path in a.disk.iterdir()} == {"style.pth", "style-preview.png", "stderr", "events"}
    assert {path.name for path in b.disk.iterdir()} == {"stderr"}, "rank 0 alone writes"


def test_machines_that_were_given_different_things_say_so(
    machines: tuple[Machine, Machine, str], photos: Path, photographs: dict[str, Path]
) -> None:
    a, b, _ = machines
    _start(machines, photographs["chelsea"], photos, torchrun=False, **{"style-size": "96"})
    _all_gone(a, b)
    for machine in (a, b):
        assert "--style-size: " in machine.message()
        assert "use the same on every machine" in machine.message()
    assert not list(a.disk.glob("*.pth*"))
