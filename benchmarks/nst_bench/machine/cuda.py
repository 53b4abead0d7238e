"""The GPU that PyTorch and the engines use, or the reason why they cannot."""

from __future__ import annotations

import torch

from nst_core.devices import Device
from nst_core.errors import InputError


def torch_device(device: Device) -> torch.device:
    """The chosen device for PyTorch. Raises `InputError` if PyTorch cannot use the GPU that the driver has."""
    if device.gpu is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InputError(f"{why_no_cuda()}, which the driver has ({device.gpu.name}): install PyTorch for CUDA")
    return torch.device("cuda")


def why_no_cuda() -> str:
    """Why PyTorch uses no GPU."""
    build = "is built without CUDA" if torch.version.cuda is None else f"for CUDA {torch.version.cuda} finds none"
    return f"torch {torch.__version__} {build} and cannot use a GPU"
