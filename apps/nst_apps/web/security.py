"""Who may ask the page for anything: known names, the page's own requests, and the visitor's secret."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from nst_core.errors import NstError

COOKIE = "nst-visitor"
COOKIE_SECONDS = 30 * 24 * 3600
"""How long a visitor may come back to a style that is being trained."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(names: Iterable[str], address: str) -> Middleware:
    """Every answer has its headers, every error is one line of JSON, and no other site's page may ask for anything.

    A page of another site whose name is made to lead here would be this one for the browser, cookies and all (DNS
    rebinding); so only known names are answered to. An address cannot be made to lead elsewhere.
    """
    public = {name for given in names if (name := _name(given.rpartition("://")[2]))}
    known = public | {"localhost", address.lower()}

    def check(request: web.Request) -> None:
        name = _name(request.host)
        if name not in known and not _is_address(name):
            raise web.HTTPForbidden(text=f"this page is not called {name!r}: nst web --public-name tells it its name")
        origin = request.headers.get("Origin")
        # A proxy may call us by another name than the browser calls it; another site's page cannot send this header.
        hosts = request.host, request.headers.get("X-Forwarded-Host", request.host)
        if origin is not None and _host(origin) not in hosts and _name(_host(origin)) not in public:
            raise web.HTTPForbidden(text="only this page's own requests are answered: nst web --public-name")

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            check(request)
            response = await handler(request)
        except web.HTTPException as error:
            message = " ".join((error.text or "").split()) or error.reason
            response = web.json_response({"error": message}, status=error.status)
        except NstError as error:
            response = web.json_response({"error": " ".join(str(error).split())}, status=400)
        except web.RequestPayloadError as error:  # cut off, or not encoded as its header says
            message = str(error.__cause__ or error).splitlines()[0]
            response = web.json_response({"error": f"the request's body cannot be read: {message}"}, status=400)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guarded


def _host(origin: str) -> str:
    """Return the host and the port of an `Origin`; empty if it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Return what a request's `Host` calls the server, without the port; empty if it is no host."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def visitor_secret(request: web.Request) -> str | None:
    """Return what the visitor's cookie says, if it is one of ours."""
    secret = request.cookies.get(COOKIE, "")
    return secret if re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) else None


def set_secret(request: web.Request, response: web.StreamResponse) -> None:
    """Give a visitor who has no secret a new secret."""
    if visitor_secret(request):
        return
    response.set_cookie(
        COOKIE,
        secrets.token_urlsafe(32),
        max_age=COOKIE_SECONDS,
        path="",  # that is the folder of the page, as the browser sees it: below another's, not the whole host
        httponly=True,
        samesite="Strict",
        secure=request.secure,
    )
