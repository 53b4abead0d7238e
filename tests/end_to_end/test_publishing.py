"""New versions under a running Triton, and the models that do not make a stylized image of a content image."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton

from nst_client import StyleClient
from nst_core.images import Pixels, fit, open_image, sample_photographs
from nst_export.modules import ServedModel, TextureModel
from nst_export.verification.examples import example_feeds
from nst_server.control import Control
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson, StyledNetwork, Ulyanov

from .serving import Models, Server, publish, run, serve, succeeded


def network(seed: int) -> StyledNetwork:
    torch.manual_seed(seed)
    return frozen(Johnson(width=0.125))


def stylized(version: StyledNetwork, content: Pixels) -> bytes:
    """What a version answers, by PyTorch."""
    with torch.no_grad():
        return ServedModel(version)(torch.from_numpy(content[None]))[0].numpy().tobytes()


def infer(server: Server, model: str, output: str, **arrays: np.ndarray) -> np.ndarray:
    """A request as any client of Triton makes it."""
    client = triton.InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://"))
    inputs = []
    for name, values in arrays.items():
        inputs.append(triton.InferInput(name, list(values.shape), "UINT8" if values.dtype == np.uint8 else "FP32"))
        inputs[-1].set_data_from_numpy(values)
    answer: np.ndarray = client.infer(model, inputs).as_numpy(output)
    client.close()
    return answer


class Callers:
    """Threads that ask for a stylized image again and again, and what they got.

    Their pauses are short, and leave processors to what is exported meanwhile.
    """

    def __init__(self, address: str, content: Pixels, count: int = 3) -> None:
        self.address, self.content = address, content
        self.answers: list[bytes] = []
        self.failures: list[Exception] = []
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self._call) for _ in range(count)]

    def __enter__(self) -> "Callers":
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self.ended.set()
        for thread in self.threads:
            thread.join()

    def _call(self) -> None:
        with StyleClient(self.address) as client:
            while not self.ended.wait(0.05):
                try:
                    self.answers.append(client.stylize(self.content, "swap").tobytes())
                except Exception as error:
                    self.failures.append(error)

    def wait_for(self, answer: bytes, seconds: float = 60.0) -> None:
        deadline = time.monotonic() + seconds
        while not any(alike(given, answer) for given in self.answers[-3:]):
            assert time.monotonic() < deadline, "the new version was never served"
            time.sleep(0.05)


def alike(left: bytes, right: bytes) -> bool:
    """The same image; batches and threads may round a value the other way."""
    first, second = (np.frombuffer(pixels, np.uint8).astype(int) for pixels in (left, right))
    return bool(np.abs(first - second).max() <= 1)


@pytest.fixture
def content() -> Pixels:
    return fit(open_image(sample_photographs()[0]), 64, 48).pixels


def local(repository: Path, content: Pixels) -> bytes:
    """What the newest version in the repository answers, without a server."""
    with StyleClient(f"local:{repository}") as client:
        return client.stylize(content, "swap").tobytes()


def test_versions_published_under_a_polling_triton_drop_no_request(tmp_path: Path, content: Pixels) -> None:
    """Three new versions while three callers go on asking; the last has another config too."""
    repository = tmp_path / "repo"
    versions = [network(seed) for seed in range(4)]
    expected = [stylized(version, content) for version in versions]
    publish(ServedModel(versions[0]), "swap", ("swap",), repository)
    server = serve(repository, tmp_path / "triton.log", "--poll", 1)
    try:
        with Callers(server.endpoints.grpc, content) as callers:
            callers.wait_for(expected[0])
            for version, answer, keep, instances in zip(
                versions[1:], expected[1:], (1, 0, None), (1, 1, 2), strict=True
            ):
                publish(ServedModel(version), "swap", ("swap",), repository, keep=keep, instances=instances)
                callers.wait_for(answer)
        assert not callers.failures, callers.failures[0]
        for given in set(callers.answers):
            assert any(alike(given, answer) for answer in expected), "an answer that no version gives"
        assert len(callers.answers) > 100
        assert sorted(path.name for path in (repository / "swap").iterdir()) == ["3", "4", "config.pbtxt"]
    finally:
        server.stop()


def test_a_running_server_is_asked_to_load(tmp_path: Path, content: Pixels) -> None:
    repository, checkpoints = tmp_path / "repo", tmp_path / "checkpoints"
    publish(ServedModel(network(0)), "swap", ("swap",), repository)
    server = serve(repository, tmp_path / "triton.log")
    try:
        checkpoints.mkdir()
        for name, seed in (("swap", 2), ("new", 9)):
            save(Checkpoint(network(seed), (name,)), checkpoints / f"{name}.pth")
        output = succeeded(run("nst-export", checkpoints, "-r", repository, "--load", server.endpoints.grpc))
        assert "serves swap version 2" in output and "serves new version 1" in output
        with StyleClient(server.endpoints.grpc) as client:
            assert [style.name for style in client.styles()] == ["new", "swap"]
            assert client.stylize(content, "swap").tobytes() == local(repository, content)
            publish(ServedModel(network(3)), "swap", ("swap",), repository)
            ready = Control.at(server.endpoints.http).load("swap", "3")
            assert [model.version for model in ready] == ["3"]
            assert client.stylize(content, "swap").tobytes() == local(repository, content)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def everything(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, TextureModel]]:
    """A Triton with a model in two parts and a texture network."""
    folder = tmp_path_factory.mktemp("everything")
    for part in ("large", "large_statistics", "large_tiled"):
        shutil.copytree(models.repository / part, folder / "repo" / part)
    torch.manual_seed(0)
    texture = frozen(Ulyanov(texture=True))
    save(Checkpoint(texture, ("stone",)), folder / "stone.pth")
    succeeded(run("nst-export", folder / "stone.pth", "-r", folder / "repo"))
    server = serve(folder / "repo", folder / "triton.log")
    yield server, TextureModel(texture).eval()
    server.stop()


def test_both_parts_are_served_and_make_the_whole_image(everything: tuple[Server, TextureModel]) -> None:
    server, _ = everything
    content = fit(open_image(sample_photographs()[1]), 200, 152).pixels[None]
    weights = np.array([[0.25, 0.75]], np.float32)
    statistics = infer(server, "large_statistics", "statistics", image=content, style_weights=weights)
    tiled = infer(server, "large_tiled", "stylized", image=content, statistics=statistics, style_weights=weights)
    whole = infer(server, "large", "stylized", image=content, style_weights=weights)
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_a_texture_is_served_from_noise(everything: tuple[Server, TextureModel]) -> None:
    server, model = everything
    feeds = example_feeds(model.inputs, [(2, 64, 96)])[0]
    wanted = model(*(torch.from_numpy(feeds[spec.name]) for spec in model.inputs)).numpy()
    answer = infer(server, "stone", "texture", **feeds)
    assert answer.shape == (2, 64, 96, 3)
    assert np.abs(answer.astype(int) - wanted).max() <= 1
    assert np.abs(answer[0].astype(int) - answer[1]).mean() > 1


def test_only_what_stylizes_content_images_is_a_style(everything: tuple[Server, TextureModel]) -> None:
    server, _ = everything
    with StyleClient(server.endpoints.grpc) as client:
        assert [style.name for style in client.styles()] == ["a", "b"]
