"""What one visitor may ask for: how often, and how large. Refused before anything reads it.

A visitor is a network address. It is the connection's own unless the page stands behind a proxy
that is trusted (a Space does; `MODELASSAY_PROXIES` says how many elsewhere): that one adds the
address that it sees at the end of `X-Forwarded-For`, and what stands before is whatever the
visitor wrote.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import threading
import time
from collections import OrderedDict
from typing import Any

from gradio.context import LocalContext

BODY_BYTES = 1_000_000
"""Of a request; the longest conversation that is allowed has a tenth of that."""
UPLOAD_BYTES = 6_000_000
UPLOADS = "/upload"
BODY_SECONDS = 30.0
"""In which a request has to be here."""
PER_MINUTE, AT_ONCE = 120, 60
"""Requests that start something, of one visitor: in the long run, and in a burst."""
VISITORS = 10_000
"""Visitors whose requests are counted; those seen longest ago are forgotten."""
NOBODY = "nobody"
LOOPBACK = "::/64"
"""Of version 6, as `address` gives it."""


def proxies() -> int:
    """How many proxies that are trusted stand before the page.

    A number that cannot be read counts for none.
    """
    said = os.environ.get("MODELASSAY_PROXIES", "1" if os.environ.get("SPACE_ID") else "0")
    return int(said) if said.isdecimal() and len(said) < 3 else 0


def address(client: str | None, forwarded: str) -> str:
    """Who a request is from.

    Args:
        client: The address of the connection.
        forwarded: All `X-Forwarded-For` headers, with commas between them.
    """
    hops = [hop.strip() for hop in forwarded.split(",")]
    n = proxies()
    # Where fewer proxies spoke than are trusted, the request came past them.
    said = hops[-n] if 0 < n <= len(hops) else client or NOBODY
    try:
        found = ipaddress.ip_address(said)
    except ValueError:
        return client or NOBODY
    if found.version == 6:  # a household has a whole network of them
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def is_own(who: str) -> bool:
    """Whether a request comes from this machine itself, past all proxies."""
    return proxies() == 0 and who in ("127.0.0.1", LOOPBACK)


def visitor() -> str:
    """Who asks for what runs now."""
    request: Any = LocalContext.request.get(None)
    if request is None:
        return NOBODY
    client = getattr(getattr(request, "client", None), "host", None)
    headers = getattr(request, "headers", None)
    forwarded = headers.get("x-forwarded-for", "") if headers is not None else ""
    return address(client, forwarded)


class Budget:
    """Counts requests of visitors: a bucket for each, which fills again with time."""

    def __init__(self, per_minute: float = PER_MINUTE, at_once: float = AT_ONCE) -> None:
        """Full for everybody.

        Args:
            per_minute: Requests in the long run.
            at_once: Requests in a burst.
        """
        self.rate, self.most = per_minute / 60, at_once
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, who: str, now: float | None = None) -> float:
        """Takes one request.

        Returns:
            0 if it is allowed, else the seconds until one is.
        """
        now = time.monotonic() if now is None else now
        with self._lock:
            left, at = self._left.pop(who, (self.most, now))
            left = min(self.most, left + (now - at) * self.rate)
            allowed = left >= 1
            self._left[who] = (left - 1 if allowed else left, now)
            while len(self._left) > VISITORS:
                self._left.popitem(last=False)
            return 0.0 if allowed else (1 - left) / self.rate


class Limits:
    """The outermost layer of the page's server, which refuses what is too much."""

    def __init__(self, app: Any, budget: Budget | None = None) -> None:
        """Stands before an ASGI application."""
        self.app = app
        self.budget = budget or Budget()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with 413, 408 or 429."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        client = scope.get("client")
        who = address(client[0] if client else None, forwarded.decode("latin-1"))
        if not is_own(who) and (wait := self.budget.take(who)):
            await refuse(send, 429, f"Too many requests; try again in {wait:.0f} s.", wait)
            return
        most = UPLOAD_BYTES if scope["path"].endswith(UPLOADS) else BODY_BYTES
        too_large = f"The request is larger than {most // 1_000_000} MB; shorten it."
        stated = next((value for name, value in headers if name == b"content-length"), b"0")
        if not stated.isdigit() or int(stated[:20]) > most:
            await refuse(send, 413, too_large)
            return
        parts: list[Any] = []
        size, until = 0, time.monotonic() + BODY_SECONDS
        while True:
            try:
                part = await asyncio.wait_for(receive(), max(0.01, until - time.monotonic()))
            except asyncio.TimeoutError:
                await refuse(send, 408, "The request took too long to arrive; try again.")
                return
            parts.append(part)
            size += len(part.get("body", b""))
            if size > most:
                await refuse(send, 413, too_large)
                return
            if part["type"] != "http.request" or not part.get("more_body"):
                break

        async def again() -> Any:
            return parts.pop(0) if parts else await receive()

        await self.app(scope, again, send)


async def refuse(send: Any, status: int, text: str, wait: float | None = None) -> None:
    """Answers a request with one line."""
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    if wait is not None:
        headers.append((b"retry-after", str(int(wait) + 1).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
