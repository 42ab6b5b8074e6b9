"""A model behind an endpoint that speaks OpenAI's chat completions, of any vendor or local.

Its key comes from the environment (`OPENAI_API_KEY`) and goes into one header, over https or to
this machine alone; neither it nor what the endpoint says gets into results, reports or errors.
"""

from __future__ import annotations

import ipaddress
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelassay.errors import InputError, UnavailableError
from modelassay.hub.endpoint import Endpoint, Reply, check_url

KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUT = 60.0
"""Seconds that one response may take in all."""
ATTEMPTS = 5
MAX_RESPONSE_BYTES = 1_000_000


@dataclass(frozen=True)
class Usage:
    """Tokens that one response took, as the endpoint counts them."""

    prompt: int
    response: int


@dataclass(frozen=True)
class Completion:
    """What an endpoint answered."""

    text: str | None
    """None where the response holds no text that can be read."""
    filtered: bool = False
    """Whether the endpoint's own filter declined."""
    usage: Usage | None = None
    """None where the endpoint does not tell."""


@dataclass
class ChatModel:
    """One model at one endpoint."""

    endpoint: Endpoint
    model: str
    model_option: str
    """The option that the model's name is from, for errors."""
    key: str | None = field(repr=False)
    settings: dict[str, Any] = field(default_factory=lambda: {"temperature": 0})
    """Fields of the request besides model and messages. One that the model does not take is left
    out from then on."""

    def ask(self, messages: Sequence[Mapping[str, Any]]) -> Completion:
        """Asks until there is a response that counts.

        Args:
            messages: The conversation, ending with what is asked.

        Raises:
            InputError: the endpoint does not take such a request.
            UnavailableError: it lets this key not in, or gives no response.
        """
        body = {"model": self.model, "messages": list(messages), **self.settings}

        def read(reply: Reply) -> Completion | str:
            if reply.status == 200:
                return _completion_of(reply.body)
            if reply.status == 400 and (odd := _error_field(reply.body, "param")) in self.settings:
                # Reasoning models take no temperature. Nothing is lost without.
                del self.settings[odd], body[odd]
                return "HTTP 400"
            if reply.status == 400 and _is_filter(reply.body):
                return Completion(None, filtered=True)
            raise self._refused(reply)

        return self.endpoint.ask(body, read)

    def _refused(self, reply: Reply) -> InputError | UnavailableError:
        status, asked = reply.status, f"{self.endpoint.name} at {reply.url}"
        if status in (401, 403):
            sent = "the key in" if self.key else "a request without a key; set"
            if self.key is None and os.environ.get(KEY_VARIABLE):
                sent = "a request without a key, which goes over https only, not even that in"
            return UnavailableError(
                f"{asked} does not accept {sent} {KEY_VARIABLE} (HTTP {status})."
            )
        if 300 <= status < 400:
            return InputError(f"{asked} is somewhere else (HTTP {status}); give that address.")
        return InputError(
            f"{asked} does not take this request (HTTP {status}); check {self.endpoint.given_by}"
            f" and {self.model_option} ({self.model})."
        )


def open_chat(
    url: str,
    model: str,
    *,
    name: str,
    url_option: str,
    model_option: str,
    advice: str,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> ChatModel:
    """A model at an endpoint; nothing is sent yet.

    Args:
        url: The endpoint's base (`https://host/v1`) or the whole address of its chat completions.
        model: What to ask there.
        name: What errors call it, such as `The judge`.
        url_option: The option that `url` is from, for errors.
        model_option: The option that `model` is from, for errors.
        advice: What to do when it gives no response; ends the error.
        timeout: Seconds that one response may take.
        attempts: How often it is asked before giving up.
        sleep: Waits between attempts.

    Raises:
        InputError: this is no http(s) address, or the key cannot be a header.
    """
    parts = check_url(url, url_option, f"; the key goes into {KEY_VARIABLE}")
    path = parts.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions"
    key = os.environ.get(KEY_VARIABLE, "").strip() or None
    if key is not None and not (key.isascii() and key.isprintable()):
        raise InputError(f"{KEY_VARIABLE} holds characters that no key has; set it again.")
    if parts.scheme == "http" and not _is_this_machine(parts.hostname or ""):
        key = None
    endpoint = Endpoint(
        parts._replace(path=path).geturl(),
        name=name,
        given_by=url_option,
        advice=advice,
        max_bytes=MAX_RESPONSE_BYTES,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=timeout,
        attempts=max(1, attempts),
        sleep=sleep,
    )
    return ChatModel(endpoint, model, model_option, key)


def _completion_of(body: bytes) -> Completion:
    """What a response of the endpoint holds; whatever is no chat completion has no text."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        filtered = choice.get("finish_reason") == "content_filter"
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Completion(None)
    return Completion(text if isinstance(text, str) else None, filtered, _usage_of(found))


def _usage_of(found: Mapping[str, Any]) -> Usage | None:
    used = found.get("usage")
    counts = [
        used.get(name) if isinstance(used, dict) else None
        for name in ("prompt_tokens", "completion_tokens")
    ]
    whole = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
    return Usage(*whole) if len(whole) == 2 else None


def _error_field(body: bytes, name: str) -> Any:
    """A field of the error that an endpoint describes, or None."""
    try:
        value = json.loads(body)["error"][name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _is_filter(body: bytes) -> bool:
    code = _error_field(body, "code") or ""
    return "content_filter" in code or "content_policy" in code


def _is_this_machine(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
