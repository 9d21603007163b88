"""Which requests are answered: those that the app's own page sends, to a name that the app was started for.

A page of another site can send requests to this machine's browser's own network. It cannot read the answers, nor send
the header that is asked for here without being asked for permission, which it never gets. By giving its own name this
machine's address (DNS rebinding) it could; but then the request names a host that the app was not started for.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OURS = "x-avarc"  # the header of our own page's requests
LOCAL = ("127.0.0.1", "localhost", "::1")
API = "/api/"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Middleware that refuses the other requests."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """host: that the app listens on."""
        self._app, self._is_local = app, host in LOCAL
        self._names = {"localhost"} if self._is_local else {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refusal(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, what, why = refused
        await JSONResponse({"what": what, "why": why}, status, HEADERS)(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> tuple[int, str, str] | None:
        """Status, what and why; None for a request that is answered."""
        host = headers.get("host", "")
        if not self._is_known(host):
            return 400, "the app does not answer to this name", "open it by the address that it showed when it began"
        if path.startswith(API) and (OURS not in headers or not _is_same_site(headers, host)):
            return 403, "this request did not come from the app's page", ""
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a Host header names this app. Names that others could give our address are not known."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._names or self._is_address(name)
        except ValueError:
            return False

    def _is_address(self, name: str) -> bool:
        address = ipaddress.ip_address(name)
        return address.is_loopback or not self._is_local


def _is_same_site(headers: Headers, host: str) -> bool:
    """As far as the browser says where a request comes from."""
    origin = headers.get("origin")
    try:
        same = origin is None or urlsplit(origin).netloc == host
    except ValueError:
        same = False
    return same and headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
