"""What `nst web` answers to requests that a browser would not send; tests/end_to_end/test_web.py has a browser."""

import asyncio
import fcntl
import io
import json
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import pytest
from aiohttp import ClientSession, WSMsgType, web
from PIL import Image
from typer.testing import CliRunner

from nst_client import AsyncStyleClient, MockTransport, Request, Unreachable
from nst_client.web.app import Site, application
from nst_client.web.cli import web_app
from nst_client.web.making import Maker, Making
from nst_client.web.server import Server
from nst_client.web.studio import Limits, Studio
from nst_core.errors import InputError, PictureError
from nst_core.images import Pixels

MODELS = {"negative": {"min_side": "16", "max_pixels": "10000"}, "gallery": {"styles": "wave,scream"}}
LIMITS = Limits(upload=100_000, pixels=20_000, jobs=2)

Visit = Callable[[ClientSession, str], Awaitable[None]]


def negative(request: Request) -> Pixels:
    return 255 - request.inputs["image"]


def png(width: int = 60, height: int = 40) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def visited(
    folder: Path, visit: Visit, handler: Callable[[Request], Pixels] = negative, names: tuple[str, ...] = ()
) -> None:
    """Let somebody who has loaded the page ask on."""

    async def run() -> None:
        server = Server(AsyncStyleClient(transport=MockTransport(handler, MODELS), retries=0))
        runner = web.AppRunner(application(Site(Studio(server, folder, LIMITS), None), names), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with ClientSession() as session:
                await load(session, url)
                await until(lambda: server.up.is_set())
                await visit(session, url)
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


async def said(session: ClientSession, method: str, url: str, status: int, **more: object) -> dict[str, object]:
    async with session.request(method, url, **more) as response:
        answer = await response.json()
        assert response.status == status, answer
        return answer


async def painting(session: ClientSession, url: str, style: object) -> dict[str, object]:
    photo = await said(session, "POST", f"{url}/photos", 200, data=png())
    body = json.dumps({"photo": photo["name"], "style": style})
    return await said(session, "POST", f"{url}/paintings", 200, data=body)


async def done(session: ClientSession, url: str) -> None:
    async with asyncio.timeout(60):
        while any(one["status"] != "done" for one in (await said(session, "GET", f"{url}/state", 200))["paintings"]):
            await asyncio.sleep(0.02)


def test_a_download_is_the_painting_in_the_photographs_format(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        one = await painting(session, url, {"negative": 1})
        await done(session, url)
        async with session.get(f"{url}/paintings/{one['name']}/whole?strength=0.25") as response:
            assert response.headers["Content-Disposition"] == 'attachment; filename="negative.png"'
            assert response.headers["Cache-Control"] == "private, no-store"
            image = Image.open(io.BytesIO(await response.read()))
        assert image.format == "PNG"
        photo = np.array(Image.open(io.BytesIO(png()))).astype(float)
        assert np.abs(np.array(image) - (0.75 * photo + 0.25 * (255 - photo))).max() <= 1
        for strength in ("2", "nan", "x"):
            answer = await said(session, "GET", f"{url}/paintings/{one['name']}/shown?strength={strength}", 400)
            assert answer["error"] == f"strength is {strength}: it is from 0 to 1"

    visited(tmp_path, visit)


def test_another_visitor_finds_nothing(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        one = await painting(session, url, {"negative": 1})
        await done(session, url)
        async with ClientSession() as other:
            assert (await said(other, "GET", f"{url}/state", 403))["error"].startswith("the page has lost its cookie")
            await load(other, url)
            assert (await said(other, "GET", f"{url}/state", 200))["paintings"] == []
            for way in ("whole", "shown"):
                await said(other, "GET", f"{url}/paintings/{one['name']}/{way}", 404)
            await said(other, "GET", f"{url}/photos/{one['photo']['name']}", 404)
            await said(other, "DELETE", f"{url}/paintings/{one['name']}", 404)
            order = json.dumps({"photo": one["photo"]["name"], "style": {"negative": 1}})
            await said(other, "POST", f"{url}/paintings", 404, data=order)
            for path in ("/../cli.py", "/page/page.css", "/%2e%2e/cli.py", "/cli.py"):
                await said(other, "GET", url + path, 404)
        await said(session, "DELETE", f"{url}/paintings/{one['name']}", 200)
        await said(session, "GET", f"{url}/paintings/{one['name']}/whole", 404)

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
            answer = await said(session, "POST", f"{url}/photos", 400, data=data)
            assert answer["error"] == "the file is over the limit of 0.1 MB"
        assert "pixels" in (await said(session, "POST", f"{url}/photos", 400, data=png(201, 100)))["error"]
        assert "not a picture" in (await said(session, "POST", f"{url}/photos", 400, data=b"GIF"))["error"]
        for _ in range(2):
            one = await painting(session, url, {"negative": 1})
        order = {"photo": one["photo"]["name"], "style": {"negative": 1}}
        answer = await said(session, "POST", f"{url}/paintings", 400, data=json.dumps(order))
        assert answer["error"].startswith("2 of your paintings are waiting, and no more may")
        await said(session, "DELETE", f"{url}/paintings/{one['name']}", 200)
        large = await said(session, "POST", f"{url}/photos", 200, data=png(150, 100))
        order["photo"] = large["name"]
        answer = await said(session, "POST", f"{url}/paintings", 400, data=json.dumps(order))
        assert answer["error"] == "negative paints this picture up to 122 pixels here: choose a smaller size"

    visited(tmp_path, visit, away)


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ({}, "choose one"),
        ("wave", "choose one"),
        ({"moon": 1}, "no style 'moon'"),
        ({"wave": 0}, "at least one above 0"),
        ({"wave": 1, "negative": 1}, "only styles of one model"),
        ({"wave": 10**400}, "too large"),
    ],
)
def test_a_mix_that_cannot_be(tmp_path: Path, style: object, words: str) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        photo = await said(session, "POST", f"{url}/photos", 200, data=png())
        body = json.dumps({"photo": photo["name"], "style": style})
        assert words in (await said(session, "POST", f"{url}/paintings", 400, data=body))["error"]

    visited(tmp_path, visit)


@pytest.mark.parametrize("body", ["", "[]", "[" * 100_000, "no"])
def test_a_body_that_is_no_object(tmp_path: Path, body: str) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        assert (await said(session, "POST", f"{url}/paintings", 400, data=body))["error"] == "this is no JSON object"

    visited(tmp_path, visit)


def test_another_sites_page_may_not_ask(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        foreign = {"Origin": "https://example.org"}
        await said(session, "POST", f"{url}/photos", 403, data=png(), headers=foreign)
        await said(session, "GET", f"{url}/live", 403, headers=foreign)
        await said(session, "POST", f"{url}/photos", 200, data=png(), headers={"Origin": url})

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
            for method, path in (("GET", "/"), ("GET", "/state"), ("GET", "/live"), ("POST", "/photos")):
                answer = await said(session, method, url + path, 403, data=png(), headers=rebound)
                assert "--public-name" in answer["error"]
        known = ("localhost", "127.0.0.1", "[::1]", "192.168.1.7", "paint.example", "Paint.Example")
        for host in (*known, *(f"{one}:8080" for one in known)):
            await said(session, "GET", f"{url}/state", 200, headers={"Host": host, "Origin": f"http://{host}"})

    visited(tmp_path, visit, names=("127.0.0.1", "PAINT.example"))


def test_frames_of_a_camera_come_back_painted(tmp_path: Path) -> None:
    async def visit(session: ClientSession, url: str) -> None:
        async with session.ws_connect(f"{url}/live") as live:
            await live.send_str(json.dumps({"style": {"moon": 1}}))
            assert "no style 'moon'" in (await live.receive_json())["error"]
            await live.send_str(json.dumps({"style": {"negative": 1}}))
            await live.send_bytes(b"no frame")
            assert "not a picture" in (await live.receive_json())["error"]
            buffer = io.BytesIO()
            Image.new("RGB", (64, 48), (10, 20, 250)).save(buffer, "JPEG")
            await live.send_bytes(png(8, 8))
            assert "too small" in (await live.receive_json())["error"]
            await live.send_bytes(buffer.getvalue())
            answer = await live.receive()
            assert answer.type is WSMsgType.BINARY
            pixels = np.array(Image.open(io.BytesIO(answer.data))).astype(int)
            assert pixels.shape == (48, 64, 3) and np.abs(pixels - (245, 235, 5)).max() < 8
            await said(session, "GET", f"{url}/live", 409)

    visited(tmp_path, visit)


@pytest.fixture
def maker(tmp_path: Path) -> Callable[[], Maker]:
    (tmp_path / "gallery.pth").write_bytes(b"")

    def started() -> Maker:
        server = Server(AsyncStyleClient(transport=MockTransport(negative, MODELS)))
        return Maker(server, tmp_path / "gallery.pth", tmp_path, "grpc://127.0.0.1:1", "--minutes 1", 20_000)

    return started


def test_what_was_ordered_is_found_again(maker: Callable[[], Maker], tmp_path: Path) -> None:
    async def order() -> None:
        first = maker()
        with pytest.raises(InputError, match="does not answer"):
            await first.order("ann", "wave", png())
        await first.server.look()
        await first.order("ann", "../My Wave!", png())
        for owner, name, words in (
            ("ben", "my wave", "already"),
            ("ann", "sea", "being made"),
            ("ben", "!", "letters"),
        ):
            with pytest.raises(InputError, match=words):
                await first.order(owner, name, png())
        with pytest.raises(PictureError):
            await first.order("ben", "sea", b"no picture")

    asyncio.run(order())
    assert [path.name for path in (tmp_path / "gallery.making").iterdir()] == ["my-wave"]
    (again,) = maker().makings.values()
    assert (again.name, again.owner, again.status) == ("my-wave", "ann", "waiting")
    maker().forget(again)
    assert not maker().makings


def test_a_trainer_that_outlived_the_page_is_waited_for(maker: Callable[[], Maker], tmp_path: Path) -> None:
    async def run() -> None:
        first = maker()
        await first.server.look()
        making = await first.order("ann", "sea", png())
        own = tmp_path / "gallery.making" / making.name
        with (own / "lock").open("wb") as orphans:
            fcntl.flock(orphans, fcntl.LOCK_EX)
            second = maker()
            (found,) = second.makings.values()
            task = asyncio.create_task(second.run())
            await asyncio.sleep(0.3)
            assert found.status == "waiting"
        await until(lambda: found.status == "failed")  # the gallery is an empty file
        assert "gallery.pth" in found.error and "\n" not in found.error
        second.again(found)
        await until(lambda: found.status == "training")
        with pytest.raises(InputError, match="being made now"):
            second.forget(found)
        await until(lambda: found.status == "failed")
        task.cancel()

    asyncio.run(run())


def test_half_an_order_is_none(maker: Callable[[], Maker], tmp_path: Path) -> None:
    for name, text in (("half", '{"name": "ha'), ("other", '{"size": 3}')):
        (tmp_path / "gallery.making" / name).mkdir(parents=True)
        (tmp_path / "gallery.making" / name / "making.json").write_text(text)
    assert maker().makings == {}
    assert not Making("x", "ann", status="done").pending


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
    assert "no options of nst train" in failed(*wrong)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "cannot listen on 127.0.0.1" in failed("--port", taken.getsockname()[1])
