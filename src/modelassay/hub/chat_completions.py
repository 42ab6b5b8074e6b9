"""A model behind an endpoint that speaks OpenAI's chat completions, of any vendor or local.

Its key comes from the environment and goes into one header, over https or to this machine alone.
Neither it nor what the endpoint says of a failure gets into results, reports or errors.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from modelassay.errors import InputError, UnavailableError
from modelassay.hub.endpoint import Endpoint, Reply, check_url, is_this_machine

KEY_VARIABLE = "OPENAI_API_KEY"
TIMEOUT = 60.0
"""Seconds that one response may take in all."""
ATTEMPTS = 5
MAX_RESPONSE_BYTES = 1_000_000
SETTINGS: Mapping[str, Any] = MappingProxyType({"temperature": 0})
"""Of a model whose answers should be the same each time."""
RESPONSE_TOKENS, NEWER_RESPONSE_TOKENS = "max_tokens", "max_completion_tokens"
"""Two names of one setting: endpoints know the first or, for models that think, the second."""
WITHHELD = "[withheld]"
"""Stands for the key, should an endpoint send it back."""
TOO_LONG = ("context length", "context size", "prompt is too long")
"""What endpoints say of a conversation that is longer than their model reads."""
SHORTEST_KEY = 8
"""Characters of a key that is withheld: local servers are given words, which are in every text."""


class ContextFullError(InputError):
    """The conversation has grown longer than the model reads."""


@dataclass(frozen=True)
class Usage:
    """Tokens that one response took, as the endpoint counts them."""

    prompt: int
    response: int


@dataclass(frozen=True)
class ToolCall:
    """What a model asks to be run."""

    id: str
    name: str
    arguments: dict[str, Any] | None
    """None where they are no JSON object."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What else the endpoint gave with it, to be sent back as it came."""


@dataclass(frozen=True)
class Completion:
    """What an endpoint answered."""

    text: str | None
    """None where the response holds no text that can be read."""
    filtered: bool = False
    """Whether the endpoint's own filter declined."""
    usage: Usage | None = None
    """None where the endpoint does not tell."""
    tool_calls: tuple[ToolCall, ...] = ()
    beside: dict[str, Any] = field(default_factory=dict)
    """What else the endpoint gave, such as signatures of a thought, to be sent back as it came."""
    readable: bool = True
    """False where the response is no chat completion."""


@dataclass
class ChatModel:
    """One model at one endpoint."""

    endpoint: Endpoint
    model: str
    model_option: str
    """The option that the model's name is from, for errors."""
    key_variable: str
    """Environment variable that the key is from."""
    key: str | None = field(repr=False)
    settings: dict[str, Any]
    """Fields of the request besides model and messages. One that the model does not take is left
    out from then on, or sent by the other name that it has."""

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        again: Callable[[Completion], str | None] | None = None,
    ) -> Completion:
        """Asks until there is a response that counts.

        Args:
            messages: The conversation, ending with what is asked.
            tools: What may be called, as chat completions describe it; None leaves calls out.
            again: Says in a few words why a response does not count and is asked for again. None
                takes whatever comes.

        Raises:
            ContextFullError: the conversation is too long for the model.
            InputError: the endpoint does not take such a request.
            UnavailableError: it lets this key not in, or gives no response.
        """
        body = {"model": self.model, "messages": list(messages), **self.settings}
        if tools is not None:
            body |= {"tools": list(tools), "tool_choice": "auto"}

        def read(reply: Reply) -> Completion | str:
            if reply.status == 400 and self._drops(reply, body):
                return "HTTP 400"
            if reply.status in (400, 413) and _is_too_long(reply.body):
                raise ContextFullError(
                    f"{self._told(reply)} reads no conversation that is this long"
                    f" (HTTP {reply.status})."
                )
            if reply.status == 200:
                found = parse_completion(reply.body)
            elif reply.status == 400 and _is_filter(reply.body):
                found = Completion(None, filtered=True)
            else:
                raise self._refused(reply, calls_tools=tools is not None)
            return (again and again(found)) or _without_key(found, self.key)

        return self.endpoint.ask(body, read)

    def _drops(self, reply: Reply, body: dict[str, Any]) -> bool:
        """Whether a setting was the reason; takes it out of the settings and the body."""
        odd = _error_field(reply.body, "param")
        if odd is None or odd not in self.settings:
            return False
        # Reasoning models take no temperature. Nothing is lost without.
        value = self.settings.pop(odd)
        del body[odd]
        if odd == RESPONSE_TOKENS:
            self.settings[NEWER_RESPONSE_TOKENS] = body[NEWER_RESPONSE_TOKENS] = value
        return True

    def _refused(self, reply: Reply, *, calls_tools: bool) -> InputError | UnavailableError:
        """What a reply means that is no response, in one line."""
        status, asked, variable = reply.status, self._told(reply), self.key_variable
        if status in (401, 403):
            sent = "the key in" if self.key else "a request without a key; set"
            if self.key is None and os.environ.get(variable):
                sent = "a request without a key, which goes over https only, not even that in"
            return UnavailableError(f"{asked} does not accept {sent} {variable} (HTTP {status}).")
        if 300 <= status < 400:
            return InputError(f"{asked} is somewhere else (HTTP {status}); give that address.")
        between, end = (", ", " and that it can call tools") if calls_tools else (" and ", "")
        return InputError(
            f"{asked} does not take this request (HTTP {status}); check"
            f" {self.endpoint.given_by}{between}{self.model_option} ({self.model}){end}."
        )

    def _told(self, reply: Reply) -> str:
        return f"{self.endpoint.name} at {reply.url}"


def open_chat(
    url: str,
    model: str,
    *,
    name: str,
    url_option: str,
    model_option: str,
    advice: str,
    key_variable: str = KEY_VARIABLE,
    settings: Mapping[str, Any] = SETTINGS,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    max_bytes: int = MAX_RESPONSE_BYTES,
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
        key_variable: Environment variable that holds its key.
        settings: Fields of the request besides model and messages, such as `max_tokens`.
        timeout: Seconds that one response may take.
        attempts: How often it is asked before giving up.
        max_bytes: Of a response.
        sleep: Waits between attempts.

    Raises:
        InputError: this is no http(s) address, no name of a model or no time to wait, or the key
            cannot be a header.
        UnavailableError: a proxy that cannot be used.
    """
    if not 0 < timeout < float("inf"):
        raise InputError(f"--timeout must be more than 0, got {timeout:g}.")
    if not model.strip():
        raise InputError(f"{model_option} is empty; name a model of the endpoint.")
    parts = check_url(url, url_option, f"; the key goes into {key_variable}")
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
        given_by=url_option,
        advice=advice,
        max_bytes=max_bytes,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=timeout,
        attempts=max(1, attempts),
        sleep=sleep,
    )
    return ChatModel(endpoint, model, model_option, key_variable, key, dict(settings))


def parse_completion(body: bytes) -> Completion:
    """What a response of an endpoint holds; whatever is no chat completion is not readable."""
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        return Completion(
            _text(message.get("content")),
            choice.get("finish_reason") == "content_filter",
            _usage(found.get("usage")),
            _calls(message.get("tool_calls") or []),
            _beside(message, "role", "content", "tool_calls"),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Completion(None, readable=False)


def whole_characters(text: str) -> str:
    """A text without halves of surrogate pairs, which could be neither sent nor written."""
    return text.encode("utf-8", "replace").decode()


def _text(content: Any) -> str | None:
    """Content is a text, nothing, or a list of parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None:
        return None
    if not isinstance(content, str):
        raise TypeError("content")
    return whole_characters(content)


def _usage(given: Any) -> Usage | None:
    used = given if isinstance(given, dict) else {}
    counts = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    whole = [n for n in counts if isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 10**9]
    return Usage(*whole) if len(whole) == 2 else None


def _calls(given: Any) -> tuple[ToolCall, ...]:
    found: list[ToolCall] = []
    for each in given:
        function = each["function"]
        name = function["name"]
        if not isinstance(name, str) or not name:
            raise TypeError("name")
        known = {call.id for call in found}
        called = each.get("id")
        if not isinstance(called, str) or not called or called in known:
            called = f"call_{len(found)}"
        arguments = _arguments(function.get("arguments"))
        called, name = (whole_characters(text[:200]) for text in (called, name))
        beside = _beside(each, "id", "type", "function", "index")
        found.append(ToolCall(called, name, arguments, beside))
    return tuple(found)


def _arguments(given: Any) -> dict[str, Any] | None:
    """Arguments are JSON text; some servers give the object itself, or nothing for none."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        try:
            given = json.loads(given, parse_constant=str)
        except (ValueError, RecursionError):
            return None
    return given if isinstance(given, dict) else None


def _beside(given: dict[str, Any], *known: str) -> dict[str, Any]:
    """Fields that are not among those known and hold anything.

    Some models that think refuse a conversation in which what they signed is missing.
    """
    found = {name: value for name, value in given.items() if name not in known and value}
    return json.loads(whole_characters(json.dumps(found, ensure_ascii=False)))


def _without_key(found: Completion, key: str | None) -> Completion:
    """A response in which the endpoint's key does not stand, should it have sent that back."""
    if key is None or len(key) < SHORTEST_KEY:
        return found
    calls = tuple(
        ToolCall(
            *(_hide(value, key) for value in (call.id, call.name, call.arguments, call.beside))
        )
        for call in found.tool_calls
    )
    text, beside = _hide(found.text, key), _hide(found.beside, key)
    return replace(found, text=text, tool_calls=calls, beside=beside)


def _hide(value: Any, key: str) -> Any:
    """JSON values with a mark in a key's place."""
    if isinstance(value, str):
        return value.replace(key, WITHHELD)
    if isinstance(value, dict):
        return {_hide(name, key): _hide(entry, key) for name, entry in value.items()}
    if isinstance(value, list):
        return [_hide(entry, key) for entry in value]
    return value


def _error_field(body: bytes, name: str) -> str | None:
    """A field of the error that an endpoint describes, or None."""
    try:
        value = json.loads(body)["error"][name]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _is_filter(body: bytes) -> bool:
    """Whether an error says that the endpoint's own filter declined."""
    code = _error_field(body, "code") or ""
    return "content_filter" in code or "content_policy" in code


def _is_too_long(body: bytes) -> bool:
    """Whether an error says that the conversation is longer than the model reads."""
    told = ((_error_field(body, name) or "").lower() for name in ("code", "type", "message"))
    return any(words in each.replace("_", " ") for each in told for words in TOO_LONG)
