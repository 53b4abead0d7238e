"""Restrict requests to known host names, the page itself, and visitors with a secret."""

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
"""How long a visitor can come back to a style in training."""

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def guard(names: Iterable[str], address: str) -> Middleware:
    """Create a middleware that adds headers, answers errors as one line of JSON, and refuses other sites' requests.

    Another site could make its own name resolve to this machine, so that the browser takes its page for this one,
    cookies included (DNS rebinding). So only known names are answered; IP addresses cannot be redirected.
    """
    public = {name for given in names if (name := _name(given.rpartition("://")[2]))}
    known = public | {"localhost", address.lower()}

    def check(request: web.Request) -> None:
        name = _name(request.host)
        if name not in known and not _is_address(name):
            raise web.HTTPForbidden(text=f"unknown host name {name!r}; give it to nst web with --public-name")
        origin = request.headers.get("Origin")
        # A proxy may use another name than the browser does; another site's page cannot send this header.
        hosts = request.host, request.headers.get("X-Forwarded-Host", request.host)
        if origin is not None and _host(origin) not in hosts and _name(_host(origin)) not in public:
            raise web.HTTPForbidden(
                text="this request comes from another site; if it is the page's own, start nst web with --public-name"
            )

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
        except web.RequestPayloadError as error:  # truncated, or not encoded as its header says
            message = str(error.__cause__ or error).splitlines()[0]
            response = web.json_response({"error": f"cannot read the request's body: {message}"}, status=400)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    return guarded


def _host(origin: str) -> str:
    """Return host and port of an `Origin`, or an empty text if it is invalid."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Return the host name in a `Host` header without the port, or an empty text if it is invalid."""
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
    """Return the secret in the visitor's cookie, or None if it is malformed."""
    secret = request.cookies.get(COOKIE, "")
    return secret if re.fullmatch(r"[A-Za-z0-9_-]{43}", secret) else None


def set_secret(request: web.Request, response: web.StreamResponse) -> None:
    """Give a visitor without a secret a new one."""
    if visitor_secret(request):
        return
    response.set_cookie(
        COOKIE,
        secrets.token_urlsafe(32),
        max_age=COOKIE_SECONDS,
        path="",  # the page's folder as the browser sees it, not the whole host
        httponly=True,
        samesite="Strict",
        secure=request.secure,
    )
