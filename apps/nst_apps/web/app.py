"""Answer the browser's requests: the page, JSON, images, and a WebSocket for the camera."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import WSMsgType, web

from nst_apps.web.security import guard, set_secret, visitor_secret
from nst_apps.web.server import key
from nst_apps.web.studio import ContentImage, Studio, StylizeJob, Visitor
from nst_apps.web.training import StyleTrainer, StyleTraining
from nst_client.errors import Unavailable, Unreachable
from nst_client.stylize.processing import StylizeOptions, postprocess
from nst_core.errors import InputError, NstError
from nst_core.images import ImageData, encode_image, open_image

PAGE = Path(__file__).parent / "page"

FRAME_BYTES, FRAME_PIXELS = 2_000_000, 1_000_000
"""The largest camera frame: bytes of the JPEG, and pixels of the image."""

RESTART_SECONDS, FAULT_SHOWN_SECONDS = 10.0, 60.0
"""Pause before failed background work restarts, and how long the page reports the failure, in seconds."""

log = logging.getLogger(__name__)

PRIVATE = {"Cache-Control": "private, no-store"}

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """The routes; each finds images only in the visitor's own tables."""

    def __init__(self, studio: Studio, trainer: StyleTrainer | None) -> None:
        self.studio, self.server, self.trainer, self.limits = studio, studio.server, trainer, studio.limits
        self.sockets: set[web.WebSocketResponse] = set()
        self.faults: dict[str, float] = {}
        """When background work failed last, by its name."""

    def routes(self) -> list[web.RouteDef]:
        """Return all routes."""
        return [
            web.get("/", self.page),
            web.get("/{file:[a-z]+\\.js|page\\.css|icon\\.svg}", self.page),
            web.get("/state", self.state),
            web.get("/thumbnails/{key}", self.thumbnail),
            web.post("/contents", self.upload),
            web.get("/contents/{name}", self.content),
            web.post("/jobs", self.submit),
            web.get("/jobs/{name}/{what:shown|whole}", self.job),
            web.delete("/jobs/{name}", self.remove),
            web.post("/styles", self.train),
            web.post("/styles/{name}", self.retry),
            web.delete("/styles/{name}", self.discard),
            web.get("/live", self.live),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        """Send the page or one of its files, and give the visitor a secret."""
        response = web.FileResponse(PAGE / request.match_info.get("file", "index.html"))
        response.headers["Cache-Control"] = "no-cache"
        set_secret(request, response)
        return response

    async def state(self, request: web.Request) -> web.Response:
        """Return everything that the page shows, so that it can ask again after any failure."""
        visitor = self._visitor(request)
        styles = [
            {
                "name": style.name,
                "model": style.model,
                "interpolates": style.count > 1,
                "thumbnail": self._thumbnail(key(style)),
            }
            for style in self.server.styles
        ]
        jobs = [self._job_state(job) for job in reversed(visitor.jobs.values())]
        now = time.monotonic()
        faults = [what for what, failed in self.faults.items() if now - failed < FAULT_SHOWN_SECONDS]
        limits = {"bytes": self.limits.upload, "pixels": self.limits.pixels}
        return web.json_response(
            {
                "up": self.server.up.is_set(),
                "styles": styles,
                "jobs": jobs,
                "limits": limits,
                "training": self._training(visitor),
                "faults": faults,
            }
        )

    async def lasting(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Run background work that never ends; if it fails, report that and restart it."""
        while True:
            try:
                await work()
                log.error("%s ended unexpectedly; restarting it", what)
            except Exception:
                log.exception("%s failed; restarting it", what)
            self.faults[what] = time.monotonic()
            await asyncio.sleep(RESTART_SECONDS)

    async def thumbnail(self, request: web.Request) -> web.Response:
        """Send a style's thumbnail, the same for every visitor."""
        data = self.server.thumbnails.get(request.match_info["key"])
        if data is None:
            raise web.HTTPNotFound(text="no such thumbnail")
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "max-age=86400"})

    async def upload(self, request: web.Request) -> web.Response:
        """Receive a content image; the body is its file."""
        content = await self.studio.add_content(self._visitor(request), await self._body(request))
        return web.json_response(_content_state(content))

    async def content(self, request: web.Request) -> web.Response:
        """Send a content image as the page shows it: upright, small, JPEG."""
        content = _of(self._visitor(request).contents, request.match_info["name"], "content image")
        shown = await self.studio.shown_before(content)
        return web.Response(body=shown, content_type="image/jpeg", headers=PRIVATE)

    async def submit(self, request: web.Request) -> web.Response:
        """Submit a job as JSON: content, style {name: weight}, max_side or null."""
        visitor, asked = self._visitor(request), await _json(request)
        content = _of(visitor.contents, asked.get("content"), "content image")
        max_side = asked.get("max_side")
        if max_side is not None and not (isinstance(max_side, int) and 16 <= max_side <= 65_536):
            raise InputError(f"max_side is {max_side!r}; give 16 to 65536 pixels")
        job = self.studio.submit(visitor, content, _style_weights(asked.get("style")), max_side)
        return web.json_response(self._job_state(job))

    async def job(self, request: web.Request) -> web.Response:
        """Send a finished image, shown or whole, with the strength and colours from the query."""
        job = self._own_job(request)
        if job.status != "done":
            raise web.HTTPConflict(text="this image is not finished; wait for it")
        strength, preserve = _strength(request.query.get("strength", "1")), request.query.get("preserve") == "1"
        recipe = StylizeOptions(job.style, strength, preserve, job.max_side)
        if request.match_info["what"] == "shown":
            shown = await self.studio.shown(job, recipe)
            return web.Response(body=shown, content_type="image/jpeg", headers=PRIVATE)
        data, kind = await self.studio.whole(job, recipe)
        suffix = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
        name = re.sub(r"[^A-Za-z0-9-]+", "-", "-".join(job.style))[:80] or "stylized"
        headers = PRIVATE | {"Content-Disposition": f'attachment; filename="{name}.{suffix}"'}
        return web.Response(body=data, content_type=f"image/{kind.lower()}", headers=headers)

    async def remove(self, request: web.Request) -> web.Response:
        """Remove a job, even while it runs."""
        self.studio.remove(self._visitor(request), self._own_job(request))
        return web.json_response({})

    async def train(self, request: web.Request) -> web.Response:
        """Submit a style to train: the body is the style image's file, the query has the name."""
        visitor, trainer = self._visitor(request), self._trainer()
        training = await trainer.submit(visitor.key, request.query.get("name", ""), await self._body(request))
        return web.json_response({"name": training.name})

    async def retry(self, request: web.Request) -> web.Response:
        """Retry a style whose training failed."""
        training = self._own_training(request)
        if training.status != "failed":
            raise web.HTTPConflict(text=f"the training of {training.name} has not failed")
        self._trainer().retry(training)
        return web.json_response({})

    async def discard(self, request: web.Request) -> web.Response:
        """Cancel a waiting or failed style, or dismiss the notice of a finished one."""
        self._trainer().discard(self._own_training(request))
        return web.json_response({})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Stylize a camera's JPEG frames, each answered by its stylized image; a text before them says how.

        The browser sends a frame when an earlier one has come back, so surplus frames are never sent.
        """
        visitor = self._visitor(request)
        if visitor.live:
            raise web.HTTPConflict(text="your camera is running in another window; stop it there")
        socket = web.WebSocketResponse(max_msg_size=FRAME_BYTES, heartbeat=20)
        visitor.live = True
        self.sockets.add(socket)
        try:
            await socket.prepare(request)
            await self._converse(socket)
        finally:
            visitor.live, visitor.seen = False, time.monotonic()
            self.sockets.discard(socket)
        return socket

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        recipe: StylizeOptions | None = None
        async for message in socket:
            try:
                if message.type is WSMsgType.TEXT:
                    recipe = self._recipe(message.data)
                elif message.type is WSMsgType.BINARY and recipe:
                    await socket.send_bytes(await self._frame(message.data, recipe))
            except NstError as error:
                with suppress(ConnectionError):
                    await socket.send_json({"error": str(error)})

    def _recipe(self, text: str) -> StylizeOptions:
        asked = _document(text)
        style = _style_weights(asked.get("style"))
        self.studio.check(style)
        return StylizeOptions(style, _strength(asked.get("strength", 1)), bool(asked.get("preserve")))

    async def _frame(self, data: bytes, recipe: StylizeOptions) -> bytes:
        if not self.server.up.is_set():
            raise InputError("the server does not answer; trying again")
        frame = (await asyncio.to_thread(open_image, io.BytesIO(data), max_pixels=FRAME_PIXELS)).pixels
        try:
            stylized = await self.server.client.stylize(frame, recipe.style_weights)
        except Unreachable as error:
            self.server.lost(error)
            raise InputError("the server does not answer; trying again") from error
        except Unavailable as error:
            raise InputError("the server cannot run this style right now; trying again") from error

        def encoded() -> bytes:
            result = postprocess(frame, stylized, recipe.strength, recipe.preserve_color)
            return encode_image(ImageData(result), "JPEG", quality=85)

        return await asyncio.to_thread(encoded)

    async def _body(self, request: web.Request) -> bytes:
        """Read the body. Raises `InputError` if it is over the limit, without reading the rest."""
        too_large = InputError(f"the file is over the limit of {self.limits.upload / 1e6:g} MB; choose a smaller one")
        if (request.content_length or 0) > self.limits.upload:
            raise too_large
        try:
            return await request.read()
        except web.HTTPRequestEntityTooLarge:
            raise too_large from None

    def _visitor(self, request: web.Request) -> Visitor:
        if not (secret := visitor_secret(request)):
            raise web.HTTPForbidden(text="the page has lost its cookie; allow cookies and reload the page")
        return self.studio.visitor(secret)

    def _own_job(self, request: web.Request) -> StylizeJob:
        return _of(self._visitor(request).jobs, request.match_info["name"], "image")

    def _own_training(self, request: web.Request) -> StyleTraining:
        visitor = self._visitor(request)
        own = {name: training for name, training in self._trainer().trainings.items() if training.owner == visitor.key}
        return _of(own, request.match_info["name"], "style")

    def _trainer(self) -> StyleTrainer:
        if self.trainer is None:
            raise web.HTTPNotFound(text="training is off here; start nst web with --gallery")
        return self.trainer

    def _thumbnail(self, name: str) -> str | None:
        return f"thumbnails/{name}" if name in self.server.thumbnails else None

    def _job_state(self, job: StylizeJob) -> dict[str, Any]:
        done, total = job.tiles
        return {
            "name": job.name,
            "content": _content_state(job.content),
            "style": dict(job.style),
            "status": job.status,
            "before": self.studio.before(job),
            "done": done,
            "total": total,
            "error": job.error,
        }

    def _training(self, visitor: Visitor) -> dict[str, Any] | None:
        """Return the visitor's trainings; None if training is off."""
        if self.trainer is None:
            return None
        trainings = self.trainer.trainings.values()
        pending = sorted(
            (training for training in trainings if training.pending), key=lambda training: training.submitted
        )
        own = [
            {
                "name": training.name,
                "status": training.status,
                "done": training.trained[0],
                "total": training.trained[1],
                "unit": training.unit,
                "left": training.time_left,
                "error": training.error,
                "before": pending.index(training) if training.pending else 0,
            }
            for training in trainings
            if training.owner == visitor.key
        ]
        return {"styles": own}


def application(site: Site, names: Iterable[str] = (), address: str = "localhost") -> web.Application:
    """Return the application of a site, including its background work.

    It answers requests for its public `names`, the `address` on which it listens, localhost and IP addresses.
    """
    app = web.Application(client_max_size=site.limits.upload, middlewares=[guard(names, address)])
    app.add_routes(site.routes())

    async def running(app: web.Application) -> AsyncIterator[None]:
        work = {
            "checking the server": site.server.watch,
            "stylizing thumbnails": site.server.illustrate,
            "removing old visitors": site.studio.sweep,
            **({"training styles": site.trainer.run} if site.trainer else {}),
        }
        tasks = [asyncio.create_task(site.lasting(what, endless)) for what, endless in work.items()]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await site.studio.close()
        await site.server.client.close()

    async def hang_up(app: web.Application) -> None:
        for socket in list(site.sockets):
            await socket.close()

    app.cleanup_ctx.append(running)
    app.on_shutdown.append(hang_up)
    return app


def _content_state(content: ContentImage) -> dict[str, Any]:
    return {"name": content.name, "width": content.width, "height": content.height}


def _of(own: Mapping[str, T], name: object, what: str) -> T:
    if not isinstance(name, str) or name not in own:
        raise web.HTTPNotFound(text=f"you have no such {what} here; reload the page")
    return own[name]


async def _json(request: web.Request) -> dict[str, Any]:
    return _document(await request.read())


def _document(text: str | bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError for thousands of brackets
        document = None
    if not isinstance(document, dict):
        raise InputError("the request is not a JSON object")
    return document


def _style_weights(style: object) -> dict[str, float]:
    if (
        not isinstance(style, dict)
        or not style
        or not all(isinstance(weight, int | float) for weight in style.values())
    ):
        raise InputError("the request names no style; choose one")
    try:
        return {str(name): float(weight) for name, weight in style.items()}
    except OverflowError:
        raise InputError("a style weight is too large; give numbers from 0 to 1") from None


def _strength(value: object) -> float:
    try:
        strength = float(str(value))
    except ValueError:
        strength = -1.0
    if not 0 <= strength <= 1:
        raise InputError(f"strength is {value}; give 0 to 1")
    return strength
