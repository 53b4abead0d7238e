"""Packages and drivers that fit or do not, by the metadata of packages that are not installed."""

import sys
from pathlib import Path

import pytest

from nst_core.devices import Gpu
from nst_core.distribution import install_command
from nst_core.errors import InputError
from nst_core.packages.cuda import check_driver

CUDA_13 = ('nvidia-cuda-nvrtc~=13.0; extra == "cuda"', 'nvidia-cuda-runtime~=13.0; extra == "cuda"')
CUDA_12 = ('nvidia-cuda-nvrtc-cu12~=12.0; extra == "cuda"', 'nvidia-cuda-runtime-cu12~=12.0; extra == "cuda"')
"""What onnxruntime-gpu 1.31.1 and 1.24.4 require."""


def card(driver: str, *cuda: int) -> Gpu:
    major, minor = cuda
    return Gpu(0, "NVIDIA L4", "GPU-0", "8.9", 24 << 30, driver, (major, minor))


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that are found in place of the real ones."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def install(folder: Path, name: str, version: str, *requires: str) -> None:
    record = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    record.parent.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {line}" for line in requires)]
    record.write_text("\n".join(lines) + "\n")


def test_packages_of_cuda_13_on_a_driver_of_cuda_12(packages: Path) -> None:
    install(packages, "onnxruntime-gpu", "1.31.1", *CUDA_13)
    with pytest.raises(InputError) as raised:
        check_driver(card("550.54", 12, 4))
    assert str(raised.value) == (
        "the driver 550.54 supports CUDA 12.4, but onnxruntime-gpu 1.31.1 is built for CUDA 13; run "
        + install_command("gpu-cu12")
    )


@pytest.mark.parametrize(("name", "version"), [("tensorrt-cu13", "10.15.1.29"), ("cuda-bindings", "13.0.3")])
def test_other_packages_of_cuda_13(packages: Path, name: str, version: str) -> None:
    install(packages, name, version)
    with pytest.raises(InputError, match=f"but {name} {version} is built for CUDA 13; run pip install"):
        check_driver(card("550.54", 12, 4))
    check_driver(card("580.65.06", 13, 0))


def test_a_driver_takes_its_own_cuda_and_older_ones(packages: Path) -> None:
    install(packages, "onnxruntime-gpu", "1.24.4", *CUDA_12)
    install(packages, "tensorrt-cu12", "10.15.1.29")
    install(packages, "cuda-bindings", "12.9.10")
    for driver in (card("525.60", 12, 0), card("550.54", 12, 4), card("580.65.06", 13, 0), card("600.1", 14, 0)):
        check_driver(driver)


def test_a_driver_that_is_too_old_for_all(packages: Path) -> None:
    install(packages, "onnxruntime-gpu", "1.24.4", *CUDA_12)
    with pytest.raises(InputError, match=r"supports CUDA 11\.4, but .* for CUDA 12; update the driver .*--device cpu"):
        check_driver(card("470.82", 11, 4))


def test_a_package_that_does_not_say_what_it_is_built_for(packages: Path) -> None:
    install(packages, "onnxruntime-gpu", "1.17.0", "numpy>=1.21")
    check_driver(card("525.60", 12, 0))


def test_without_any_of_them_nothing_is_wrong(packages: Path) -> None:
    check_driver(card("470.82", 11, 4))
