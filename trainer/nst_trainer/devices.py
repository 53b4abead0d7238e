"""PyTorch's device for a `--device` option."""

from __future__ import annotations

import torch

from nst_core.devices import Device, DeviceChoice, choose
from nst_core.errors import InputError


def choose_device(wanted: DeviceChoice = "auto") -> tuple[torch.device, Device]:
    """PyTorch's device for `wanted`, and the choice with its reason.

    A GPU must be one that this environment's PyTorch can use: else `auto` is the CPU, and `gpu` raises `InputError`.
    """
    chosen = choose(wanted)
    if chosen.gpu is None:
        return torch.device("cpu"), chosen
    if torch.cuda.is_available():
        return torch.device("cuda"), chosen
    if torch.version.cuda is None:
        missing = "is built without CUDA; pip install --force-reinstall torch takes PyPI's, which is built with it"
    else:
        newest = ".".join(map(str, chosen.gpu.cuda))
        missing = (
            f"is built for CUDA {torch.version.cuda}, and the driver {chosen.gpu.driver} runs CUDA up to {newest}; "
            "take a newer driver, or PyTorch for an older CUDA (https://pytorch.org/get-started)"
        )
    reason = f"{chosen.gpu.name} is there, but PyTorch {torch.__version__} {missing}"
    if wanted == "gpu":
        raise InputError(f"--device gpu: {reason}")
    return torch.device("cpu"), Device("cpu", reason)
