"""What `nst web` answers to requests that a browser would not send; tests/end_to_end/test_web.py has a browser."""

import asyncio
import errno
import fcntl
import inspect
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from aiohttp import ClientSession, WSMsgType, web
from PIL import Image
from typer.testing import CliRunner

from nst_apps.web import app, cli, studio, training
from nst_apps.web import server as server_module
from nst_apps.web.app import Site, application
from nst_apps.web.cli import web_app
from nst_apps.web.server import Server
from nst_apps.web.studio import Limits, Studio
from nst_apps.web.training import CommandFailed, StyleTrainer, StyleTraining
from nst_client import AsyncStyleClient, MockTransport, Request, Unavailable, Unreachable
from nst_core.errors import ImageError, InputError, WriteError
from nst_core.images import Pixels

MODELS = {"negative": {"min_side": "16", "max_pixels": "10000"}, "gallery": {"styles": "wave,scream"}}
LIMITS = Limits(upload=100_000, pixels=20_000, jobs=2)

Visit = Callable[..., Awaitable[None]]
"""Gets the session, the page's address, and the `Site` if it takes a third."""


def negative(request: Request) -> Pixels:
    return 255 - request.inputs["image"]


def png(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def visited(
    folder: Path, visit: Visit, handler: Callable[[Request], Pixels] = negative, names: tuple[str, ...] = ()
) -> None:
    """Run `visit` as a visitor who has loaded the page."""

    async def run() -> None:
        server = Server(AsyncStyleClient(transport=MockTransport(handler, MODELS), retries=0))
        site = Site(Studio(server, folder, LIMITS), None)
        runner = web.AppRunner(application(site, names), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with ClientSession() as session:
                await load(session, url)
                await until(lambda: server.up.is_set())
                more = [site] if len(inspect.signature(visit).parameters) == 3 else []
                await visit(session, url, *more)
        finally:
            await runner.cleanup()

    asyncio.run(run())


async def load(session: ClientSession, url: str) -> None:
    """The page, and with it the cookie; it is of an address with a port, to which aiohttp's own jar gives none."""
    session.cookie_jar.clear()
    async with session.get(url) as response:
        assert "<!doctype html>" in await response.text()
        assert "script" not in response.headers["Content-Security-Policy"]
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        cookie = response.cookies["nst-visitor"]
        assert cookie["httponly"] and cookie["samesite"] == "Strict"
        session.headers["Cookie"] = f"nst-visitor={cookie.value}"


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not happened():
            await asyncio.sleep(0.01)


async def ask(session: ClientSession, method: str, url: str, status: int, **more: Any) -> Any:
    async with session.request(method, url, **more) as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer


async def job(session: ClientSession, url: str, style: object) -> dict[str, Any]:
    content = await ask(session, "POST", f"{url}/contents", 200, data=png())
    body = json.dumps({"content": content["name"], "style": style})
    return await ask(session, "POST", f"{url}/jobs", 200, data=body)


async def done(session: ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while any(known["status"] != "done" for known in (await ask(session, "GET", f"{url}/state", 200))["jobs"]):
            await asyncio.sleep(0.02)


def test_a_download_is_the_stylized_image_in_the_format_of_the_content_image(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        begun = await job(session, url, {"negative": 1})
        await done(session, url)
        async with session.get(f"{url}/jobs/{begun['name']}/whole?strength=0.25") as response:
            assert response.headers["Content-Disposition"] == 'attachment; filename="negative.png"'
            assert response.headers["Cache-Control"] == "private, no-store"
            image = Image.open(io.BytesIO(await response.read()))
        assert image.format == "PNG"
        content = np.array(Image.open(io.BytesIO(png()))).astype(float)
        assert np.abs(np.array(image) - (0.75 * content + 0.25 * (255 - content))).max() <= 1
        for strength in ("2", "nan", "x"):
            answer = await ask(session, "GET", f"{url}/jobs/{begun['name']}/shown?strength={strength}", 400)
            assert answer["error"] == f"strength is {strength}; give 0 to 1"

    visited(tmp_path, visit)


def test_another_visitor_finds_nothing(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        begun = await job(session, url, {"negative": 1})
        await done(session, url)
        async with ClientSession() as other:
            assert (await ask(other, "GET", f"{url}/state", 403))["error"].startswith("the page has lost its cookie")
            await load(other, url)
            assert (await ask(other, "GET", f"{url}/state", 200))["jobs"] == []
            for way in ("whole", "shown"):
                await ask(other, "GET", f"{url}/jobs/{begun['name']}/{way}", 404)
            await ask(other, "GET", f"{url}/contents/{begun['content']['name']}", 404)
            await ask(other, "DELETE", f"{url}/jobs/{begun['name']}", 404)
            order = json.dumps({"content": begun["content"]["name"], "style": {"negative": 1}})
            await ask(other, "POST", f"{url}/jobs", 404, data=order)
            for path in ("/../cli.py", "/page/page.css", "/%2e%2e/cli.py", "/cli.py"):
                await ask(other, "GET", url + path, 404)
        await ask(session, "DELETE", f"{url}/jobs/{begun['name']}", 200)
        await ask(session, "GET", f"{url}/jobs/{begun['name']}/whole", 404)

    visited(tmp_path, visit)


def test_what_is_too_much_is_refused_in_one_line(tmp_path: Path) -> None:
    def away(request: Request) -> Pixels:
        if request.inputs["image"].shape[1] == 40:
            raise Unreachable("nobody answers")
        return negative(request)

    async def visit(session: ClientSession, url: str) -> None:
        async def endless() -> object:
            for _ in range(30):
                yield bytes(10_000)

        for data in (bytes(100_001), endless()):  # with its length, and without
            answer = await ask(session, "POST", f"{url}/contents", 400, data=data)
            assert answer["error"] == "the file is over the limit of 0.1 MB; choose a smaller one"
        assert "pixels" in (await ask(session, "POST", f"{url}/contents", 400, data=png(201, 100)))["error"]
        assert "not an image" in (await ask(session, "POST", f"{url}/contents", 400, data=b"GIF"))["error"]
        for _ in range(2):
            begun = await job(session, url, {"negative": 1})
        order = {"content": begun["content"]["name"], "style": {"negative": 1}}
        answer = await ask(session, "POST", f"{url}/jobs", 400, data=json.dumps(order))
        assert answer["error"].startswith("2 of your images are waiting, which is the maximum")
        await ask(session, "DELETE", f"{url}/jobs/{begun['name']}", 200)
        large = await ask(session, "POST", f"{url}/contents", 200, data=png(150, 100))
        order["content"] = large["name"]
        answer = await ask(session, "POST", f"{url}/jobs", 400, data=json.dumps(order))
        assert answer["error"] == "negative accepts this image up to 122 pixels a side; choose a smaller size"

    visited(tmp_path, visit, away)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ({}, "choose one"),
        ({"negative": float("nan")}, "weight"),
        ("wave", "choose one"),
        ({"moon": 1}, "no style 'moon'"),
        ({"negatif": 1}, "the server has no style 'negatif'; did you mean 'negative'?"),
        ({"wave": 0}, "at least one above 0"),
        ({"wave": 1, "negative": 1}, "interpolate styles of one model"),
        ({"wave": 10**400}, "too large"),
    ],
)
def test_an_interpolation_that_cannot_be(tmp_path: Path, style: object, words: str) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        content = await ask(session, "POST", f"{url}/contents", 200, data=png())
        body = json.dumps({"content": content["name"], "style": style})
        assert words in (await ask(session, "POST", f"{url}/jobs", 400, data=body))["error"]

    visited(tmp_path, visit)


@pytest.mark.parametrize("body", ["", "[]", "[" * 100_000, "no", "9" * 5000, b"\xff{}"])
def test_a_body_that_is_no_object(tmp_path: Path, body: str | bytes) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        assert (await ask(session, "POST", f"{url}/jobs", 400, data=body))[
            "error"
        ] == "the request is not a JSON object"

    visited(tmp_path, visit)


def test_another_sites_page_may_not_ask(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        foreign = {"Origin": "https://example.org"}
        await ask(session, "POST", f"{url}/contents", 403, data=png(), headers=foreign)
        await ask(session, "GET", f"{url}/live", 403, headers=foreign)
        await ask(session, "POST", f"{url}/contents", 200, data=png(), headers={"Origin": url})
        # A proxy may call the page by another name than the browser does.
        for forwarded in ({"X-Forwarded-Host": "example.org"}, {"Origin": "https://paint.example:8443"}):
            await ask(session, "POST", f"{url}/contents", 200, data=png(), headers=foreign | forwarded)
        # Another program's page on this machine is another site's.
        for origin in ("http://127.0.0.1:9", "http://localhost:9", "null"):
            await ask(session, "POST", f"{url}/contents", 403, data=png(), headers={"Origin": origin})

    visited(tmp_path, visit, names=("https://paint.example:8443/",))


MISSHAPEN = {
    "Host": ["[::1", "a b", "localhost:port", "\xff", ""],
    "Origin": ["http://[::1", "http://[::1]:99999999", "null", "//", "\xff", ""],
    "X-Forwarded-Host": ["[", "\xff", ""],
    "Range": ["bytes=9-1", "bytes=a-", "bytes=0-0,5-6", "bytes=99999999999999999999-", "x"],
    "Content-Length": ["-1", "x", "99999999999999999999"],
    "Content-Type": ["application/json; charset=none", "multipart/form-data", "\xff"],
    "Content-Encoding": ["gzip", "br", "deflate", "zstd", "x"],
    "Transfer-Encoding": ["x", "gzip"],
    "Cookie": ["nst-visitor=", 'nst-visitor="', "=;;", "nst-visitor=\xff", "\x01"],
    "If-None-Match": ['"', "W/", "\xff"],
    "If-Modified-Since": ["x", "Sat, 31 Dec 999999 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:00 +9999999999"],
    "Expect": ["x"],
    "Sec-WebSocket-Version": ["x"],
    "Sec-WebSocket-Extensions": ["permessage-deflate; server_max_window_bits=99"],
}


def test_what_is_misshapen_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes, over every address: never a fault of the page's own."""
    addresses = ["GET /", "GET /state", "GET /live", "GET /contents/%00", "GET /thumbnails/%ff", "POST /contents"]
    addresses += ["POST /jobs", "GET /jobs/x/shown?strength=%ff", "DELETE /jobs/x", "FOO /state"]
    addresses += ["POST /styles?name=%ed%a0%80", "POST /styles/x", "GET /%", "OPTIONS *", "CONNECT x:1"]

    async def status(port: int, address: str, headers: dict[str, str]) -> int:
        upgrade = {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
        sent = {"Host": "localhost", "Cookie": "nst-visitor=" + 43 * "a", "Content-Length": "4"}
        sent |= (upgrade if "/live" in address else {"Connection": "close"}) | headers
        if "Transfer-Encoding" in headers:
            del sent["Content-Length"]
        lines = [f"{address} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items()), "", "\xff{\x00}"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join(lines).encode("latin1"))
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])

    async def visit(session: ClientSession, url: str) -> None:
        port = int(url.rpartition(":")[2])
        for address in addresses:
            for name, values in MISSHAPEN.items():
                for value in values:
                    assert await status(port, address, {name: value}) < 500, (address, name, value)

    visited(tmp_path, visit)
    assert not [record for record in caplog.records if record.name.startswith("nst_")]


def test_messages_of_a_camera_that_are_misshapen_are_ask(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        async with session.ws_connect(f"{url}/live") as live:
            texts = ["", "[]", "9" * 5000, "{}", '{"style": {"negative": NaN}}', '{"style": {"negative": -1}}']
            texts += ['{"style": {"\\ud800": 1}}', '{"style": {"negative": 1}, "strength": [1]}', "[" * 100_000]
            for text in texts:
                await live.send_str(text)
                assert (await live.receive_json())["error"], text
            await live.send_str(json.dumps({"style": {"negative": 1}, "strength": 0}))
            for frame in (b"", b"\xff\xd8\xff", png()[:60], png(2000, 2000)[:1_000_000]):
                await live.send_bytes(frame)
                assert (await live.receive_json())["error"]

    visited(tmp_path, visit)


def test_only_to_its_own_names_the_page_answers(tmp_path: Path) -> None:
    """A name of another site that is made to lead here, after its page was loaded, opens nothing."""

    async def visit(session: ClientSession, url: str) -> None:
        for host in (
            "evil.example",
            "evil.example:8080",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "[::1",
            "a b",
        ):
            rebound = {"Host": host, "Origin": f"http://{host}"}
            for method, path in (("GET", "/"), ("GET", "/state"), ("GET", "/live"), ("POST", "/contents")):
                answer = await ask(session, method, url + path, 403, data=png(), headers=rebound)
                assert "--public-name" in answer["error"]
        known = ("localhost", "127.0.0.1", "[::1]", "192.168.1.7", "paint.example", "Paint.Example")
        for host in (*known, *(f"{name}:8080" for name in known)):
            await ask(session, "GET", f"{url}/state", 200, headers={"Host": host, "Origin": f"http://{host}"})

    visited(tmp_path, visit, names=("127.0.0.1", "PAINT.example"))


def test_frames_of_a_camera_come_back_stylized(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        async with session.ws_connect(f"{url}/live") as live:
            await live.send_str(json.dumps({"style": {"moon": 1}}))
            assert "no style 'moon'" in (await live.receive_json())["error"]
            await live.send_str(json.dumps({"style": {"negative": 1}}))
            await live.send_bytes(b"no frame")
            assert "not an image" in (await live.receive_json())["error"]
            buffer = io.BytesIO()
            Image.new("RGB", (64, 48), (10, 20, 250)).save(buffer, "JPEG")
            await live.send_bytes(png(8, 8))
            assert "too small" in (await live.receive_json())["error"]
            await live.send_bytes(buffer.getvalue())
            answer = await live.receive()
            assert answer.type is WSMsgType.BINARY
            pixels = np.array(Image.open(io.BytesIO(answer.data))).astype(int)
            assert pixels.shape == (48, 64, 3) and np.abs(pixels - (245, 235, 5)).max() < 8
            await ask(session, "GET", f"{url}/live", 409)

    visited(tmp_path, visit)


async def studio_of(folder: Path, limits: Limits = LIMITS, handler: Callable[[Request], Pixels] = negative) -> Studio:
    server = Server(AsyncStyleClient(transport=MockTransport(handler, MODELS), retries=0))
    await server.look()
    return Studio(server, folder, limits)


def test_who_has_the_camera_on_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for others who come, however long ago the page was asked for anything else."""
    monkeypatch.setattr(studio, "MAX_VISITORS", 3)

    async def run() -> None:
        room = await studio_of(tmp_path)
        ann, ben = room.visitor("ann"), room.visitor("ben")
        ann.live, ann.seen, ben.seen = True, ann.seen - 3000, ben.seen - 2000
        for name in ("cleo", "dan", "eve"):
            room.visitor(name)
        assert ann.key in room.visitors and ben.key not in room.visitors
        for visitor in room.visitors.values():
            visitor.live = True
        with pytest.raises(InputError, match="3 visitors are using their cameras"):
            room.visitor("fay")

    asyncio.run(run())


def test_a_camera_that_is_stopped_counts_as_seen_then(tmp_path: Path) -> None:
    """Else whoever stylized live for an hour would be forgotten at its end."""

    async def visit(session: ClientSession, url: str, site: Site) -> None:
        async with session.ws_connect(f"{url}/live") as live:
            (visitor,) = site.studio.visitors.values()
            visitor.seen -= 10_000
            await live.close()
        await until(lambda: not visitor.live)
        assert visitor.idle < 1000

    visited(tmp_path, visit)


def test_all_visitors_together_take_so_much_of_the_disk(tmp_path: Path) -> None:
    """Those who have gone make room, the longest away first; then an image is refused, and nothing is left of it."""
    content = png()  # with what is shown of it about 15 kB

    async def run() -> None:
        room = await studio_of(tmp_path, Limits(100_000, 20_000, 2, disk=50_000, free=0))
        ann, ben, cleo, dan = (room.visitor(name) for name in ("ann", "ben", "cleo", "dan"))
        for visitor in (ann, ben, cleo):
            await room.add_content(visitor, content)
        assert 40_000 < sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()) < 50_000
        with pytest.raises(InputError, match="no room for this image; remove some"):
            await room.add_content(dan, content)
        assert list(dan.folder.iterdir()) == [] and dan.kept == {}
        ann.seen, ben.seen, cleo.seen = ann.seen - 900, ben.seen - 800, cleo.seen - 700
        ann.live = True
        await room.add_content(dan, content)
        assert {ann.key, cleo.key, dan.key} == set(room.visitors)
        stylized = room.submit(dan, next(iter(dan.contents.values())), {"negative": 1.0}, None)
        await until(lambda: stylized.status == "done")
        assert {ann.key, dan.key} == set(room.visitors)
        stylized = room.submit(dan, next(iter(dan.contents.values())), {"negative": 1.0}, None)
        await until(lambda: stylized.status == "failed")
        assert "no room for this image" in stylized.error and not stylized.file.exists()
        room.limits = Limits(100_000, 20_000, 2, free=10**18)
        with pytest.raises(InputError, match="no room for this image"):
            await room.add_content(dan, content)

    asyncio.run(run())


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), FileNotFoundError()])
def test_what_the_disk_says_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError) -> None:
    def full(*arguments: object) -> None:
        raise fault

    monkeypatch.setattr(np, "save", full)  # of what is shown, after the file itself

    async def visit(session: ClientSession, url: str) -> None:
        answer = await ask(session, "POST", f"{url}/contents", 400, data=png())
        assert re.search(r"cannot store your image \(No space left|has removed your images", str(answer["error"]))

    visited(tmp_path, visit)


def test_a_model_that_stays_unavailable_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs wait without a turn, and then say why they are not stylized; thumbnails of others are stylized."""
    monkeypatch.setattr(studio, "RETRY_PAUSE_SECONDS", 0.05)
    asked = []

    def handler(request: Request) -> Pixels:
        if request.model == "gallery" and request.inputs["style_weights"][0, 0] > 0:
            asked.append(request.model)
            raise Unavailable("the model gallery is being replaced")
        return negative(request)

    async def visit(session: ClientSession, url: str, site: Site) -> None:
        _, second = [await job(session, url, {"wave": 1}) for _ in range(2)]
        await until(lambda: len(asked) > 4)
        (visitor,) = site.studio.visitors.values()
        given = visitor.jobs.values()
        await until(lambda: any("trying again" in known.error and known.status == "waiting" for known in given))
        async with ClientSession() as other:
            await load(other, url)
            await job(other, url, {"negative": 1})
            await done(other, url)
        assert site.server.up.is_set()
        await until(lambda: len(site.server.thumbnails) == 1)  # of `scream`; `negative` takes no image of this size
        monkeypatch.setattr(studio, "UNAVAILABLE_TIMEOUT_SECONDS", 0.1)
        await until(lambda: all(known.status == "failed" for known in given))
        assert "cannot run this style now; try again later" in visitor.jobs[second["name"]].error

    visited(tmp_path, visit, handler)


def test_an_image_that_ends_the_server_is_given_up(tmp_path: Path) -> None:
    async def run() -> None:
        def handler(request: Request) -> Pixels:
            raise Unreachable("the connection was cut")

        room = await studio_of(tmp_path, handler=handler)
        ann = room.visitor("ann")
        given = room.submit(ann, await room.add_content(ann, png()), {"negative": 1.0}, None)
        for _ in range(studio.MAX_DISCONNECTS):
            room.server.up.set()
            await until(lambda: not room.server.up.is_set())
        await until(lambda: given.status == "failed")
        assert given.error.startswith(f"the server disconnected {studio.MAX_DISCONNECTS} times")

    asyncio.run(run())


def test_a_fault_of_our_own_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Background work that fails is reported in the log and on the page, and begins again; a job says it too."""
    monkeypatch.setattr(app, "RESTART_SECONDS", 0.01)
    monkeypatch.setattr(server_module, "POLL_SECONDS", 0.01)

    async def visit(session: ClientSession, url: str, site: Site) -> None:
        monkeypatch.setattr(site.server, "look", broken)
        await until(lambda: "checking the server" in site.faults)
        assert (await ask(session, "GET", f"{url}/state", 200))["faults"] == ["checking the server"]
        assert "checking the server failed" in caplog.text and "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        site.server.styles, site.server.up = [], asyncio.Event()
        await until(site.server.up.is_set)
        monkeypatch.setattr(site.server.client, "stylize", broken)
        given = await job(session, url, {"negative": 1})
        (visitor,) = site.studio.visitors.values()
        await until(lambda: visitor.jobs[given["name"]].status == "failed")
        assert visitor.jobs[given["name"]].error.startswith("nst web has a defect (ZeroDivisionError)")

    async def broken(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError

    visited(tmp_path, visit)


def test_below_a_path_of_a_proxy(tmp_path: Path) -> None:
    """Such as JupyterHub's `/proxy/8080/`: no address that the page hands out begins at the host's root."""

    async def visit(session: ClientSession, url: str, site: Site) -> None:
        async with session.get(f"{url}/", headers={"Cookie": ""}) as response:
            # So that it is the page's folder, as the browser sees it.
            assert not response.cookies["nst-visitor"]["path"]
        await until(lambda: len(site.server.thumbnails) == 2)
        styles = (await ask(session, "GET", f"{url}/state", 200))["styles"]
        assert [style["thumbnail"] and style["thumbnail"][:11] for style in styles] == [None, *2 * ["thumbnails/"]]

    visited(tmp_path, visit)
    for file in (path for path in app.PAGE.iterdir() if path.suffix in (".html", ".js", ".css")):
        assert not re.search(r"""["'`(]/(?!shown|whole)\w""", file.read_text())


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[[], StyleTrainer]:
    (tmp_path / "gallery.pth").write_bytes(b"")

    def started() -> StyleTrainer:
        server = Server(AsyncStyleClient(transport=MockTransport(negative, MODELS)))
        return StyleTrainer(server, tmp_path / "gallery.pth", tmp_path, "grpc://127.0.0.1:1", "--minutes 1", 20_000)

    return started


def test_what_was_ordered_is_found_again(trainer: Callable[[], StyleTrainer], tmp_path: Path) -> None:
    async def order() -> None:
        first = trainer()
        with pytest.raises(InputError, match="does not answer"):
            await first.submit("ann", "wave", png())
        await first.server.look()
        await first.submit("ann", "../My Wave!", png())
        for owner, name, words in (
            ("ben", "my wave", "already"),
            ("ann", "sea", "in training"),
            ("ben", "!", "letters"),
        ):
            with pytest.raises(InputError, match=words):
                await first.submit(owner, name, png())
        with pytest.raises(ImageError):
            await first.submit("ben", "sea", b"no image")

    asyncio.run(order())
    assert [path.name for path in (tmp_path / "gallery.training").iterdir()] == ["my-wave"]
    (again,) = trainer().trainings.values()
    assert (again.name, again.owner, again.status) == ("my-wave", "ann", "waiting")
    trainer().discard(again)
    assert not trainer().trainings


def test_a_trainer_that_outlived_the_page_is_waited_for(trainer: Callable[[], StyleTrainer], tmp_path: Path) -> None:
    async def run() -> None:
        first = trainer()
        await first.server.look()
        training = await first.submit("ann", "sea", png())
        own = tmp_path / "gallery.training" / training.name
        with (own / "lock").open("wb") as orphans:
            fcntl.flock(orphans, fcntl.LOCK_EX)
            second = trainer()
            (found,) = second.trainings.values()
            task = asyncio.create_task(second.run())
            await asyncio.sleep(0.3)
            assert found.status == "waiting"
        await until(lambda: found.status == "failed")  # the gallery is an empty file
        assert "gallery.pth" in found.error and "\n" not in found.error
        second.retry(found)
        await until(lambda: found.status == "training")
        with pytest.raises(InputError, match="is in training"):
            second.discard(found)
        await until(lambda: found.status == "failed")
        task.cancel()

    asyncio.run(run())


class Commands:
    """Stands in for the trainer and the exporter: a gallery is a text, and each style adds a line."""

    def __init__(self, gallery: Path) -> None:
        self.gallery, self.faults, self.ran = gallery, list[Exception | None](), list[str]()

    async def __call__(self, folder: Path, lock: object, module: str, *arguments: Any) -> None:
        self.ran.append(module + (" again" if "--resume" in arguments else ""))
        if module.startswith("nst_trainer"):
            new = Path(arguments[arguments.index("--output") + 1])
            new.with_name(f"{new.name}.resume").write_text("begun")
        if fault := self.faults.pop(0) if self.faults else None:
            raise fault
        if module.startswith("nst_trainer"):
            new.write_text(f"{self.gallery.read_text()}{folder.name}\n")
            new.with_name(f"{new.name}.resume").unlink()


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands(tmp_path / "gallery.pth")
    monkeypatch.setattr(training, "run_command", commands)
    return commands


async def made(run: StyleTrainer, *orders: tuple[str, str]) -> None:
    """Order what is not known yet, try the others again, and wait until nothing is pending."""
    await run.server.look()
    for owner, name in orders:
        if name in run.trainings:
            run.retry(run.trainings[name])
        else:
            await run.submit(owner, name, png())
    task = asyncio.create_task(run.run())
    await until(lambda: not any(training.pending for training in run.trainings.values()))
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_style_whose_export_failed_is_published_by_another_try(
    trainer: Callable[[], StyleTrainer], commands: Commands, tmp_path: Path
) -> None:
    """The gallery has it already: it is not learned once more. Also by a page that was started again."""
    commands.faults = [None, CommandFailed("no room"), CommandFailed("no room")]

    async def run() -> None:
        first = trainer()
        await made(first, ("ann", "sea"))
        assert (first.trainings["sea"].status, first.trainings["sea"].error) == ("failed", "no room")
        await made(first, ("ann", "sea"))
        second = trainer()
        await made(second, ("ann", "sea"))
        assert second.trainings["sea"].status == "done"

    asyncio.run(run())
    assert commands.ran == ["nst_trainer", "nst_export", "nst_export", "nst_export"]
    assert (tmp_path / "gallery.pth").read_text() == "sea\n"


def test_what_is_tried_again_loses_no_style_that_was_added_meanwhile(
    trainer: Callable[[], StyleTrainer], commands: Commands, tmp_path: Path
) -> None:
    """A training that was begun has the gallery of then, and would replace the other style."""
    commands.faults = [CommandFailed("killed")]

    async def run() -> None:
        page = trainer()
        await made(page, ("ann", "sea"), ("ben", "fire"))
        assert [training.status for training in page.trainings.values()] == ["failed", "done"]
        await made(page, ("ann", "sea"))
        commands.faults = [CommandFailed("killed")]
        await made(page, ("cleo", "ice"))
        await made(page, ("cleo", "ice"))

    asyncio.run(run())
    assert commands.ran.count("nst_trainer again") == 1  # of ice, where nothing was added meanwhile
    assert (tmp_path / "gallery.pth").read_text() == "fire\nsea\nice\n"


def test_a_style_that_fails_in_any_way_keeps_no_other_from_being_made(
    trainer: Callable[[], StyleTrainer], commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.faults = [ZeroDivisionError(), OSError("no disk")]
    monkeypatch.setattr(training, "MAX_KEPT", 2)

    async def run() -> None:
        page = trainer()
        await made(page, ("ann", "sea"), ("ben", "fire"))
        assert page.trainings["sea"].error.startswith("nst web has a defect (ZeroDivisionError)")
        assert page.trainings["fire"].error == "no disk"
        monkeypatch.setattr(training, "atomic_write", refused)
        with pytest.raises(WriteError):
            page.retry(page.trainings["sea"])
        with pytest.raises(WriteError):
            await page.submit("cleo", "ice", png())
        assert [known.status for known in page.trainings.values()] == ["failed"]  # fire: the oldest made room for ice
        monkeypatch.undo()

    def refused(*arguments: object, **options: object) -> None:
        raise WriteError("no room")

    asyncio.run(run())
    assert [folder.name for folder in (tmp_path / "gallery.training").iterdir()] == ["fire"]


def test_a_learned_style_waits_for_the_server_but_not_for_ever(
    trainer: Callable[[], StyleTrainer], commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "SERVER_TIMEOUT_SECONDS", 0.01)

    async def run() -> None:
        page = trainer()
        await page.server.look()
        await page.submit("ann", "sea", png())
        monkeypatch.setattr(page.server, "look", lambda: asyncio.sleep(0))
        page.server.up.clear()
        await made(page)
        assert "the style is trained, but the server does not answer" in page.trainings["sea"].error
        page.server.up.set()
        await made(page, ("ann", "sea"))
        assert page.trainings["sea"].status == "done"

    asyncio.run(run())


PAGE = """
import asyncio, fcntl, sys
from pathlib import Path
from nst_apps.web.training import run_command

async def run():
    folder = Path(sys.argv[1])
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await run_command(folder, lock, "sleeper", folder / "began")

asyncio.run(run())
"""


def free(lock: BinaryIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_trainer_ends_with_a_page_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import sys, time, pathlib\npathlib.Path(sys.argv[1]).touch()\ntime.sleep(600)\n"
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    page = subprocess.Popen([sys.executable, "-c", PAGE, str(tmp_path)], env=os.environ | {"PYTHONPATH": paths})

    async def run() -> None:
        with (tmp_path / "lock").open("ab") as lock:
            await until((tmp_path / "began").exists)
            assert not free(lock)
            page.kill()
            page.wait()
            await until(lambda: free(lock))  # the trainer holds it as long as it lives

    asyncio.run(run())


def test_what_an_earlier_version_has_left_is_found(trainer: Callable[[], StyleTrainer], tmp_path: Path) -> None:
    for name, more in (("sea", {}), ("ice", {"learned": [9, 9], "left": "1:20", "learned_whole": True})):
        folder = tmp_path / "gallery.making" / name
        folder.mkdir(parents=True)
        document = {"name": name, "owner": "ann", "ordered": 7.0, "status": "training", "error": "", "base": "b"} | more
        (folder / "making.json").write_text(json.dumps(document))
    for _ in range(2):
        found = trainer().trainings
        assert sorted((training.name, training.in_gallery) for training in found.values()) == [
            ("ice", True),
            ("sea", False),
        ]
        assert all(training.submitted == 7.0 and training.pending for training in found.values())
    assert not (tmp_path / "gallery.making").exists()


def test_half_an_order_is_none(trainer: Callable[[], StyleTrainer], tmp_path: Path) -> None:
    for name, text in (("half", '{"name": "ha'), ("other", '{"size": 3}')):
        (tmp_path / "gallery.training" / name).mkdir(parents=True)
        (tmp_path / "gallery.training" / name / "training.json").write_text(text)
    assert trainer().trainings == {}
    assert not StyleTraining("x", "ann", status="done").pending


def test_the_command_says_what_it_needs(tmp_path: Path) -> None:
    def failed(*options: object) -> str:
        result = CliRunner().invoke(web_app, [*map(str, options)])
        assert result.exit_code == 1, result.output
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    assert "no such checkpoint" in failed("--gallery", tmp_path / "no.pth")
    shutil.copyfile(__file__, tmp_path / "gallery.pth")
    assert "no such folder" in failed("--gallery", tmp_path / "gallery.pth", "--repository", tmp_path / "no")
    wrong = ("--gallery", tmp_path / "gallery.pth", "--repository", tmp_path, "--train", "'")
    assert "cannot be split into options" in failed(*wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in failed("--port", taken.getsockname()[1])
    assert "cannot listen on a..b:0" in failed("--address", "a..b", "--port", 0)
    assert "cannot listen on [2001:db8::1]:0" in failed("--address", "[2001:db8::1]", "--port", 0)


def test_what_a_killed_page_left_goes_and_what_another_holds_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "nst-web-left").mkdir()
    (tmp_path / "nst-web-link").symlink_to(tmp_path)
    with cli.visitors_folder() as young:
        assert (tmp_path / "nst-web-left").exists() and young.stat().st_mode & 0o777 == 0o700
        monkeypatch.setattr(cli, "YOUNG_SECONDS", -1.0)
        with cli.visitors_folder() as other:
            assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, "nst-web-link"}
    assert [path.name for path in tmp_path.iterdir()] == ["nst-web-link"]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(InputError, match="set TMPDIR"), cli.visitors_folder():
        pass


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("when", ["starting", "ready"])
def test_a_page_by_ipv6_is_stopped_by_sigterm_and_leaves_nothing(tmp_path: Path, when: str) -> None:
    """Also while it starts."""
    code = "from nst_apps.web.cli import web_app; web_app()"
    if when == "starting":  # as soon as there is what might be left
        code = f"""import os, signal, tempfile
made = tempfile.TemporaryDirectory
def stopped(*arguments, **options):
    folder = made(*arguments, **options)
    os.kill(os.getpid(), signal.SIGTERM)
    return folder
tempfile.TemporaryDirectory = stopped
{code}"""
    address = "::1" if has_ipv6() else "127.0.0.1"
    command = [sys.executable, "-c", code, "--address", address, "--port", "0", "--url", "grpc://127.0.0.1:9"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    page = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert page.stderr is not None
    lines = iter(page.stderr.readline, "")
    ready = next((found for line in lines if (found := re.match(r"ready: (http://\S+)", line))), None)
    assert ready is not None
    if when == "ready":
        if address == "::1":
            assert ready[1].startswith("http://[::1]:")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(ready[1]) as answer:
            assert b"<!doctype html>" in answer.read()
        page.terminate()
    messages = page.stderr.read()
    assert page.wait(60) == 0 and "Traceback" not in messages and messages.endswith("stopped\n")
    page.stderr.close()
    assert list(tmp_path.iterdir()) == []
