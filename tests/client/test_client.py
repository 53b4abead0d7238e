import asyncio
import gc
import logging
import socket
import threading
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import nst_client
from nst_client import (
    AsyncStyleClient,
    MockTransport,
    Rejected,
    Request,
    ServiceError,
    Statistics,
    Style,
    StyleClient,
    TimedOut,
    Unavailable,
    UnknownStyle,
    Unreachable,
    Untrusted,
)
from nst_client.retries import pause_seconds
from nst_client.stylize.cli import styles_app
from nst_client.transports.base import ModelConfig
from nst_client.transports.connect import connect
from nst_client.transports.triton.addresses import resolved
from nst_client.transports.triton.http import HttpTransport
from nst_client.transports.triton.http_connections import BlockingConnections, HttpRequest, HttpResponse, Origin
from nst_core.errors import InputError
from nst_core.images import Pixels, open_image

MODELS = {
    "negative": {"min_side": "16", "max_pixels": "10000"},
    "something-else": {"purpose": "texture"},
    "gallery": {"styles": "wave,scream,negative"},
}
"""One style, no style, and three styles."""


@pytest.fixture
def server() -> MockTransport:
    """Its models invert colours."""
    return MockTransport(lambda request: 255 - request.inputs["image"], MODELS)


@pytest.fixture
def client(server: MockTransport) -> StyleClient:
    return StyleClient(transport=server)


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that takes connections and says nothing; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            try:
                while True:
                    held.append(server.accept()[0])
            except OSError:
                return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in held:
            connection.close()


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_what_the_package_exports() -> None:
    assert nst_client.__all__ == [
        "AsyncStyleClient",
        "MockTransport",
        "Rejected",
        "Request",
        "ServiceError",
        "Statistics",
        "Style",
        "StyleClient",
        "TimedOut",
        "Transport",
        "Unavailable",
        "UnknownStyle",
        "Unreachable",
        "Untrusted",
    ]
    assert all(hasattr(nst_client, name) for name in nst_client.__all__)


def asked(server: MockTransport) -> list[tuple[str, tuple[int, ...]]]:
    """Model and shape of each request that came."""
    return [(request.model, request.inputs["image"].shape) for request in server.requests]


def test_one_image_and_a_batch(client: StyleClient, server: MockTransport) -> None:
    content = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(client.stylize(content, "negative"), 255 - content)
    batch = np.stack([content, content[::-1]])
    assert np.array_equal(client.stylize(batch, "negative"), 255 - batch)
    assert asked(server) == [("negative", (1, 20, 30, 3)), ("negative", (2, 20, 30, 3))]


def negative(pixels: Pixels) -> Pixels:
    return 255 - pixels


@pytest.mark.parametrize("kind", ["oriented", "transparent", "palette", "float", "16 bits", "CMYK", "grey"])
def test_an_image_of_pillow_is_stylized_as_the_command_stylizes_it(
    client: StyleClient, tmp_path: Path, kind: str
) -> None:
    """Upright, with its opacity, in 8 bits: what `open_image` makes of the same file."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = tmp_path / ("a.tif" if kind in ("float", "CMYK") else "a.png")
    options: dict[str, Any] = {}
    image = Image.fromarray(pixels)
    if kind == "oriented":
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned by a quarter
        options["exif"] = exif
    elif kind == "transparent":
        image.putalpha(Image.fromarray(random.integers(0, 256, (20, 30), dtype=np.uint8)))
    elif kind == "palette":
        image = image.convert("P")
        options["transparency"] = 3
    elif kind == "float":
        image = Image.fromarray(random.random((20, 30), np.float32))
    elif kind == "16 bits":
        image = Image.fromarray(random.integers(0, 65536, (20, 30), dtype=np.uint16))
    elif kind in ("CMYK", "grey"):
        image = image.convert("L" if kind == "grey" else kind)
    image.save(file, **options)
    wanted = open_image(file)
    assert wanted.pixels.std() > 20
    with Image.open(file) as opened:
        stylized = client.stylize(opened, "negative")
    assert stylized.mode == ("RGB" if wanted.alpha is None else "RGBA")
    assert stylized.size == (wanted.width, wanted.height) == ((20, 30) if kind == "oriented" else (30, 20))
    assert np.array_equal(np.asarray(stylized.convert("RGB")), negative(wanted.pixels))
    if wanted.alpha is not None:
        assert np.array_equal(np.asarray(stylized.getchannel("A")), wanted.alpha)


def test_an_image_of_pillow_comes_back_as_one(client: StyleClient) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    stylized = client.stylize(Image.fromarray(pixels), "negative")
    assert isinstance(stylized, Image.Image)
    assert np.array_equal(np.asarray(stylized), 255 - pixels)
    assert client.stylize(Image.fromarray(pixels).convert("L"), "negative").mode == "RGB"


def test_a_batch_goes_in_requests_that_the_model_takes(client: StyleClient, server: MockTransport) -> None:
    """At most `max_batch` images, and no more pixels at once than the model's largest image has."""
    batch = np.random.default_rng(0).integers(0, 256, (9, 20, 30, 3), dtype=np.uint8)
    server.configs["gallery"] = replace(server.configs["gallery"], max_batch=4)
    assert np.array_equal(client.stylize(batch, "wave"), 255 - batch)
    assert [shape[0] for _, shape in asked(server)] == [4, 4, 1]
    server.requests.clear()
    large = np.zeros((5, 50, 80, 3), np.uint8)  # 4,000 pixels each, and the model takes 10,000
    assert np.array_equal(client.stylize(large, "negative"), 255 - large)
    assert [shape[0] for _, shape in asked(server)] == [2, 2, 1]


def test_many_tasks_share_an_asynchronous_client(server: MockTransport) -> None:
    contents = [np.full((20, 20, 3), level, np.uint8) for level in range(30)]

    async def stylize() -> list[Pixels]:
        async with AsyncStyleClient(transport=server) as client:
            assert [style.name for style in await client.styles()] == ["gallery/negative", "negative", "scream", "wave"]
            return await asyncio.gather(*(client.stylize(content, "negative") for content in contents))

    for answer, content in zip(asyncio.run(stylize()), contents, strict=True):
        assert np.array_equal(answer, 255 - content)


def test_what_a_mock_counts(client: StyleClient) -> None:
    for n in (1, 2, 2):
        client.stylize(np.zeros((n, 20, 20, 3), np.uint8), "negative")
    client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")
    assert client.statistics("negative") == Statistics(3, 0, 5, 3, {1: 1, 2: 2})


class Failing:
    """Fails so many times, and then inverts."""

    def __init__(self, *errors: ServiceError) -> None:
        self.errors = list(errors)

    def __call__(self, request: Request) -> Pixels:
        if self.errors:
            raise self.errors.pop(0)
        return 255 - request.inputs["image"]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for pauses."""
    monkeypatch.setattr(nst_client.retries, "FIRST_PAUSE_SECONDS", 1e-3)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("kind", [StyleClient, AsyncStyleClient])
def test_what_passes_by_itself_is_asked_again(kind: type[StyleClient] | type[AsyncStyleClient]) -> None:
    server = MockTransport(Failing(Unreachable("cut"), Unavailable("loading"), Unreachable("cut")))
    answer = kind(transport=server, retries=3).stylize(np.zeros((20, 20, 3), np.uint8), "style")
    stylized = answer if isinstance(answer, np.ndarray) else asyncio.run(awaited(answer))
    assert np.array_equal(stylized, np.full((20, 20, 3), 255, np.uint8))
    assert len(server.requests) == 4


async def awaited(answer: Awaitable[Pixels]) -> Pixels:
    return await answer


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("error", [Rejected("no"), TimedOut("slow"), Untrusted("who?"), ServiceError("odd")])
def test_what_does_not_pass_is_asked_once(error: ServiceError) -> None:
    server = MockTransport(Failing(error))
    with pytest.raises(type(error), match=str(error)[:2]):
        StyleClient(transport=server, retries=3).stylize(np.zeros((20, 20, 3), np.uint8), "style")
    assert len(server.requests) == 1


@pytest.mark.usefixtures("hasty")
def test_a_model_that_was_replaced_by_another_is_met_as_it_is(server: MockTransport, client: StyleClient) -> None:
    """A style more: the weights of before are refused, so the client looks again. An error names one that is gone."""

    def stylize(request: Request) -> Pixels:
        count = len(server.configs["gallery"].parameters["styles"].split(","))
        if request.inputs["style_weights"].shape[1] != count:
            raise Rejected("unexpected shape")
        return 255 - request.inputs["image"]

    server.handler = stylize
    client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")
    server.configs["gallery"] = ModelConfig({"styles": "new,wave,scream,negative"})
    client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")
    assert server.requests[-1].inputs["style_weights"].tolist() == [[0.0, 1.0, 0.0, 0.0]]
    del server.configs["gallery"]
    with pytest.raises(UnknownStyle, match="no style 'wave'; it has: negative"):
        client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")


@pytest.mark.parametrize("kind", ["tasks", "threads"])
def test_a_model_that_is_replaced_under_many_is_met_as_it_is_by_all(server: MockTransport, kind: str) -> None:
    """Each compares with what it asked for itself, not with what another has found out meanwhile."""
    asked = 0
    waiting = threading.Barrier(8)

    class Meeting(MockTransport):
        async def infer(self, request: Request, seconds: float) -> Pixels:
            nonlocal asked
            asked += 1
            if request.inputs["style_weights"].shape[1] == 3:
                if kind == "tasks":  # all are under way before the first is refused
                    await asyncio.sleep(0.01)
                else:
                    waiting.wait(20)
                raise Rejected("unexpected shape")
            return await super().infer(request, seconds)

    transport = Meeting(server.handler, MODELS)
    pixels = np.zeros((20, 20, 3), np.uint8)

    def replace_model() -> None:
        transport.configs["gallery"] = ModelConfig({"styles": "new,wave,scream,negative"})

    if kind == "tasks":

        async def stylize() -> list[Pixels]:
            async with AsyncStyleClient(transport=transport) as client:
                await client.styles()
                replace_model()
                return await asyncio.gather(*(client.stylize(pixels, "wave") for _ in range(8)))

        stylized = asyncio.run(stylize())
    else:
        with StyleClient(transport=transport) as client, ThreadPoolExecutor(8) as pool:
            client.styles()
            replace_model()
            stylized = list(pool.map(lambda _: client.stylize(pixels, "wave"), range(8)))
    assert all((answer == 255).all() for answer in stylized)
    assert asked == 16


def test_a_refusal_of_the_model_that_was_asked_for_is_final(server: MockTransport) -> None:
    """Also of the first image, whose styles are listed as it is stylized: it is sent once."""
    server.handler = Failing(*[Rejected("out of memory")] * 2)
    with pytest.raises(Rejected, match="out of memory"):
        StyleClient(transport=server).stylize(np.zeros((20, 20, 3), np.uint8), "wave")
    assert len(server.requests) == 1


def test_a_model_that_takes_larger_images_now(client: StyleClient, server: MockTransport) -> None:
    """And one that takes smaller images: it is asked before an image is refused."""
    for pixels, limits in (
        (np.zeros((200, 100, 3), np.uint8), {"max_pixels": "30000"}),
        (np.zeros((4, 4, 3), np.uint8), {"min_side": "1"}),
    ):
        with pytest.raises(InputError, match=r"is too (large|small)"):
            client.stylize(pixels, "negative")
        server.configs["negative"] = ModelConfig({"styles": "negative", **limits})
        assert (client.stylize(pixels, "negative") == 255).all()


def test_a_model_that_cannot_be_used_keeps_nobody_from_the_others(
    server: MockTransport, caplog: pytest.LogCaptureFixture
) -> None:
    """It is named: in the log, once, to whoever asks for it, and beside the names of the others."""

    class Broken(MockTransport):
        async def config(self, model: str, seconds: float) -> ModelConfig:
            if model == "something-else":
                raise ServiceError("something-else/config.pbtxt: no model's config")
            return await super().config(model, seconds)

    transport = Broken(server.handler, MODELS)
    transport.configs["gallery"] = ModelConfig({"styles": "wave,scream", "max_pixels": "many"})
    with caplog.at_level(logging.WARNING):
        client = StyleClient(transport=transport)
        for _ in range(2):
            assert [style.name for style in client.styles()] == ["negative"]
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2
    assert "skipping model something-else: something-else/config.pbtxt: no model's config" in warnings[0]
    assert "skipping model gallery: the config of model gallery" in warnings[1]
    assert (client.stylize(np.zeros((20, 20, 3), np.uint8), "negative") == 255).all()
    with pytest.raises(ServiceError, match="no model's config"):
        client.stylize(np.zeros((20, 20, 3), np.uint8), "something-else")
    with pytest.raises(UnknownStyle, match="it has: negative; skipped models: something-else, gallery"):
        client.stylize(np.zeros((20, 20, 3), np.uint8), "wave")
    del transport.configs["negative"]
    with pytest.raises(ServiceError, match="no model's config"):
        client.styles()


@pytest.mark.parametrize("limit", ["0", "-3", "many", "1.5"])
def test_limits_that_cannot_be(server: MockTransport, limit: str) -> None:
    server.configs = {"wave": ModelConfig({"styles": "wave", "min_side": limit})}
    with pytest.raises(ServiceError, match="the config of model wave is invalid"):
        StyleClient(transport=server).styles()


@pytest.mark.usefixtures("hasty")
def test_a_model_that_is_unloaded_while_it_is_listed_is_left_out(server: MockTransport) -> None:
    class Losing(MockTransport):
        async def config(self, model: str, seconds: float) -> ModelConfig:
            if model == "gallery":
                raise Unavailable("no available versions")
            return await super().config(model, seconds)

    assert [style.name for style in StyleClient(transport=Losing(server.handler, MODELS)).styles()] == ["negative"]


def test_patience_ends() -> None:
    server = MockTransport(Failing(*[Unreachable("cut")] * 9))
    with pytest.raises(Unreachable):
        StyleClient(transport=server, retries=2).stylize(np.zeros((20, 20, 3), np.uint8), "style")
    assert len(server.requests) == 3


def test_no_pause_goes_beyond_the_deadline() -> None:
    """The first pause is a quarter of a second or longer, so the error comes without it."""
    server = MockTransport(Failing(*[Unreachable("cut")] * 9))
    with pytest.raises(Unreachable):
        StyleClient(transport=server, retries=9, timeout=0.2).stylize(np.zeros((20, 20, 3), np.uint8), "style")
    assert len(server.requests) == 1


def test_pauses_double_up_to_a_longest_and_half_of_each_is_chance() -> None:
    for attempt, longest in enumerate([0.5, 1, 2, 4, 8, 8]):
        drawn = [pause_seconds(attempt) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in drawn)
        assert len(set(drawn)) > 40


def test_every_attempt_has_the_time_that_is_left() -> None:
    class Telling(MockTransport):
        async def infer(self, request: Request, seconds: float) -> Pixels:
            given.append(seconds)
            if len(given) < 3:
                raise Unreachable("cut")
            return await super().infer(request, seconds)

    given: list[float] = []
    StyleClient(transport=Telling(Failing()), timeout=30.0).stylize(np.zeros((20, 20, 3), np.uint8), "style")
    assert 30.0 >= given[0] > given[1] > given[2] > 0


@pytest.mark.parametrize("answer", [np.zeros((1, 20, 20, 3), np.float32), np.zeros((1, 20, 21, 3), np.uint8)])
def test_an_answer_that_is_no_image_of_the_size(answer: np.ndarray) -> None:
    with pytest.raises(Rejected, match="is not a style model"):
        StyleClient(transport=MockTransport(lambda request: answer)).stylize(np.zeros((20, 20, 3), np.uint8), "style")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timeout": 0.0}, "timeout is 0.0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries -1"),
        ({"token": "two\nlines"}, "printable ASCII"),
        ({"token": ""}, "printable ASCII"),
        ({"token": "sesam\N{LATIN SMALL LETTER U WITH DIAERESIS}"}, "printable ASCII"),
        ({"ca": Path("none.pem")}, "cannot read none.pem"),
        ({"ca": Path(__file__)}, "no certificates in PEM form"),
        ({"transport": MockTransport(Failing())}, "either url or transport"),
    ],
)
@pytest.mark.parametrize("kind", [StyleClient, AsyncStyleClient])
def test_settings_that_cannot_be(kind: type[StyleClient], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        kind("grpc://127.0.0.1:1", **settings)


def test_a_client_of_nothing() -> None:
    with pytest.raises(InputError, match="either url or transport"):
        StyleClient()


@pytest.mark.parametrize("url", ["grpc://192.0.2.1:8001", "https://192.0.2.1:8000"])
def test_shared_memory_reaches_no_other_host(url: str) -> None:
    with pytest.raises(InputError, match=r"192.0.2.1:\d+ is another; leave out shared_memory"):
        StyleClient(url, shared_memory=True)
    with pytest.raises(InputError, match="shared memory needs a single server"):
        StyleClient("grpc://127.0.0.1:8001,127.0.0.1:8011", shared_memory=True)
    StyleClient("http://localhost:8000", shared_memory=True).close()


@pytest.mark.parametrize("kind", [StyleClient, AsyncStyleClient])
def test_several_servers_are_a_list_or_a_sequence(kind: type[StyleClient] | type[AsyncStyleClient]) -> None:
    together = "grpcs://one:8001,two:8001"
    assert kind(together).url == kind(["grpcs://one:8001", "grpcs://two:8001/"]).url == together
    assert kind(["http://one:8000"]).url == "http://one:8000"


@pytest.mark.parametrize(
    "urls",
    [
        "http://one:8000,two:8000",
        "grpc://one:8001,",
        ["http://one:8000", "http://two:8000"],
        ["grpc://one:8001", "grpcs://two:8001"],
        ["local:one", "local:two"],
        [],
    ],
)
def test_several_servers_are_for_grpc(urls: str | list[str]) -> None:
    with pytest.raises(
        InputError, match=r"lists several servers, which only gRPC supports|several servers are .*; give gRPC URLs"
    ):
        StyleClient(urls)


def test_an_unknown_name_of_a_list() -> None:
    """The others answer; if there are none, the error is that nobody does."""
    assert resolved(["none.invalid:1", "127.0.0.1:2", "127.0.0.2:3"]) == ["127.0.0.1:2", "127.0.0.2:3"]
    assert resolved(["[::1]:1", "[::1]:2"]) == ["[::1]:1", "[::1]:2"]
    urls = "grpc://none.invalid:1,nobody.invalid:1"
    with StyleClient(urls, retries=0) as client, pytest.raises(Unreachable, match=f"no server answers at {urls}"):
        client.styles()


def test_only_styles_are_listed(client: StyleClient) -> None:
    assert client.styles() == [
        Style("gallery/negative", "gallery", 2, 3),
        Style("negative", "negative", 0, 1, 16, 10_000),
        Style("scream", "gallery", 1, 3),
        Style("wave", "gallery", 0, 3),
    ]


def test_an_unknown_style_names_the_known(client: StyleClient) -> None:
    with pytest.raises(UnknownStyle, match=r"no style 'positive'; it has: .*negative"):
        client.stylize(np.zeros((20, 20, 3), np.uint8), "positive")


@pytest.mark.parametrize("name", ["stary-night", "starry_night", "STARRY-NIGHT", "starry-nightfast"])
def test_a_misspelled_style_names_the_nearest(server: MockTransport, name: str) -> None:
    server.configs["starry-night-fast"] = ModelConfig({"styles": "starry-night-fast"})
    with pytest.raises(UnknownStyle, match=f"no style '{name}'; did you mean 'starry-night-fast'\\?$"):
        StyleClient(transport=server).stylize(np.zeros((20, 20, 3), np.uint8), name)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((20, 20, 3), np.float32), "float32"),
        (np.zeros((20, 20), np.uint8), r"\(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), r"\(20, 20, 4\)"),
        (np.zeros((0, 20, 20, 3), np.uint8), r"\(0, 20, 20, 3\)"),
        (np.zeros((20, 0, 3), np.uint8), r"\(20, 0, 3\)"),
        (np.zeros((20, 20, 3), bool), r"bool \(20, 20, 3\); pass uint8"),
        (np.array(None), r"object \(\)"),
        ([[[0, 0, 0]]], "pixels are a list; pass a NumPy array"),
        ("sail.jpg", "pixels are a str"),
        (None, "pixels are a NoneType"),
        (np.zeros((15, 20, 3), np.uint8), "20x15 is too small"),
        (np.zeros((200, 100, 3), np.uint8), "--max-side 141"),
    ],
)
def test_pixels_that_cannot_be_stylized(client: StyleClient, pixels: Pixels, words: str) -> None:
    with pytest.raises(InputError, match=words):
        client.stylize(pixels, "negative")


def test_a_longest_side(server: MockTransport) -> None:
    """A TensorRT plan has one: a longer image is refused, or goes by smaller tiles."""
    server.configs["negative"] = ModelConfig({"styles": "negative", "max_pixels": "1000000", "max_side": "300"})
    client = StyleClient(transport=server)
    (style,) = [style for style in client.styles() if style.name == "negative"]
    assert (style.max_side, style.takes(300, 300), style.takes(20, 301)) == (300, True, False)
    assert (style.fitting_side(20, 301), style.fitting_side(2000, 1000)) == (300, 300)
    client.stylize(np.zeros((20, 300, 3), np.uint8), "negative")
    words = (
        "301x20 is too large for negative, whose maximum is 1.0 megapixels and 300 pixels per side; "
        "shrink the image with --max-side 300"
    )
    with pytest.raises(InputError, match=words):
        client.stylize(np.zeros((20, 301, 3), np.uint8), "negative")
    pair = {"multiple": "4", "overlap": "8", "max_pixels": "1000000", "max_side": "64"}
    for purpose in ("statistics", "tiled"):
        server.configs[f"negative_{purpose}"] = ModelConfig(pair | {"purpose": purpose})
    server.handler = lambda request: (
        np.zeros((1, 5), np.float32) if request.output == "statistics" else 255 - request.inputs["image"]
    )
    server.requests.clear()
    stylized = StyleClient(transport=server).stylize(np.zeros((40, 301, 3), np.uint8), "negative")
    assert (stylized == 255).all()
    shapes = [shape for model, shape in asked(server) if model == "negative_tiled"]
    assert len(shapes) > 4
    assert max(max(shape[1:3]) for shape in shapes) <= 64


def test_styles_of_one_model_are_interpolated(client: StyleClient, server: MockTransport) -> None:
    batch = np.zeros((2, 20, 20, 3), np.uint8)
    client.stylize(batch, {"scream": 3.0, "wave": 1.0})
    assert asked(server) == [("gallery", (2, 20, 20, 3))]
    assert server.requests[-1].inputs["style_weights"].tolist() == [[1.0, 3.0, 0.0]] * 2
    client.stylize(batch, "wave")
    assert server.requests[-1].inputs["style_weights"].tolist() == [[1.0, 0.0, 0.0]] * 2
    client.stylize(batch, "negative")
    assert server.requests[-1].inputs.keys() == {"image"}


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"wave": 1.0, "negative": 1.0}, "interpolate styles of one model"),
        ({"wave": -1.0, "scream": 2.0}, "at least one above 0, and none below 0"),
        ({"wave": 0.0}, "at least one above 0"),
        ({"wave": float("nan")}, "at least one above 0"),
        ({}, "at least one above 0"),
    ],
)
def test_interpolations_that_cannot_be(client: StyleClient, weights: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        client.stylize(np.zeros((20, 20, 3), np.uint8), weights)


ADDRESSES = [
    ("127.0.0.1:8001", "is not a server's URL; use grpc://host:8001"),
    ("ftp://host:21", "'ftp://host:21' is not a server's URL"),
    ("unix:///run/triton.sock", "is not a server's URL"),
    ("grpc://", "is not a server's URL"),
    ("", "is not a server's URL"),
    ("http//host", "is not a server's URL"),
    ("http:///v2", "is not a server's URL"),
    ("SCHEME://127.0.0.1:99999", "'99999' is not a port; give a number from 1 to 65535"),
    ("SCHEME://127.0.0.1:65536", "'65536' is not a port"),
    ("SCHEME://127.0.0.1:0", "'0' is not a port"),
    ("SCHEME://127.0.0.1:-1", "'-1' is not a port"),
    ("SCHEME://127.0.0.1:abc", "'abc' is not a port"),
    ("SCHEME://[::1]:99999", "'99999' is not a port"),
    ("SCHEME://::1:8001", r"an IPv6 address needs brackets; write it as \[::1\]:8001"),
    ("SCHEME://[::1:8001", "is not a host name"),
    ("SCHEME://:8001", "':8001' is not a host"),
    ("SCHEME://a b:8001", "is not a host name"),
    ("SCHEME://a\nb:8001", "is not a host name"),
    ("SCHEME://me:sesame@host:8001", "cannot contain a user or a password"),
    ("grpc://host:8001/v2", "has the invalid path /v2; use grpc://host:8001"),
    ("http://host:8000?model=a", "is not a port"),
    ("http://host:8000/a?b", "has the invalid path"),
    ("grpc://host", "has no port; use grpc://host:8001"),
    ("grpc://one:8001,two", "has no port"),
    ("grpc://one:8001,two:x", "'x' is not a port"),
    ("grpc://one:8001,", "lists several servers, which only gRPC supports"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [StyleClient, AsyncStyleClient])
@pytest.mark.parametrize(("url", "words"), ADDRESSES)
def test_addresses_that_are_none(
    url: str, words: str, kind: type[StyleClient], capfd: pytest.CaptureFixture[str]
) -> None:
    """At once, in one line, without a password and without a traceback of what was half made."""
    for scheme in ("grpc", "grpcs", "http", "https"):
        with pytest.raises(InputError, match=words) as raised:
            kind(url.replace("SCHEME", scheme))
        assert "sesame" not in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
    gc.collect()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "url",
    [
        "grpc://[::1]:8001",
        "grpcs://host",
        "http://[::1]:8000",
        "http://host",
        "https://host:8000/triton/",
        "grpc://h:1",
        "grpcs://dns://10.0.0.1:53/tritons:8001",
        "grpc://dns:tritons:8001",
    ],
)
def test_addresses_that_are_right(url: str) -> None:
    assert connect(url).address == url.rstrip("/")


def test_a_path_comes_before_triton_s_own() -> None:
    """Behind a reverse proxy."""
    heard: list[str] = []

    class Behind(HttpTransport):
        def _make_client(self) -> Any:
            class Recording(BlockingConnections):
                def exchange(self, request: HttpRequest, seconds: float) -> HttpResponse:
                    heard.append(request.path)
                    return HttpResponse(200, {}, memoryview(b'{"model_stats":[]}'))

            return Recording(Origin("host", 80))

    transport = connect("http://host/tri ton".replace(" ", "%20"))
    assert isinstance(transport, HttpTransport)
    with StyleClient(transport=Behind(transport.settings)) as client:
        assert client.styles() == []
    assert heard == ["/tri%20ton/v2/models/stats"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_at_the_address(scheme: str) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port()}"
    with StyleClient(url, timeout=5.0) as client, pytest.raises(Unreachable, match=url):
        client.styles()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_server_that_does_not_answer(silent: int, scheme: str) -> None:
    address = f"{scheme}://127.0.0.1:{silent}"
    with StyleClient(address, timeout=0.5) as client, pytest.raises(TimedOut, match=f"{address} .* within 0.5 s"):
        client.styles()


def test_a_dead_server_is_one_line_and_a_status() -> None:
    url = f"grpc://127.0.0.1:{closed_port()}"
    result = CliRunner().invoke(styles_app, ["--url", url])
    assert result.exit_code == 1
    assert (
        result.stderr
        == f"error: no server answers at {url}; start one with nst serve, or give its address with --url\n"
    )


def test_a_local_repository_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model repository"):
        StyleClient(f"local:{tmp_path / 'none'}")
