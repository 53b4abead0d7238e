import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from nst_core import devices
from nst_core.devices import Gpu
from nst_core.engines import cuda
from nst_export.graph.conversion import export_onnx
from nst_export.modules import Exportable, ServedModel, StatisticsModel, TextureModel, TiledModel
from nst_trainer.checkpoint import frozen
from nst_trainer.networks import Fast, Johnson, StyledNetwork, Ulyanov


@dataclass
class Exported:
    """A module with random weights, and its plain ONNX file."""

    module: Exportable
    path: Path


def johnson(styles: int = 1, *, bounded: bool = True) -> StyledNetwork:
    torch.manual_seed(7)
    network = Johnson(width=0.125, styles=styles, bounded=bounded)
    for norm in network.norms():
        torch.nn.init.normal_(norm.weight, 1.0, 0.3)
        torch.nn.init.normal_(norm.bias, 0.0, 0.3)
    return frozen(network)


def fast() -> StyledNetwork:
    torch.manual_seed(7)
    return frozen(Fast(width=0.25))


def ulyanov(*, texture: bool) -> StyledNetwork:
    torch.manual_seed(7)
    return frozen(Ulyanov(texture=texture))


MODELS: dict[str, Callable[[], Exportable]] = {
    "johnson": lambda: ServedModel(johnson()),
    "foreign": lambda: ServedModel(johnson(bounded=False)),
    "several": lambda: ServedModel(johnson(3)),
    "fast": lambda: ServedModel(fast()),
    "ulyanov": lambda: ServedModel(ulyanov(texture=False)),
    "texture": lambda: TextureModel(ulyanov(texture=True)),
    "statistics": lambda: StatisticsModel(johnson(3)),
    "tiled": lambda: TiledModel(johnson(3)),
}
"""Every kind of exported module."""


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """One of `MODELS`, exported once for all tests."""
    folder = tmp_path_factory.mktemp("exported")

    @cache
    def export(name: str) -> Exported:
        module = MODELS[name]().eval()
        export_onnx(module, folder / f"{name}.onnx", {"styles": "seven", "multiple": str(module.network.multiple)})
        return Exported(module, folder / f"{name}.onnx")

    return export


GPU = Gpu(0, "NVIDIA Fake GPU", "GPU-0", "9.0", 80 << 30, "580.1", (13, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    """A fake GPU for the driver, CUDA and TensorRT, and a cache of its own."""
    fakes = Path(__file__).parents[1] / "fakes" / "gpu"

    def forget() -> None:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("cuda", "tensorrt")]:
            del sys.modules[name]
        cuda.runtime.cache_clear()

    monkeypatch.setattr(devices, "gpus", lambda: ([GPU], ""))
    monkeypatch.setenv("NST_CACHE", str(tmp_path / "cache"))
    forget()
    monkeypatch.syspath_prepend(str(fakes))
    yield GPU
    forget()
