import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import nst_client
from nst_client import MockTransport, Style, StyleClient, TimedOut, UnknownStyle, Unreachable
from nst_client.cli import _mix, _targets, styles_app, stylize_app
from nst_client.transports import connect
from nst_core.errors import InputError
from nst_core.images import Pixels

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


def test_one_picture_and_a_batch(client: StyleClient, server: MockTransport) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(client.stylize(picture, "negative"), 255 - picture)
    batch = np.stack([picture, picture[::-1]])
    assert np.array_equal(client.stylize(batch, "negative"), 255 - batch)
    assert asked(server) == [("negative", (1, 20, 30, 3)), ("negative", (2, 20, 30, 3))]


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


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((20, 20, 3), np.float32), "float32"),
        (np.zeros((20, 20), np.uint8), r"\(20, 20\)"),
        (np.zeros((20, 20, 4), np.uint8), r"\(20, 20, 4\)"),
        (np.zeros((15, 20, 3), np.uint8), "20x15 is too small"),
        (np.zeros((200, 100, 3), np.uint8), "--max-side 141"),
    ],
)
def test_pixels_that_cannot_be_painted(client: StyleClient, pixels: Pixels, words: str) -> None:
    with pytest.raises(InputError, match=words):
        client.stylize(pixels, "negative")


def test_styles_of_one_model_are_mixed(client: StyleClient, server: MockTransport) -> None:
    batch = np.zeros((2, 20, 20, 3), np.uint8)
    client.stylize(batch, {"scream": 3.0, "wave": 1.0})
    assert asked(server) == [("gallery", (2, 20, 20, 3))]
    assert server.requests[-1].inputs["style_weights"].tolist() == [[1.0, 3.0, 0.0]] * 2
    client.stylize(batch, "wave")
    assert server.requests[-1].inputs["style_weights"].tolist() == [[1.0, 0.0, 0.0]] * 2
    client.stylize(batch, "negative")
    assert server.requests[-1].inputs.keys() == {"image"}


@pytest.mark.parametrize(
    ("mix", "words"),
    [
        ({"wave": 1.0, "negative": 1.0}, "only styles of one model can be mixed"),
        ({"wave": -1.0, "scream": 2.0}, "at least one above 0 and none below"),
        ({"wave": 0.0}, "at least one above 0"),
        ({"wave": float("nan")}, "at least one above 0"),
        ({}, "at least one above 0"),
    ],
)
def test_mixes_that_cannot_be(client: StyleClient, mix: dict[str, float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        client.stylize(np.zeros((20, 20, 3), np.uint8), mix)


def test_a_mix_on_the_command_line() -> None:
    assert _mix("wave") == {"wave": 1.0}
    assert _mix("wave:0.7, gallery/scream:0.3") == {"wave": 0.7, "gallery/scream": 0.3}
    with pytest.raises(InputError, match="'wave:much' is no style with a weight"):
        _mix("wave:much")


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "ftp://host", "grpc://", "", "http//host"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(InputError, match="is no address"):
        connect(url)


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
        == f"error: no server answers at {url}; start one with nst-serve, or give its address with --url\n"
    )


def test_where_pictures_go(tmp_path: Path) -> None:
    a, b = tmp_path / "a.jpg", tmp_path / "deep" / "b.tif"
    assert _targets([a], Path("out.png")) == [Path("out.png")]
    assert _targets([a], tmp_path / "out") == [tmp_path / "out" / "a.jpg"]
    assert _targets([a, b], tmp_path / "out") == [tmp_path / "out" / "a.jpg", tmp_path / "out" / "b.png"]
    with pytest.raises(InputError, match="overwritten"):
        _targets([a], tmp_path)
    with pytest.raises(InputError, match="several pictures would become"):
        _targets([a, tmp_path / "deep" / "a.jpg"], tmp_path / "out")
    with pytest.raises(InputError, match=r"cannot write \.xyz"):
        _targets([a], Path("out.xyz"))


def test_one_bad_picture_does_not_stop_the_others(
    server: MockTransport, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photographs: dict[str, Path]
) -> None:
    """The server of the fixture is what `StyleClient` connects to."""
    monkeypatch.setattr(nst_client.client, "connect", lambda url, **settings: server)
    (tmp_path / "text.jpg").write_text("no picture")
    command = [str(tmp_path / "text.jpg"), str(photographs["coffee"]), "-s", "negative", "--max-side", "100"]
    result = CliRunner().invoke(stylize_app, [*command, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "text.jpg: not a picture" in result.stderr
    assert "1 of 2 pictures could not be read" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["coffee.jpg"]


def test_a_local_repository_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such model repository"):
        StyleClient(f"local:{tmp_path / 'none'}")
