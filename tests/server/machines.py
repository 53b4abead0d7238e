"""Machines with an NVIDIA GPU, as `nst_core.devices` would describe them, and environments in Triton's place."""

import json
import os
import sys
from pathlib import Path

from nst_core.devices import Device, Gpu

CPU = Device("cpu", "no NVIDIA GPU (NVML: Driver Not Loaded)")


def card(cuda: tuple[int, int] = (13, 0), driver: str = "580.65.06") -> Device:
    gpu = Gpu(0, "NVIDIA H100 80GB HBM3", "GPU-0", "9.0", 80 << 30, driver, cuda)
    return Device("gpu", "NVIDIA H100 80GB HBM3 (compute capability 9.0)", gpu)


H100 = card()


def program(path: Path, text: str) -> Path:
    """A Python program that can be called by its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -S\n{text}")
    path.chmod(0o755)
    return path


def config(folder: Path, text: str, *, version: int = 1, files: tuple[str, ...] = ("model.onnx",)) -> Path:
    """A model's folder with its `config.pbtxt` and a version; the version's folder."""
    (folder / str(version)).mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text)
    for name in files:
        (folder / str(version) / name).write_bytes(os.urandom(8))
    return folder / str(version)


def tensorrt(folder: Path, profile: str = "16x16/512x512/4x1920x1920", **options: object) -> Path:
    """A model as `nst-export --for tensorrt` writes it where there is no GPU."""
    parameters = {"profile": profile, "multiple": "4"}
    text = 'backend: "tensorrt"\ninstance_group { kind: KIND_GPU count: 1 }\n' + "".join(
        f'parameters {{ key: "{key}" value: {{ string_value: {json.dumps(value)} }} }}\n'
        for key, value in parameters.items()
    )
    return config(folder, text, **options)  # type: ignore[arg-type]
