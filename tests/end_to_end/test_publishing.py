"""New versions under a running Triton, and the models that are not pictures in, pictures out."""

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
from nst_export.modules import TextureModel
from nst_export.verification.examples import example_feeds
from nst_trainer.checkpoint import Checkpoint, frozen, save
from nst_trainer.networks import Johnson, Ulyanov

from .serving import Server, run, serve, succeeded


def checkpoint(path: Path, seed: int, styles: tuple[str, ...] = ("swap",)) -> Path:
    torch.manual_seed(seed)
    save(Checkpoint(frozen(Johnson(width=0.125, styles=len(styles))), styles), path)
    return path


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
    """Threads that ask for a picture again and again, and what they got.

    Their pauses are short, and leave processors to what is exported meanwhile.
    """

    def __init__(self, address: str, picture: Pixels, count: int = 3) -> None:
        self.address, self.picture = address, picture
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
                    self.answers.append(client.stylize(self.picture, "swap").tobytes())
                except Exception as error:
                    self.failures.append(error)

    def wait_for(self, what: bytes, seconds: float = 60.0) -> None:
        """Until an answer is `what`."""
        deadline = time.monotonic() + seconds
        while not any(alike(answer, what) for answer in self.answers[-3:]):
            assert time.monotonic() < deadline, "the new version was never served"
            time.sleep(0.1)


def alike(one: bytes, other: bytes) -> bool:
    """The same picture; batches and threads may round a level the other way."""
    first, second = (np.frombuffer(pixels, np.uint8).astype(int) for pixels in (one, other))
    return bool(np.abs(first - second).max() <= 1)


@pytest.fixture
def picture() -> Pixels:
    return fit(open_image(sample_photographs()[0]), 64, 48).pixels


def local(repository: Path, picture: Pixels) -> bytes:
    """What the newest version in the repository answers, without a server."""
    with StyleClient(f"local:{repository}") as client:
        return client.stylize(picture, "swap").tobytes()


def test_versions_published_under_a_polling_triton_drop_no_request(tmp_path: Path, picture: Pixels) -> None:
    """Three new versions while three callers go on asking; the last has another config too."""
    repository = tmp_path / "repo"
    export = ("nst-export", tmp_path / "swap.pth", "-r", repository)
    checkpoint(tmp_path / "swap.pth", 0)
    succeeded(run(*export))
    expected = [local(repository, picture)]
    server = serve(repository, tmp_path / "triton.log", "--poll", 1)
    try:
        with Callers(server.endpoints.grpc, picture) as callers:
            callers.wait_for(expected[0])
            for version, options in ((2, ("--keep", 1)), (3, ("--keep", 0)), (4, ("--instances", 2))):
                checkpoint(tmp_path / "swap.pth", version)
                succeeded(run(*export, *options))
                expected.append(local(repository, picture))
                callers.wait_for(expected[-1])
        assert not callers.failures, callers.failures[0]
        for answer in set(callers.answers):
            assert any(alike(answer, one) for one in expected), "an answer that no version gives"
        assert len(callers.answers) > 100
    finally:
        server.stop()


def test_a_running_server_is_asked_to_load(tmp_path: Path, picture: Pixels) -> None:
    repository = tmp_path / "repo"
    checkpoint(tmp_path / "swap.pth", 0)
    succeeded(run("nst-export", tmp_path / "swap.pth", "-r", repository))
    server = serve(repository, tmp_path / "triton.log")
    try:
        for number, address in ((2, server.endpoints.grpc), (3, server.endpoints.http)):
            checkpoint(tmp_path / "swap.pth", number)
            said = succeeded(run("nst-export", tmp_path / "swap.pth", "-r", repository, "--load", address))
            assert f"serves version {number} of swap" in said
            with StyleClient(server.endpoints.grpc) as client:
                assert client.stylize(picture, "swap").tobytes() == local(repository, picture)
        checkpoint(tmp_path / "new.pth", 9)
        succeeded(run("nst-export", tmp_path / "new.pth", "-r", repository, "--load", server.endpoints.grpc))
        with StyleClient(server.endpoints.grpc) as client:
            assert [style.name for style in client.styles()] == ["new", "swap"]
    finally:
        server.stop()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, TextureModel]]:
    """A Triton with a model in two parts and a texture network."""
    folder = tmp_path_factory.mktemp("everything")
    checkpoint(folder / "large.pth", 0, ("a", "b"))
    torch.manual_seed(0)
    texture = frozen(Ulyanov(texture=True))
    save(Checkpoint(texture, ("stone",)), folder / "stone.pth")
    succeeded(run("nst-export", folder / "large.pth", "-r", folder / "repo", "--tiled"))
    succeeded(run("nst-export", folder / "stone.pth", "-r", folder / "repo"))
    server = serve(folder / "repo", folder / "triton.log")
    yield server, TextureModel(texture).eval()
    server.stop()


def test_both_parts_are_served_and_make_the_whole_picture(everything: tuple[Server, TextureModel]) -> None:
    server, _ = everything
    photo = fit(open_image(sample_photographs()[1]), 200, 152).pixels[None]
    weights = np.array([[0.25, 0.75]], np.float32)
    statistics = infer(server, "large_statistics", "statistics", image=photo, style_weights=weights)
    tiled = infer(server, "large_tiled", "stylized", image=photo, statistics=statistics, style_weights=weights)
    whole = infer(server, "large", "stylized", image=photo, style_weights=weights)
    assert np.abs(tiled.astype(int) - whole).max() <= 1


def test_a_texture_is_served_from_noise(everything: tuple[Server, TextureModel]) -> None:
    server, model = everything
    feeds = example_feeds(model.inputs, [(2, 64, 96)])[0]
    wanted = model(*(torch.from_numpy(feeds[spec.name]) for spec in model.inputs)).numpy()
    answer = infer(server, "stone", "texture", **feeds)
    assert answer.shape == (2, 64, 96, 3)
    assert np.abs(answer.astype(int) - wanted).max() <= 1
    assert np.abs(answer[0].astype(int) - answer[1]).mean() > 1


def test_only_what_paints_photographs_is_a_style(everything: tuple[Server, TextureModel]) -> None:
    server, _ = everything
    with StyleClient(server.endpoints.grpc) as client:
        assert [style.name for style in client.styles()] == ["a", "b"]
