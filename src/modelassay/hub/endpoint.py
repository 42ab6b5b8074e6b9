"""An endpoint of anybody's that takes JSON: bounded in time and size, and asked again when busy.

What it answers is a stranger's. Neither that nor what is sent to it gets into errors.
"""

from __future__ import annotations

import ipaddress
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from modelassay.errors import InputError, UnavailableError

T = TypeVar("T")
LONGEST_WAIT = 60.0
RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True)
class Reply:
    """A response as it came."""

    url: str
    status: int
    body: bytes
    retry_after: str | None


@dataclass
class Endpoint:
    """One address: sends, waits, tries again."""

    url: str
    name: str
    """What an error calls it, such as `The judge`."""
    given_by: str
    """The option or variable that its address is from, for errors."""
    advice: str
    """What to do when it gives no response, for errors."""
    max_bytes: int
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 60.0
    """Seconds that one response may take in all."""
    attempts: int = 5
    sleep: Callable[[float], None] = time.sleep
    """Waits between attempts."""

    def __post_init__(self) -> None:
        """Opens a client.

        Raises:
            InputError: no address.
            UnavailableError: a proxy that cannot be used.
        """
        import httpx

        try:
            httpx.URL(self.url)
            self._client = httpx.Client(timeout=self.timeout, follow_redirects=False)
        except httpx.InvalidURL as error:
            raise InputError(f"{self.given_by} is not an address.") from error
        except (ValueError, ImportError) as error:  # its text may quote a proxy's password
            raise UnavailableError(
                "The proxy that the environment names (HTTPS_PROXY, ALL_PROXY) cannot be used."
            ) from error

    def ask(self, body: Any, read: Callable[[Reply], T | str]) -> T:
        """Asks until there is a response that counts.

        Args:
            body: JSON to send; `read` may change it for the next attempt.
            read: What a response means, or in a few words why it does not count.

        Raises:
            UnavailableError: there is none after as many attempts as may be.
        """
        failure = ""
        for attempt in range(self.attempts):
            reply, retry_after = self._send(body), None
            if isinstance(reply, str):
                failure = reply
            elif reply.status in RETRIED:
                failure, retry_after = f"HTTP {reply.status}", reply.retry_after
            elif isinstance(found := read(reply), str):
                failure = found
            else:
                return found
            if attempt + 1 < self.attempts:
                self.sleep(waiting_time(attempt, retry_after))
        raise UnavailableError(
            f"{self.name} at {self.url} gave no response in {self.attempts} attempts ({failure});"
            f" {self.advice}"
        )

    def _send(self, body: Any) -> Reply | str:
        """A response, or what went wrong on the way to it."""
        import httpx

        deadline, received = time.monotonic() + self.timeout, bytearray()
        try:
            with self._client.stream("POST", self.url, json=body, headers=self.headers) as response:
                # httpx times single reads; a server that drips would be waited for without end.
                for chunk in response.iter_bytes():
                    received += chunk
                    if len(received) > self.max_bytes:
                        return "its response is too long"
                    if time.monotonic() > deadline:
                        return "timed out"
                retry_after = response.headers.get("retry-after")
                return Reply(self.url, response.status_code, bytes(received), retry_after)
        except httpx.TimeoutException:
            return "timed out"
        except (httpx.HTTPError, OSError):  # its text may quote a header
            return "no connection"


def check_url(url: str, given_by: str, hint: str = "") -> SplitResult:
    """The parts of an endpoint's address.

    Args:
        url: The address.
        given_by: The option or variable that it is from.
        hint: What an error about a password adds.

    Raises:
        InputError: it is not http(s), names no host, or holds a password or a query.
    """
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError as error:
        raise InputError(f"{given_by} is not an address.") from error
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InputError(f"{given_by} must hold no user, password or query{hint}.")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{given_by} must begin with http:// or https://, got {url[:80]!r}.")
    return parts


def is_this_machine(host: str) -> bool:
    """Whether a host is reached from this machine alone, without any network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def waiting_time(attempt: int, retry_after: str | None) -> float:
    """Seconds before the next attempt: what the endpoint asks for, else exponential with jitter."""
    asked = _seconds(retry_after)
    backoff = min(LONGEST_WAIT, 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
    return backoff if asked is None else min(LONGEST_WAIT, max(asked, 0.0))


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header, which is a number of seconds or a date."""
    if retry_after is None:
        return None
    try:
        if re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", retry_after):
            return float(retry_after)
        when = parsedate_to_datetime(retry_after)
        if when.tzinfo is None:
            when = when.replace(tzinfo=timezone.utc)
        return (when - datetime.now(timezone.utc)).total_seconds()
    except (ValueError, TypeError, IndexError):
        return None
