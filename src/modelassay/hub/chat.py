"""An endpoint that speaks OpenAI's chat completions: its address, its key, and why it declines.

The key goes into one header, over https or to this machine alone. Neither it nor what the endpoint
answers gets into errors.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from modelassay.errors import InputError, UnavailableError
from modelassay.hub.endpoint import Endpoint, Reply, check_url


@dataclass(frozen=True)
class ChatEndpoint:
    """One address of chat completions, and the key that it is sent."""

    endpoint: Endpoint
    key: str | None = field(repr=False)
    key_variable: str
    """Environment variable that the key is from."""
    check: str
    """What to check where a request is not taken, for errors."""

    def drops(self, reply: Reply, body: dict[str, Any], settings: dict[str, Any]) -> bool:
        """Takes a setting out of the body that the endpoint does not take.

        Reasoning models take no temperature. Nothing is lost without.

        Args:
            reply: What it said.
            body: To be sent again.
            settings: Those that may be left out; the one that was goes from here too.
        """
        odd = error_field(reply.body, "param") if reply.status == 400 else None
        if odd is None or odd not in settings:
            return False
        del settings[odd], body[odd]
        return True

    def declined(self, reply: Reply) -> InputError | UnavailableError:
        """What a reply means that is no response, in one line."""
        status, there = reply.status, f"{self.endpoint.name} at {reply.url}"
        if status in (401, 403):
            sent = "the key in" if self.key else "a request without a key; set"
            if self.key is None and os.environ.get(self.key_variable):
                sent = "a request without a key, which goes over https only, not even that in"
            return UnavailableError(
                f"{there} does not accept {sent} {self.key_variable} (HTTP {status})."
            )
        if 300 <= status < 400:
            return InputError(f"{there} is somewhere else (HTTP {status}); give that address.")
        return InputError(
            f"{there} does not take this request (HTTP {status}); check {self.check}."
        )


def open_chat(
    url: str,
    *,
    name: str,
    given_by: str,
    key_variable: str,
    check: str,
    advice: str,
    max_bytes: int,
    timeout: float,
    attempts: int,
    sleep: Callable[[float], None] = time.sleep,
) -> ChatEndpoint:
    """An endpoint by its address, with the key of the environment.

    Args:
        url: Its base (`https://host/v1`) or the whole address of its chat completions.
        name: What an error calls it, such as `The judge`.
        given_by: The option that its address is from.
        key_variable: Environment variable that holds its key.
        check: What to check where it does not take a request.
        advice: What to do when it gives no response.
        max_bytes: Of a response.
        timeout: Seconds that one response may take.
        attempts: How often it is asked before giving up.
        sleep: Waits between attempts.

    Raises:
        InputError: this is no http(s) address, or the key cannot be a header.
        UnavailableError: a proxy that cannot be used.
    """
    parts = check_url(url, given_by, f"; the key goes into {key_variable}")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    key = os.environ.get(key_variable, "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InputError(f"{key_variable} holds characters that no key has; set it again.")
    if parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        key = None
    endpoint = Endpoint(
        parts._replace(path=path).geturl(),
        name=name,
        given_by=given_by,
        advice=advice,
        max_bytes=max_bytes,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=timeout,
        attempts=max(1, attempts),
        sleep=sleep,
    )
    return ChatEndpoint(endpoint, key, key_variable, check)


def error_field(body: bytes, name: str) -> str | None:
    """A field of the error that an endpoint describes, or None."""
    try:
        value = json.loads(body)["error"][name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def is_filter(body: bytes) -> bool:
    """Whether an error says that the endpoint's own filter declined."""
    code = error_field(body, "code") or ""
    return "content_filter" in code or "content_policy" in code


def is_this_machine(host: str) -> bool:
    """Whether a host is reached without any network."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
