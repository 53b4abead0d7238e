"""A network trained here for a few steps, exported, served by a real Triton, called, and checked.

Every step is the command that a user would type, in a process of its own.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from nst_client import StyleClient, Unreachable
from nst_core.images import ImageData, Pixels, fit, open_image, save_image
from nst_export.modules import ServedModel
from nst_server.endpoints import Endpoints
from nst_trainer.checkpoint import load

from .serving import ROOT, TRITON, Server, alive, command_line, descendants, run, serve, settled, succeeded

SHAPES = [(1, 256, 256), (1, 97, 131), (1, 200, 64), (3, 48, 50), (1, 16, 16)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    samples = ROOT / "core" / "nst_core" / "photographs"
    output = folder / "tiny.pth"
    command = ("nst-train", "--style", samples / "coffee.jpg", "--photos", samples, "-o", output)
    small = ("--width", 0.25, "--iterations", 12, "--batch", 2, "--crop", 64, "--style-size", 96)
    succeeded(run(*command, *small))
    return output


@pytest.fixture(scope="module")
def gallery(checkpoint: Path) -> Path:
    """Two styles in one network, and one more added to it."""
    samples = ROOT / "core" / "nst_core" / "photographs"
    styles = checkpoint.parent / "styles"
    styles.mkdir()
    for name in ("chelsea", "rocket"):
        (styles / f"{name}.jpg").symlink_to(samples / f"{name}.jpg")
    output = checkpoint.parent / "gallery.pth"
    small = ("--batch", 2, "--crop", 64, "--style-size", 96)
    messages = succeeded(run("nst-train", "--style", styles, "-o", output, "--width", 0.25, "--iterations", 12, *small))
    assert "the 4 photographs that ship" in messages
    added = run("nst", "train", "--add", samples / "astronaut.jpg", "--to", output, "--minutes", 0.1, *small)
    assert "chelsea, rocket, astronaut" in succeeded(added)
    return output


@pytest.fixture(scope="module")
def repository(checkpoint: Path, gallery: Path) -> Path:
    target = checkpoint.parent / "model_repository"
    for path in (checkpoint, gallery):
        succeeded(run("nst-export", path, "--repository", target))
    return target


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    running = serve(repository, repository.parent / "triton.log")
    yield running
    offspring = descendants(running.process.pid)
    assert running.stop() == 130, running.messages
    assert not alive(offspring), "Triton or one of its stubs outlived nst-serve"


@pytest.fixture(scope="module")
def expected(checkpoint: Path, photographs: dict[str, Path]) -> list[tuple[Pixels, Pixels]]:
    """Photographs cut to each shape, and PyTorch's own answers."""
    model = ServedModel(load(checkpoint).network)
    pairs = []
    for n, height, width in SHAPES:
        images = [fit(open_image(path), width, height).pixels for path in list(photographs.values())[:n]]
        batch = np.stack(images)
        with torch.no_grad():
            pairs.append((batch, model(torch.from_numpy(batch)).numpy()))
    return pairs


def url(server: Server, repository: Path, way: str) -> str:
    return {"grpc": server.endpoints.grpc, "http": server.endpoints.http, "local": f"local:{repository}"}[way]


@pytest.mark.parametrize("way", ["grpc", "http", "local"])
def test_every_answer_is_pytorchs(
    server: Server, repository: Path, expected: list[tuple[Pixels, Pixels]], way: str
) -> None:
    with StyleClient(url(server, repository, way)) as client:
        assert [style.name for style in client.styles()] == ["astronaut", "chelsea", "rocket", "tiny"]
        for images, wanted in expected:
            answer = client.stylize(images, "tiny")
            assert np.abs(answer.astype(int) - wanted).max() <= 1, (way, images.shape)


@pytest.mark.parametrize("way", ["grpc", "http", "local"])
def test_every_interpolation_of_styles_is_pytorchs(
    server: Server, repository: Path, gallery: Path, expected: list[tuple[Pixels, Pixels]], way: str
) -> None:
    model = ServedModel(load(gallery).network)
    images, _ = expected[3]  # a batch of three
    interpolations = ({"chelsea": 1.0}, {"astronaut": 1.0}, {"rocket": 0.3, "astronaut": 0.6})
    answers = []
    with StyleClient(url(server, repository, way)) as client:
        for style_weights in interpolations:
            row = torch.tensor([[style_weights.get(name, 0.0) for name in ("chelsea", "rocket", "astronaut")]])
            with torch.no_grad():
                wanted = model(torch.from_numpy(images), row.expand(3, -1)).numpy()
            answers.append(client.stylize(images, style_weights))
            assert np.abs(answers[-1].astype(int) - wanted).max() <= 1, (way, style_weights)
    assert np.abs(answers[0].astype(int) - answers[1]).mean() > 3


def test_an_interpolation_by_the_command(server: Server, photographs: dict[str, Path], tmp_path: Path) -> None:
    command = ("nst", "stylize", photographs["coffee"], "--max-side", 96, "-u", server.endpoints.grpc)
    succeeded(run(*command, "-o", tmp_path / "a.png", "-s", "chelsea:0.5,rocket:0.5"))
    assert open_image(tmp_path / "a.png").width == 96
    assert_one_line(
        run(*command, "-o", tmp_path / "b.png", "-s", "chelsea:1,tiny:1"), "interpolate styles of one model"
    )
    assert not (tmp_path / "b.png").exists()


def test_many_callers_at_once_each_get_their_own(server: Server, expected: list[tuple[Pixels, Pixels]]) -> None:
    """Twelve callers with different images of mixed sizes; the server may batch as it likes."""
    failures: list[object] = []

    def call(number: int) -> None:
        images, wanted = expected[number % len(expected)]
        shifted = np.roll(images, number // len(expected), axis=0)
        address = server.endpoints.grpc if number % 2 else server.endpoints.http
        try:
            with StyleClient(address) as client:
                answer = client.stylize(shifted, "tiny")
            if np.abs(answer.astype(int) - np.roll(wanted, number // len(expected), axis=0)).max() > 1:
                failures.append(number)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_requests_at_once_run_one_by_one_on_a_cpu(server: Server, expected: list[tuple[Pixels, Pixels]]) -> None:
    """Triton runs 24 concurrent requests in 24 executions, since a batch costs memory there; its counters say so."""
    triton = InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://"))

    def counts() -> tuple[int, int]:
        (stats,) = triton.get_inference_statistics("tiny").model_stats
        return stats.inference_count, stats.execution_count

    image = expected[0][0][0]
    before = settled(counts)
    connected = threading.Barrier(24)

    def call() -> None:
        with StyleClient(server.endpoints.grpc) as client:
            client.styles()
            connected.wait(60)  # else the first may be answered before the last is sent
            client.stylize(image, "tiny")

    threads = [threading.Thread(target=call) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = settled(counts)
    triton.close()
    assert after[0] - before[0] == 24
    assert after[1] - before[1] == 24


def infer(server: Server, pixels: Pixels) -> Pixels:
    """By NVIDIA's client, which checks nothing that ours does."""
    image = InferInput("image", pixels.shape, "UINT8")
    image.set_data_from_numpy(pixels)
    with InferenceServerClient(server.endpoints.grpc.removeprefix("grpc://")) as triton:
        stylized: Pixels = triton.infer("tiny", [image], client_timeout=60.0).as_numpy("stylized")
    return stylized


def test_a_request_that_cannot_be_run_is_refused_and_the_next_one_works(
    server: Server, expected: list[tuple[Pixels, Pixels]]
) -> None:
    with StyleClient(server.endpoints.grpc) as client:
        with pytest.raises(InferenceServerException, match="megapixels"):
            infer(server, np.zeros((1, 9000, 1000, 3), np.uint8))
        images, wanted = expected[0]
        assert np.abs(client.stylize(images, "tiny").astype(int) - wanted).max() <= 1


def test_an_image_of_a_few_pixels_is_stylized_and_does_not_spoil_the_next_request(
    server: Server, expected: list[tuple[Pixels, Pixels]]
) -> None:
    with StyleClient(server.endpoints.grpc) as client:
        for height, width in ((3, 3), (1, 1), (3, 40)):
            assert infer(server, np.zeros((1, height, width, 3), np.uint8)).shape == (1, height, width, 3)
            for images, wanted in expected:
                assert np.abs(client.stylize(images, "tiny").astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("way", ["grpc", "http", "local"])
def test_stylize_writes_what_pytorch_computes(
    server: Server, repository: Path, checkpoint: Path, photographs: dict[str, Path], tmp_path: Path, way: str
) -> None:
    output = tmp_path / "cat.png"
    where = url(server, repository, way)
    messages = succeeded(
        run(
            "nst", "stylize", photographs["chelsea"], "--style", "tiny", "-o", output, "--url", where, "--max-side", 200
        )
    )
    assert "200x133" in messages
    content = open_image(photographs["chelsea"], max_side=200).pixels
    with torch.no_grad():
        wanted = ServedModel(load(checkpoint).network)(torch.from_numpy(content[None]))[0].numpy()
    assert np.abs(open_image(output).pixels.astype(int) - wanted).max() <= 1


def test_stylize_of_every_kind_of_image(server: Server, photographs: dict[str, Path], tmp_path: Path) -> None:
    """EXIF orientation, alpha, grey, 16 bits, a palette; to JPEG, PNG and WebP."""
    content = Image.open(photographs["rocket"]).resize((96, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    content.save(tmp_path / "turned.jpg", exif=exif.tobytes())
    content.convert("L").save(tmp_path / "grey.png")
    content.quantize(16).save(tmp_path / "palette.gif")
    Image.fromarray(np.asarray(content.convert("L")).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, :48] = 0
    save_image(ImageData(np.asarray(content.convert("RGB")), alpha), tmp_path / "glass.webp")
    contents = [tmp_path / name for name in ("turned.jpg", "grey.png", "palette.gif", "deep.png", "glass.webp")]
    output = tmp_path / "out"
    succeeded(run("nst", "stylize", *contents, "-s", "tiny", "-o", output, "-u", server.endpoints.grpc))
    stylized = {path.name: open_image(path) for path in output.iterdir()}
    assert sorted(stylized) == ["deep.png", "glass.webp", "grey.png", "palette.png", "turned.jpg"]
    assert (stylized["turned.jpg"].width, stylized["turned.jpg"].height) == (64, 96)
    assert stylized["glass.webp"].alpha is not None
    assert np.array_equal(stylized["glass.webp"].alpha, alpha)


def test_styles_lists_what_is_served(server: Server) -> None:
    result = run("nst", "styles", "--url", server.endpoints.http)
    assert result.stdout.split() == ["astronaut", "chelsea", "rocket", "tiny"]


def test_the_servers_port_is_taken(server: Server, repository: Path) -> None:
    result = run("nst-serve", "-r", repository, "--http-port", server.endpoints.http_port, "--triton", TRITON)
    assert_one_line(result, f"cannot listen on 127.0.0.1:{server.endpoints.http_port}", "--http-port")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory, photographs: dict[str, Path]) -> Path:
    """A folder of files that are not what they should be."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text.jpg").write_text("not an image")
    (folder / "truncated.jpg").write_bytes(photographs["coffee"].read_bytes()[:30_000])
    Image.new("1", (10_000, 10_000)).save(folder / "bomb.png")
    (folder / "text.pth").write_text("no checkpoint")
    (folder / "empty").mkdir()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {folder}/victim",)

    torch.save({"format": "nst-style/1", "styles": Evil()}, folder / "evil.pth")
    return folder


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    *before, line = result.stderr.strip().splitlines()
    # What was chosen, with the reason, may come before it: each choice once.
    choices = [text.partition(": ")[0] for text in before]
    assert len(set(choices)) == len(choices) and set(choices) <= {"device cpu", "VGG-16 weights"}
    assert line.startswith("error: ")
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("none.jpg", ["none.jpg", "no such file"]),
        ("text.jpg", ["text.jpg", "not an image"]),
        ("truncated.jpg", ["truncated.jpg", "damaged"]),
        ("bomb.png", ["100 megapixels", "limit of 64", "--max-pixels"]),
    ],
)
def test_wrong_images(server: Server, wrong: Path, tmp_path: Path, content: str, words: list[str]) -> None:
    output = tmp_path / "out.png"
    result = run("nst", "stylize", wrong / content, "-s", "tiny", "-o", output, "-u", server.endpoints.grpc)
    assert_one_line(result, *words)
    assert not output.exists()


def test_a_style_that_the_server_lacks(server: Server, photographs: dict[str, Path], tmp_path: Path) -> None:
    command = ("nst", "stylize", photographs["coffee"], "-s", "mosaic", "-o", tmp_path / "a.png")
    for address in (server.endpoints.grpc, server.endpoints.http):
        assert_one_line(run(*command, "-u", address), "no style 'mosaic'", "it has: ", "tiny")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("none.pth", ["no such file"]),
        ("text.pth", ["not a PyTorch checkpoint"]),
        ("evil.pth", ["refused", "would run code", "state_dict()"]),
    ],
)
def test_wrong_checkpoints(wrong: Path, tmp_path: Path, file: str, words: list[str]) -> None:
    assert_one_line(run("nst-export", wrong / file, "-r", tmp_path / "repo"), file, *words)
    assert not (tmp_path / "repo").exists()
    assert not (wrong / "victim").exists()


def test_wrong_training_input(wrong: Path, photographs: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "a.pth"
    samples = photographs["coffee"].parent
    for style, folder, words in (
        (wrong / "text.jpg", samples, "not an image"),
        (photographs["coffee"], wrong / "none", "no such folder"),
        (photographs["coffee"], wrong / "empty", "no images"),
    ):
        assert_one_line(run("nst-train", "--style", style, "--photos", folder, "-o", output), words)
    assert not list(tmp_path.iterdir())


def test_a_server_that_dies_comes_back_and_one_that_keeps_dying_leaves_nothing(
    repository: Path, photographs: dict[str, Path], tmp_path: Path
) -> None:
    """`kill -9` of Triton itself, five times: nst-serve says so in a line each, and clears away the stubs."""
    server = serve(repository, tmp_path / "triton.log")
    offspring: set[int] = set()
    try:
        for start in range(1, 6):
            server.started(start)
            assert not alive(offspring), "of the Triton before"
            with StyleClient(server.endpoints.grpc) as client:
                assert "tiny" in {style.name for style in client.styles()}
            offspring = descendants(server.process.pid)
            (triton,) = [pid for pid in offspring if "tritonserver" in command_line(pid)]
            os.kill(triton, signal.SIGKILL)
        assert server.process.wait(60) == 1
    finally:
        server.process.kill()
    deadline = time.monotonic() + 60
    while alive(offspring) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not alive(offspring)
    with StyleClient(server.endpoints.grpc) as client, pytest.raises(Unreachable):
        client.styles()
    command = ("nst", "stylize", photographs["coffee"], "-s", "tiny", "-o", tmp_path / "a.png")
    for address in (server.endpoints.grpc, server.endpoints.http):
        assert_one_line(run(*command, "-u", address), "no server answers", "nst serve")
    died = [line for line in server.messages if "Triton ended by itself with exit status -9 (log: " in line]
    assert [re.sub(r".*(restarting in .* s|5 failures).*", r"\1", line) for line in died] == [
        *(f"restarting in {pause} s" for pause in ("0.5", "1", "2", "4")),
        "5 failures",
    ]
    assert (tmp_path / "triton.log").read_text().count("Started GRPCInferenceService") == 5


def test_a_killed_nst_serve_takes_triton_with_it(repository: Path, tmp_path: Path) -> None:
    server = serve(repository, tmp_path / "triton.log")
    offspring = descendants(server.process.pid)
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 60
    while alive(offspring) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not alive(offspring)


def test_a_model_that_cannot_be_loaded_says_which_and_why(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "repo" / "broken" / "1"
    broken.mkdir(parents=True)
    (broken / "model.onnx").write_bytes(b"no model")
    config = (repository / "tiny" / "config.pbtxt").read_text()
    (broken.parent / "config.pbtxt").write_text(config.replace('name: "tiny"', 'name: "broken"'))
    result = run("nst-serve", "-r", tmp_path / "repo", "--triton", TRITON, "--log", tmp_path / "log", *free_ports())
    assert result.returncode == 1
    assert "broken version 1 is not served: " in result.stderr
    assert "Traceback" not in result.stderr
    assert "error: no model could be loaded: broken" in result.stderr


def free_ports() -> list[str]:
    endpoints = Endpoints.free()
    return [f"--{kind}-port={getattr(endpoints, f'{kind}_port')}" for kind in ("http", "grpc", "metrics")]
