"""`nst web` in a real browser, before a real Triton."""

import asyncio
import os
import queue
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import numpy as np
import pytest
import torch
import yarl
from PIL import Image
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

from nst_client import StyleClient
from nst_core.images import blend, fit, keep_colors, open_image, sample_photographs
from nst_server.endpoints import Endpoints
from nst_trainer.checkpoint import Checkpoint, frozen, load, save
from nst_trainer.networks import Johnson
from nst_trainer.vgg import Vgg16

from .serving import BIN, Models, Server, certificate, serve

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="no chromium: apt-get install chromium")

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
    "--host-resolver-rules=MAP *.example 127.0.0.1",
]
PATIENCE = 120_000
"""Milliseconds for what takes a second or two on an idle machine."""

STYLIZED = """() => {
  const canvas = document.getElementById("canvas");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return canvas.width === 512 && new Set(data).size > 20;
}"""
"""Whether the camera's canvas shows an image that is not blank."""

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@dataclass
class Web:
    """A running `nst web` and its messages."""

    process: subprocess.Popen[str]
    url: str = ""
    messages: list[str] = field(default_factory=list)

    def stop(self, sign: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(sign)
        self.process.wait(120)


def web(address: str, *options: object, port: int = 0) -> Web:
    command = [str(BIN / "nst"), "web", "--url", address, "--port", str(port), *map(str, options)]
    running = Web(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
    ready = threading.Event()

    def listen() -> None:
        assert running.process.stderr is not None
        for line in running.process.stderr:
            running.messages.append(line.rstrip())
            if found := re.match(r"ready: (http://\S+)", line):
                running.url = found[1]
                ready.set()
        ready.set()
        running.process.stderr.close()

    threading.Thread(target=listen, daemon=True).start()
    assert ready.wait(120) and running.url, running.messages
    return running


@pytest.fixture(scope="module")
def repository(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since a style is added to it."""
    return shutil.copytree(models.repository, tmp_path_factory.mktemp("web") / "repository")


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[Server]:
    running = serve(repository, repository.parent / "triton.log")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def site(server: Server) -> Iterator[Web]:
    """Small limits, no training of styles."""
    options = ("--max-upload", 0.5, "--max-pixels", 400_000, "--public-name", "paint.example")
    running = web(server.endpoints.grpc, *options)
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open the page as somebody new; what its script or its console complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def opened(url: str, viewport: dict[str, int] = DESKTOP) -> Page:
        context = browser.new_context(viewport=viewport, permissions=["camera"], ignore_https_errors=True)
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()

        def elsewhere(request: Request) -> None:
            if not request.url.startswith((url, "blob:", "data:")):
                complaints.append(request.url)

        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", elsewhere)
        # From the beginning: told of it when the dialog is wanted, the browser may open a window of its own first.
        page.on("filechooser", lambda chooser: None)
        page.goto(url)
        return page

    expect.set_options(timeout=PATIENCE)
    yield opened
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As PNG, so that a download can be compared; over the models' limit, so that it goes by tiles."""
    path = tmp_path_factory.mktemp("content") / "cat.png"
    Image.fromarray(fit(open_image(sample_photographs()[1]), 840, 112).pixels).save(path)
    return path


def choose(page: Page, file: Path, style: str) -> None:
    page.set_input_files("#file", file)
    page.click(f"#styles button[data-style='{style}']")


def stylized(page: Page, before: int = 0) -> None:
    """Press the button, and wait until the job is shown that it adds to those before."""
    page.click("#stylize")
    expect(page.locator("#queue li")).to_have_count(before + 1)
    expect(page.locator("#after")).to_be_visible()


def downloaded(page: Page) -> np.ndarray:
    with page.expect_download() as download:
        page.click("#download")
    return open_image(Path(download.value.path())).pixels


def slide(page: Page, slider: str, value: int) -> None:
    """By the keyboard: from the left end, a step at a time."""
    page.focus(slider)
    page.keyboard.press("Home")
    for _ in range(value):
        page.keyboard.press("ArrowRight")


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alike(left: np.ndarray, right: np.ndarray) -> bool:
    """The same to the level of rounding: a server's answer need not be the same to the bit."""
    return left.shape == right.shape and int(np.abs(left.astype(int) - right).max()) <= 2


def test_an_image_is_stylized_with_every_control(
    site: Web, server: Server, visit: Callable[..., Page], content: Path
) -> None:
    page = visit(site.url)
    expect(page.locator("#styles img")).to_have_count(3)
    expect(page.locator("#off")).to_contain_text("--gallery")
    expect(page.locator("#stylize")).to_be_disabled()
    choose(page, content, "a")
    stylized(page)
    pixels = open_image(content).pixels
    with StyleClient(server.endpoints.grpc) as client:
        whole = client.stylize(pixels, "a")
        interpolated = client.stylize(pixels, {"a": 0.4, "b": 0.2})
    assert alike(downloaded(page), whole)

    slide(page, "#strength", 40)
    expect(page.locator("#after")).to_have_attribute("src", re.compile(r"strength=0.4&preserve=0"))
    assert alike(downloaded(page), blend(pixels, whole, 0.4))
    page.focus("#strength")
    page.keyboard.press("End")
    page.check("#preserve")
    expect(page.locator("#after")).to_have_attribute("src", re.compile(r"strength=1&preserve=1"))
    assert alike(downloaded(page), keep_colors(pixels, whole))
    page.uncheck("#preserve")

    slide(page, "#compare", 30)
    assert page.locator("#frame").evaluate("frame => frame.style.getPropertyValue('--cut')") == "30"
    clip = page.locator("#after").evaluate("image => getComputedStyle(image).clipPath")
    assert clip == "inset(0px 0px 0px 30%)"

    page.check("#interpolate")
    page.click("#styles button[data-style='b']")
    slide(page, "input[aria-label='Weight of a']", 40)
    slide(page, "input[aria-label='Weight of b']", 20)
    stylized(page, 1)
    assert alike(downloaded(page), interpolated)

    page.select_option("#size", "800")
    stylized(page, 2)
    assert downloaded(page).shape == (107, 800, 3)
    page.click("#queue li:last-child .show")
    assert alike(downloaded(page), whole)
    page.click("#queue li:last-child .gone")
    expect(page.locator("#queue li")).to_have_count(2)


def test_an_image_is_dropped_pasted_and_taken(site: Web, visit: Callable[..., Page]) -> None:
    page = visit(site.url)
    give = """async ([kind, width]) => {
      const canvas = Object.assign(document.createElement("canvas"), { width, height: 50 });
      canvas.getContext("2d").fillRect(0, 0, 9, 9);
      const data = new DataTransfer();
      data.items.add(new File([await new Promise((done) => canvas.toBlob(done))], "x.png", { type: "image/png" }));
      document.getElementById("stage").dispatchEvent(kind === "drop"
        ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
        : new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
    }"""
    for kind, width in (("drop", 70), ("paste", 80)):
        page.evaluate(give, [kind, width])
        expect(page.locator("#size")).to_contain_text(re.compile(f"^{width} . 50"))
    page.click("#camera2")
    expect(page.locator("#pace")).to_contain_text("frames/s")
    page.click("#styles button[data-style='starry']")
    page.wait_for_function(STYLIZED)
    page.click("#shoot")
    expect(page.locator("#size")).to_contain_text(re.compile("^640 . 480"))
    expect(page.locator("#live")).to_be_hidden()


def test_a_name_that_leads_here_is_not_enough(site: Web, visit: Callable[..., Page]) -> None:
    port = site.url.rpartition(":")[2]
    expect(visit(f"http://paint.example:{port}").locator("#styles img")).to_have_count(3)
    expect(visit(f"http://evil.example:{port}").locator("body")).to_contain_text("unknown host name 'evil.example'")


def test_what_cannot_be_stylized_is_an_error_of_one_line(
    site: Web, visit: Callable[..., Page], content: Path, tmp_path: Path
) -> None:
    page = visit(site.url)
    expect(page.locator("#styles img")).to_have_count(3)
    text, large, wide, tiny = (tmp_path / name for name in ("text.jpg", "large.png", "wide.png", "tiny.png"))
    text.write_text("no image")
    large.write_bytes(os.urandom(600_000))
    Image.new("RGB", (1000, 500)).save(wide)
    Image.new("RGB", (8, 8)).save(tiny)
    for file, words in ((text, "not an image"), (large, "0.5 MB"), (wide, "megapixels")):
        page.set_input_files("#file", file)
        expect(page.locator("#error")).to_contain_text(words)
        assert "\n" not in page.locator("#error").inner_text()
        expect(page.locator("#stylize")).to_be_disabled()
    choose(page, tiny, "a")

    def failed(route: Route) -> None:
        state = route.fetch().json()
        for job in state["jobs"]:
            job |= {"status": "failed", "error": "the server has no room"}
        route.fulfill(json=state)

    page.route("**/state", failed)
    page.click("#stylize")
    expect(page.locator("#error")).to_contain_text("The server has no room")
    expect(page.locator("#queue")).to_have_text(re.compile("Failed"))
    page.unroute("**/state", failed)
    page.set_input_files("#file", content)
    expect(page.locator("#error")).to_be_hidden()
    stylized(page, 1)
    expect(page.locator("#error")).to_be_hidden()


def test_two_visitors_stylize_at_once_and_see_nothing_of_each_other(
    site: Web, visit: Callable[..., Page], content: Path
) -> None:
    ann, ben = visit(site.url), visit(site.url)
    for page, style in ((ann, "a"), (ben, "starry")):
        choose(page, content, style)
    for page in (ann, ben):
        page.click("#stylize")
    for page in (ann, ben):
        expect(page.locator("#after")).to_be_visible()
        expect(page.locator("#queue li")).to_have_count(1)
    own = [ann.locator("#after").get_attribute("src"), ann.locator("#before").get_attribute("src")]
    job = f"jobs/{ann.locator('#queue li').get_attribute('data-job')}"
    for address in (*own, f"{job}/whole"):
        assert ann.request.get(f"{site.url}/{address}").status == 200
        assert ben.request.get(f"{site.url}/{address}").status == 404
    assert ben.request.delete(f"{site.url}/{job}").status == 404
    assert len(ann.request.get(f"{site.url}/state").json()["jobs"]) == 1


PREFIX = "/user/ann/proxy/8080"


async def passed_on(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
    """What a proxy does that shows the page below a path: strip it, call the page by its address, pass all on."""
    site: yarl.URL = request.app[TO]
    if not request.raw_path.startswith(f"{PREFIX}/"):
        raise aiohttp.web.HTTPNotFound(text=f"{request.raw_path} is not the page's")
    target = site.join(yarl.URL(request.raw_path.removeprefix(PREFIX), encoded=True))
    own = {"host", "connection", "upgrade", "content-length", "transfer-encoding"}
    headers = {name: value for name, value in request.headers.items() if name.lower() not in own}
    headers = {name: value for name, value in headers.items() if not name.lower().startswith("sec-websocket")}
    headers["X-Forwarded-Host"] = request.host
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            async with session.ws_connect(target, headers=headers) as there:
                here = aiohttp.web.WebSocketResponse()
                await here.prepare(request)

                async def pour(source: Any, into: Any) -> None:
                    async for message in source:
                        binary = message.type is aiohttp.WSMsgType.BINARY
                        await (into.send_bytes if binary else into.send_str)(message.data)

                pouring = [asyncio.create_task(pour(*ways)) for ways in ((here, there), (there, here))]
                await asyncio.wait(pouring, return_when=asyncio.FIRST_COMPLETED)
                for task in pouring:
                    task.cancel()
                await asyncio.gather(*pouring, return_exceptions=True)
                await here.close()
                return here
        async with session.request(request.method, target, headers=headers, data=await request.read()) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in own}
            return aiohttp.web.Response(status=answer.status, body=await answer.read(), headers=kept)


TO = aiohttp.web.AppKey("TO", yarl.URL)


@pytest.fixture
def proxy(site: Web, tmp_path: Path) -> Iterator[str]:
    """By https, with a certificate of its own."""
    chain, key = certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain, key)
    started = queue.Queue[tuple[int, asyncio.AbstractEventLoop]]()
    stopped = asyncio.Event()

    async def run() -> None:
        app = aiohttp.web.Application(client_max_size=10**7)
        app[TO] = yarl.URL(site.url)
        app.router.add_route("*", "/{path:.*}", passed_on)
        runner = aiohttp.web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        started.put((runner.addresses[0][1], asyncio.get_running_loop()))
        await stopped.wait()
        await runner.cleanup()
        await asyncio.sleep(0.25)  # as aiohttp wants it, for TLS to be ended by both sides

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    port, loop = started.get(timeout=60)
    yield f"https://127.0.0.1:{port}{PREFIX}/"
    loop.call_soon_threadsafe(stopped.set)
    thread.join(60)


def test_below_a_path_behind_a_proxy(proxy: str, visit: Callable[..., Page], content: Path) -> None:
    """As in JupyterHub or a codespace: all that the page asks for lies below its own address, the camera's way too."""
    page = visit(proxy)
    expect(page.locator("#styles img")).to_have_count(3)
    for image in page.locator("#styles img, h1 img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0 || image.decode().then(() => true)")
    choose(page, content, "a")
    stylized(page)
    assert downloaded(page).shape == open_image(content).pixels.shape
    (cookie,) = page.context.cookies()
    assert cookie["path"] == PREFIX and cookie["httpOnly"]
    with page.expect_event("websocket") as opened:
        page.click("#camera2")
    assert opened.value.url == f"wss{proxy.removeprefix('https')}live"
    page.wait_for_function(STYLIZED)
    page.click("#stop")
    page.click("#queue .gone")
    expect(page.locator("#queue li")).to_have_count(0)


def test_a_phone_and_a_keyboard_are_enough(site: Web, visit: Callable[..., Page], content: Path) -> None:
    page = visit(site.url, PHONE)
    expect(page.locator("#styles img")).to_have_count(3)

    def tab_to(selector: str) -> None:
        for _ in range(40):
            if page.locator(selector).evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the keyboard does not reach {selector}")

    tab_to("#choose")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(content)
    expect(page.locator("#frame")).to_be_visible()
    tab_to("#styles button[data-style='b']")
    page.keyboard.press("Space")
    expect(page.locator("#styles button[data-style='b']")).to_have_attribute("aria-pressed", "true")
    for selector in ("#strength", "#preserve", "#size"):
        tab_to(selector)
    tab_to("#stylize")
    page.keyboard.press("Enter")
    expect(page.locator("#after")).to_be_visible()
    for selector in ("#compare", "#download", "#queue .show", "#queue .gone"):
        tab_to(selector)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide == PHONE["width"]


def test_a_style_is_made_though_it_failed_and_the_page_is_started_again(
    server: Server, repository: Path, visit: Callable[..., Page], vgg: Vgg16, tmp_path: Path, content: Path
) -> None:
    torch.manual_seed(2)
    gallery = tmp_path / "gallery.pth"
    save(Checkpoint(frozen(Johnson(width=0.125, styles=2)), ("p", "q")), gallery)
    photographs = tmp_path / "photographs"
    small = f"--iterations 50 --batch 1 --crop 64 --style-size 64 --photos {photographs}"
    options = ("--gallery", gallery, "--repository", repository, "--train", small)
    port = Endpoints.free().http_port
    running = web(server.endpoints.grpc, *options, port=port)
    try:
        page = visit(running.url)
        expect(page.locator("#styles img")).to_have_count(3)
        page.set_input_files("#style-image", sample_photographs()[3])
        expect(page.locator("#name")).to_have_value("rocket")
        page.fill("#name", "a")
        page.click("#learn")
        expect(page.locator("#new-error")).to_contain_text("a style a exists already", ignore_case=True)
        page.fill("#name", "My Rocket")
        page.click("#learn")
        expect(page.locator("#trainings")).to_contain_text(f"my-rocket: failed: {photographs}: no such folder")
        shutil.copytree(sample_photographs()[0].parent, photographs)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator("#trainings progress")).to_be_visible()
        begun = gallery.with_suffix(".training") / "my-rocket" / "gallery.pth.resume"
        until(begun.exists)
        running.stop()
        assert begun.exists()
        assert load(gallery).styles == ("p", "q")
        expect(page.locator("#away")).to_be_visible()
        running = web(server.endpoints.grpc, *options, port=port)
        expect(page.locator("#trainings")).to_contain_text("my-rocket: training, ")
        expect(page.locator("#trainings")).to_contain_text("my-rocket: done", timeout=3 * PATIENCE)
        assert load(gallery).styles == ("p", "q", "my-rocket")
        choose(page, content, "my-rocket")
        page.select_option("#size", "800")
        stylized(page)
        page.click("#trainings button")
        expect(page.locator("#trainings li")).to_have_count(0)
    finally:
        running.stop()


def test_a_server_may_go_away_and_come_back(
    site: Web, server: Server, repository: Path, visit: Callable[..., Page], content: Path
) -> None:
    page = visit(site.url)
    choose(page, content, "a")
    server.stop()
    expect(page.locator("#away")).to_be_visible()
    page.click("#stylize")
    expect(page.locator("#progress")).to_have_text("Waiting for the server")
    again = serve(repository, repository.parent / "again.log", endpoints=server.endpoints)
    server.process = again.process  # for the fixture to stop
    expect(page.locator("#after")).to_be_visible()
    expect(page.locator("#away")).to_be_hidden()
