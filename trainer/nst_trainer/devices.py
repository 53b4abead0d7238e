"""Choose PyTorch's device for a `--device` option."""

from __future__ import annotations

import torch

from nst_core.devices import Device, DeviceChoice, choose
from nst_core.errors import InputError


def choose_device(wanted: DeviceChoice = "auto") -> tuple[torch.device, Device]:
    """Return PyTorch's device for `wanted`, and the choice with its reason.

    If this environment's PyTorch cannot use the GPU, `auto` chooses the CPU and `gpu` raises `InputError`.
    """
    chosen = choose(wanted)
    if chosen.gpu is None:
        return torch.device("cpu"), chosen
    if torch.cuda.is_available():
        return torch.device("cuda"), chosen
    if torch.version.cuda is None:
        missing = "is built without CUDA; run pip install --force-reinstall torch for PyPI's build, which has it"
    else:
        newest = ".".join(map(str, chosen.gpu.cuda))
        missing = (
            f"is built for CUDA {torch.version.cuda}, and the driver {chosen.gpu.driver} supports CUDA up to {newest}; "
            "install a newer driver, or PyTorch for an older CUDA (https://pytorch.org/get-started)"
        )
    reason = f"this machine has {chosen.gpu.name}, but PyTorch {torch.__version__} {missing}"
    if wanted == "gpu":
        raise InputError(f"--device gpu: {reason}")
    return torch.device("cpu"), Device("cpu", reason)
