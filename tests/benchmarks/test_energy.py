"""Energy an image: a fake driver that counts what its card draws, on a clock of the test's own."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from nst_bench import report
from nst_bench.cli import app
from nst_bench.machine import gpu
from nst_bench.suite import Context, Document
from nst_bench.suites import energy
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_trainer.checkpoint import Checkpoint

IDLE = 70.0
"""Watts of the card when nothing runs."""


@pytest.fixture
def clock(driver: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Let time pass, in which the card draws so many watts; where the program sleeps it draws `IDLE`."""
    now = 100.0

    def passes(seconds: float, watts: float) -> None:
        nonlocal now
        now += seconds
        driver.works(seconds, watts)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda seconds: passes(seconds, IDLE))
    return passes


def test_a_block_is_counted_by_the_card(clock: Callable[[float, float], None], card: Device) -> None:
    done: list[int] = []

    def work(pieces: int) -> None:
        clock(0.02 * pieces, 300.0)
        done.append(pieces)

    assert card.gpu is not None
    meter = energy.Meter(card.gpu, 2.0)
    block = meter.block(work, 4.0)
    assert meter.idle_watts == pytest.approx(IDLE)
    assert done == [8, 8, 200], "what runs first is not counted"
    assert block == {"pieces": 200, "seconds": pytest.approx(4.0), "watts": pytest.approx(300.0)}


def test_joules_an_image_of_the_network_and_of_the_optimisation(
    clock: Callable[[float, float], None],
    card: Device,
    monkeypatch: pytest.MonkeyPatch,
    small_checkpoint: Checkpoint,
    measured: Callable[..., Document],
) -> None:
    """A network of 1 ms at 300 W, and an iteration of 5 ms at 400: 0.3 J, and 500 x 2."""

    def drawing(seconds: float, watts: float) -> Callable[[int], None]:
        return lambda pieces: clock(seconds * pieces, watts)

    def works(*_: Any) -> Iterator[tuple[str, float, Any]]:
        yield energy.NETWORK, 1.0, drawing(0.001, 300.0)
        yield f"{energy.GATYS}, 500 iterations", 1.0 / energy.ITERATIONS, drawing(0.005, 400.0)

    monkeypatch.setattr(energy, "_works", works)
    served: Any = SimpleNamespace(model="seven", exported=SimpleNamespace(precision="fp16"))
    document = measured(energy.SUITE, Context(card, energy.EnergyEffort()), small_checkpoint, served)
    network, gatys = document["rows"]
    assert (network["pieces"], gatys["pieces"]) == (4000, 800)
    assert (network["joules"], gatys["joules"]) == (pytest.approx(0.3), pytest.approx(1000.0))
    assert (network["watts"], gatys["watts"]) == (pytest.approx(300.0), pytest.approx(400.0))
    assert gatys["ratio"] == pytest.approx(1000 / 0.3)
    assert document["idle_watts"] == pytest.approx(IDLE) and document["idle_subtracted"] is False
    text = report.markdown(document)
    assert "The idle power of 70 W is included, not subtracted." in text
    assert "| 512² | Gatys, 500 iterations | 1,000 | **3,333** | 400 | 800 | 4.0 |" in text


def test_without_a_counter_there_is_a_reason(driver: Any, card: Device) -> None:
    driver.refuses.add("nvmlDeviceGetTotalEnergyConsumption")
    assert card.gpu is not None
    with pytest.raises(gpu.EnergyError, match=r"H100.*: the driver does not count its energy \(NVML: Not Supported\)"):
        energy.Meter(card.gpu, 1.0)
    assert driver.opened == 0


def test_without_a_gpu_there_is_a_reason(cpu: Device, small_checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no NVIDIA GPU \(for this test\)"):
        energy.SUITE.run(Context(cpu, energy.EnergyEffort()))
    result = CliRunner().invoke(app, ["energy", "--device", "cpu", "-r", str(tmp_path)])
    assert result.exit_code == 1
    assert "energy is only measured on a GPU (chosen with --device cpu)" in result.stderr


def test_clocks_are_those_that_the_driver_gives(driver: Any, card: Device) -> None:
    assert card.gpu is not None
    everything = gpu.clocks(card.gpu)
    assert everything == {
        "sm_clock_mhz": 1980,
        "highest_sm_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "power_limit_w": 700,
        "temperature_c": 41,
    }
    driver.refuses.add("nvmlDeviceGetClockInfo")
    assert gpu.clocks(card.gpu) == {
        name: everything[name] for name in ("highest_sm_clock_mhz", "power_limit_w", "temperature_c")
    }


@pytest.mark.gpu
def test_the_real_counter_goes_on() -> None:
    import torch

    from nst_core.devices import choose

    device = choose("gpu")
    assert device.gpu is not None
    before = gpu.joules(device.gpu)
    a = torch.rand(8192, 8192, device="cuda")
    for _ in range(50):
        a @ a
    torch.cuda.synchronize()
    time.sleep(0.3)
    assert gpu.joules(device.gpu) > before
