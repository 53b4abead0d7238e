"""The methods side by side, the speed-up at equal loss, and the ceiling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nst_bench.drawing.speedup import GATYS
from nst_bench.equal_loss import Comparison, johnson_baseline
from nst_bench.machine import description
from nst_bench.machine.gpu import torch_device, why_no_cuda
from nst_bench.machine.roofline import Workload, network_workload
from nst_bench.served.exported import ExportedModel
from nst_bench.suite import Context, Document
from nst_bench.suites import methods, speedup
from nst_core.devices import Device
from nst_core.errors import InputError
from nst_core.images import fit, open_image, sample_photographs
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.images import to_tensor
from nst_trainer.networks import Johnson, Ulyanov
from nst_trainer.optimization.gatys import ImageOptimization
from nst_trainer.weights import vgg16_weights

CPU = torch.device("cpu")


def test_arithmetic_and_memory_are_those_of_the_layers() -> None:
    """By hand: kernel, channels in, channels out, side of the result."""
    network, size = frozen(Johnson(width=0.5, blocks=1)), 66  # padded to 68 x 68
    layers = [(9, 3, 16, 68), (3, 16, 32, 34), (3, 32, 64, 17), (3, 64, 64, 17), (3, 64, 64, 17)]
    layers += [(3, 64, 32, 34), (3, 32, 16, 68), (9, 16, 3, 68)]
    gflop = sum(2 * k**2 * before * after * side**2 for k, before, after, side in layers) / 1e9
    maps = sum(after * side**2 for _, _, after, side in layers)
    weights = sum(parameter.numel() for parameter in network.parameters())
    work = network_workload(network, size)
    assert work.gflop == pytest.approx(gflop)
    assert work.gigabytes == pytest.approx((8 * maps + 4 * weights + 6 * size**2) / 1e9)
    assert next(network.parameters()).device.type == "cpu"


def test_several_styles_and_other_networks_are_counted() -> None:
    assert network_workload(frozen(Johnson(width=0.125, styles=3)), 64).gflop > 0
    assert network_workload(frozen(Ulyanov()), 64).gflop > 0


def test_shares_are_of_the_device_that_ran() -> None:
    found = {
        "matrix_product_gflops": 100.0,
        "memory_gbs": 10.0,
        "cuda": {"matrix_product_gflops": 1e3, "memory_gbs": 1e2},
    }
    shares = Workload(50.0, 1.0).shares(found, "CPU", 1000.0)
    assert shares == {"gflop": 50.0, "share_of_matrix_rate": 0.5, "share_of_bandwidth": 0.1}
    assert Workload(50.0, 1.0).shares(found, "GPU", 1000.0)["share_of_bandwidth"] == pytest.approx(0.01)


def test_the_machine_says_its_rates_and_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(description, "gpus", lambda: ([], "no NVIDIA GPU (for this test)"))
    found = description.describe()
    assert found["matrix_product_gflops"] > 0 and found["memory_gbs"] > 0
    assert found["gpu"] is None and found["cuda"] == {"missing": "no NVIDIA GPU (for this test)"}


def test_a_gpu_that_pytorch_cannot_use_is_described_all_the_same(
    monkeypatch: pytest.MonkeyPatch, driver: Any, card: Device
) -> None:
    monkeypatch.setattr(description, "gpus", lambda: ([card.gpu], ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    driver.refuses.add("nvmlDeviceGetClockInfo")
    found = description.describe()
    assert found["gpu"] == "NVIDIA H100 80GB HBM3"
    assert found["cuda"] == {
        **{"compute_capability": "9.0", "memory_gib": 80.0, "driver": "580.159.04", "driver_cuda": "13.0"},
        **{"highest_sm_clock_mhz": 1980, "power_limit_w": 700, "temperature_c": 41, "unmeasured": why_no_cuda()},
    }
    assert Workload(50.0, 1.0).shares(found, "GPU", 1000.0) == {"gflop": 50.0}
    assert driver.opened == 0


@pytest.mark.gpu
def test_the_gpu_says_its_rates() -> None:
    found = description.describe()
    assert found["cuda"]["tf32_gflops"] > 0 and found["cuda"]["precision"]["matrix_products"]
    assert found["cuda"]["sm_clock_mhz"] > 0 and found["cuda"]["driver"]


def test_each_method_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device, measured: Callable[..., Document]
) -> None:
    history = {"crop": 128, "seconds": 90.0, "device": "H100", "style_images": ["a.jpg", "b.jpg", "c.jpg"]}
    trained = Checkpoint(frozen(Johnson(width=0.125, styles=3)), ("a", "b", "c"), history, {"held out total": 2.5})
    save(trained, tmp_path / "three.pth")
    monkeypatch.setattr(methods, "UNTRAINED", {methods.MANY: methods.UNTRAINED[methods.MANY]})
    context = Context(cpu, methods.MethodsEffort((64,), 2))
    document = measured(methods.SUITE, context, checkpoints=[tmp_path / "three.pth"])
    gatys, many = document["rows"]
    assert (gatys["method"], gatys["n"], gatys["trained"]) == (methods.GATYS, 2, False)
    assert gatys["image_seconds"] == pytest.approx(methods.ITERATIONS * gatys["median"] / 1000)
    assert many["image_seconds"] == pytest.approx(many["median"] / 1000)
    assert gatys["peak_mib"] > 100 and many["peak_mib"] > 100
    assert gatys["gflop"] > many["gflop"] > 0
    described = {method["method"]: method for method in document["methods"]}
    assert described[methods.MANY]["styles"] == 3
    assert described[methods.MANY]["loss"] == {"value": 2.5, "size": 128, "photos": 4, "of": "three"}
    learned = {"seconds": 30.0, "from": "three's training of 3 style(s), H100"}
    assert described[methods.MANY]["new_style"] == learned
    assert "missing" in described[methods.GATYS]["loss"]


def test_what_stands_for_a_method() -> None:
    shown = {method.name: method for method in methods.methods([])}
    assert list(shown) == [methods.GATYS, methods.JOHNSON, methods.FAST, methods.ULYANOV, methods.MANY, methods.ADDED]
    assert all(method.trained is None for method in shown.values())
    for method in shown.values():
        missing = methods.loss_of(method).get("missing", "")
        assert "no trained checkpoint" in missing or method.name == methods.GATYS


def test_a_style_that_was_added_is_a_method_of_its_own(tmp_path: Path) -> None:
    for name, history in (("many", {}), ("added", {"before": {"photos": 9}, "style_images": ["b.jpg"]})):
        save(Checkpoint(frozen(Johnson(width=0.125, styles=2)), ("a", "b"), history), tmp_path / f"{name}.pth")
    shown = {method.name: method for method in methods.methods([tmp_path / "many.pth", tmp_path / "added.pth"])}
    assert (shown[methods.MANY].source, shown[methods.ADDED].source) == ("many", "added")
    begun = Checkpoint(frozen(Johnson(width=0.125)), ("a",), {"seconds": 9.0, "from": "b.pth"})
    again = methods.new_style_of(methods.Method(methods.JOHNSON, begun.network, begun, "a"))
    assert again["from"] == "a's last training of 1 style(s), CPU, starting from b.pth"
    assert methods.new_style_of(shown[methods.ADDED]) == {"missing": "added has no record of its training time"}


def test_the_optimisation_runs_where_the_model_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu: Device, card: Device
) -> None:
    (tmp_path / "a").mkdir()
    config = tmp_path / "a" / "config.pbtxt"
    with pytest.raises(InputError, match="has no model 'a'"):
        ExportedModel(tmp_path / "a")
    config.write_text("instance_group { kind: KIND_CPU }")
    ExportedModel(tmp_path / "a").check_device(cpu)
    with pytest.raises(InputError, match=r"exported for the CPU, .*nst export --device gpu, or .* --device cpu"):
        ExportedModel(tmp_path / "a").check_device(card)
    config.write_text("instance_group { kind: KIND_GPU }")
    ExportedModel(tmp_path / "a").check_device(card)
    with pytest.raises(InputError, match=r"exported for the GPU, .* the CPU \(no NVIDIA GPU \(for this test\)\)"):
        ExportedModel(tmp_path / "a").check_device(cpu)
    assert torch_device(cpu) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"torch .* cannot use a GPU \(NVIDIA H100.*; install"):
        torch_device(card)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert torch_device(card) == torch.device("cuda")


def test_the_speed_up_at_equal_loss(photographs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose loss the fourth iteration reaches, and one that the optimisation does not reach."""
    figures = [
        {"engine": GATYS, "size": 64, "phase": "steady", "median": 300.0},
        {"engine": speedup.SERVED[0], "size": 64, "phase": "steady", "median": 5.0},
        {"engine": speedup.SERVED[2], "size": 64, "phase": "steady", "median": 2.5},
    ]
    checkpoint = Checkpoint(frozen(Johnson(width=0.125)), ("coffee",), {"style_size": 64})
    effort = speedup.SpeedupEffort(1, 1, 1, equal_loss=(64,))
    style, weights = photographs["coffee"], vgg16_weights()
    content = to_tensor(fit(open_image(sample_photographs()[0]), 64, 64))
    run = ImageOptimization(content, [to_tensor(open_image(style))], johnson_baseline(checkpoint, 64, 6), weights)
    curve: list[float] = []
    while run.step(lambda iteration: curve.append(iteration.total)):
        pass
    goal = 1.001 * curve[3]
    monkeypatch.setattr(Comparison, "losses", lambda self, run: {"loss": goal})
    (row,) = speedup.at_equal_loss(checkpoint, style, 64, effort, weights, figures, CPU)
    assert row["iteration"] == next(number for number, loss in enumerate(curve, 1) if loss <= goal)
    assert row["gatys_seconds"] == pytest.approx(0.3 * row["iteration"])
    assert row["ratio"] == pytest.approx(60.0 * row["iteration"])
    assert row["shared_memory_ratio"] == pytest.approx(2 * row["ratio"])
    monkeypatch.setattr(speedup, "LONGEST", 2)
    monkeypatch.setattr(Comparison, "losses", lambda self, run: {"loss": 0.0})
    (row,) = speedup.at_equal_loss(checkpoint, style, 64, effort, weights, figures, CPU)
    assert row["missing"].endswith("after 2 iterations")
    (row,) = speedup.at_equal_loss(checkpoint, style, 128, effort, weights, figures, CPU)
    assert row == {"size": 128, "missing": "equal loss is not measured at this size"}
    (row,) = speedup.at_equal_loss(checkpoint, None, 64, effort, weights, figures, CPU)
    assert row["missing"] == "needs the style image to compare losses; give the style image with --style"
