"""A model that calls tools, behind an endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelassay.audit.blinding import WITHHELD
from modelassay.errors import InputError, UnavailableError
from modelassay.hub.chat import ChatEndpoint, error_field, is_filter, open_chat
from modelassay.hub.endpoint import Reply

ENDPOINT_OPTION, MODEL_OPTION, KEY_VARIABLE = "--endpoint", "--model", "OPENAI_API_KEY"
TIMEOUT = 300.0
"""Seconds that one response may take in all; models that think take long."""
ATTEMPTS = 5
MAX_RESPONSE_BYTES = 5_000_000
TOKEN_CHARACTERS = 4
"""Characters of a token, where an endpoint does not count them."""
RESPONSE_TOKENS, NEWER_RESPONSE_TOKENS = "max_tokens", "max_completion_tokens"
"""Two names of one setting: endpoints know the first or, for models that think, the second."""
MAX_CALLS = 32
"""Tool calls of one response; more are nonsense."""


class ContextFullError(UnavailableError):
    """The conversation has grown longer than the model reads."""


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
class Turn:
    """One response of a model."""

    text: str
    calls: tuple[ToolCall, ...]
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    """Whether the tokens are counted by characters, because the endpoint did not say."""
    beside: dict[str, Any] = field(default_factory=dict)
    """What else the endpoint gave, such as signatures of a thought, to be sent back as it came."""

    @property
    def message(self) -> dict[str, Any]:
        """The response as a message of the conversation that goes on."""
        found = {**self.beside, "role": "assistant", "content": self.text or None}
        if self.calls:
            found["tool_calls"] = [
                {
                    **call.beside,
                    "id": call.id,
                    "type": "function",
                    # Some servers refuse a conversation that holds arguments which are no JSON.
                    "function": {"name": call.name, "arguments": json.dumps(call.arguments or {})},
                }
                for call in self.calls
            ]
        return found


@dataclass(frozen=True)
class AgentModel:
    """Asks for the next turn of a conversation."""

    chat: ChatEndpoint
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """The settings, for a record; what the endpoint did not take is null."""
        tokens = (self.settings.get(each) for each in (RESPONSE_TOKENS, NEWER_RESPONSE_TOKENS))
        return {
            "temperature": self.settings.get("temperature"),
            "response_tokens": next((n for n in tokens if n is not None), None),
        }

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self.chat.endpoint.url

    def ask(self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> Turn:
        """Asks until there is a turn that can be worked with.

        Args:
            messages: The conversation so far.
            tools: What may be called.

        Raises:
            ContextFullError: the conversation is too long for the model.
            InputError: the endpoint does not take such a request.
            UnavailableError: it lets this key not in, or gives no response that can be used.
        """
        body: dict[str, Any] = {
            "model": self.name,
            "messages": list(messages),
            "tools": list(tools),
            "tool_choice": "auto",
            **self.settings,
        }

        def read(reply: Reply) -> Turn | str:
            if reply.status == 200:
                found = parse_turn(reply.body, body)
                return found if isinstance(found, str) else _without_key(found, self.chat.key)
            limit = self.settings.get(RESPONSE_TOKENS)
            if self.chat.drops(reply, body, self.settings):
                if limit is not None and RESPONSE_TOKENS not in self.settings:
                    self.settings[NEWER_RESPONSE_TOKENS] = body[NEWER_RESPONSE_TOKENS] = limit
                return "HTTP 400"
            if reply.status in (400, 413) and _is_too_long(reply.body):
                raise ContextFullError("The conversation is longer than the model reads.")
            if reply.status == 400 and is_filter(reply.body):
                return "the endpoint's own filter declined"
            raise self.chat.declined(reply)

        return self.chat.endpoint.ask(body, read)


def open_agent(
    url: str,
    name: str,
    *,
    key_variable: str = KEY_VARIABLE,
    temperature: float | None = None,
    response_tokens: int | None = None,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> AgentModel:
    """The model that investigates.

    Args:
        url: The base of its endpoint (`https://host/v1`), or the whole address.
        name: What to ask there.
        key_variable: Environment variable that holds the endpoint's key.
        temperature: None leaves the endpoint's own.
        response_tokens: Most tokens of one response; None leaves the endpoint's own limit.
        timeout: Seconds that one response may take.
        attempts: How often it is asked before giving up.
        sleep: Waits between attempts.

    Raises:
        InputError: this is no http(s) address, or the key cannot be a header.
    """
    if not name.strip():
        raise InputError(f"Say which model of the endpoint investigates: {MODEL_OPTION} NAME.")
    chat = open_chat(
        url,
        name="The agent's endpoint",
        given_by=ENDPOINT_OPTION,
        key_variable=key_variable,
        check=f"{ENDPOINT_OPTION}, {MODEL_OPTION} ({name}) and that it can call tools",
        advice="the same command goes on with the runs that are left.",
        max_bytes=MAX_RESPONSE_BYTES,
        timeout=timeout,
        attempts=attempts,
        sleep=sleep,
    )
    settings = {"temperature": temperature, RESPONSE_TOKENS: response_tokens}
    given = {name: value for name, value in settings.items() if value is not None}
    return AgentModel(chat, name, given)


def parse_turn(body: bytes, asked: Any = None) -> Turn | str:
    """A response of the endpoint, or in a few words why it cannot be used.

    Args:
        body: JSON of a chat completion.
        asked: What was sent, whose tokens are estimated where the response does not count them.
    """
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message = choice["message"]
        text = _text(message.get("content"))
        calls = _calls(message.get("tool_calls") or [])
        beside = _beside(message, "role", "content", "tool_calls")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "no chat completion"
    if not text.strip() and not calls:
        if choice.get("finish_reason") == "content_filter":
            return "the endpoint's own filter declined"
        return "an empty response"
    if len(calls) > MAX_CALLS:
        return f"more than {MAX_CALLS} tool calls at once"
    counted = _usage(found.get("usage"))
    if counted is None:
        sent, said = len(json.dumps(asked)), len(text) + sum(len(str(c.arguments)) for c in calls)
        counts = (-(-sent // TOKEN_CHARACTERS), -(-said // TOKEN_CHARACTERS))
    else:
        counts = counted
    return Turn(text, calls, *counts, estimated=counted is None, beside=beside)


def _without_key(turn: Turn, key: str | None) -> Turn:
    """A turn in which the endpoint's key does not stand, should it have sent that back."""
    if key is None:
        return turn
    calls = tuple(
        ToolCall(
            *(without(value, key) for value in (call.id, call.name, call.arguments, call.beside))
        )
        for call in turn.calls
    )
    text, beside = without(turn.text, key), without(turn.beside, key)
    return replace(turn, text=text, calls=calls, beside=beside)


def without(value: Any, key: str) -> Any:
    """JSON values with a mark in a key's place."""
    if isinstance(value, str):
        return value.replace(key, WITHHELD)
    if isinstance(value, dict):
        return {without(name, key): without(entry, key) for name, entry in value.items()}
    if isinstance(value, list):
        return [without(entry, key) for entry in value]
    return value


def _text(content: Any) -> str:
    """Content is a text, nothing, or a list of parts."""
    if isinstance(content, list):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    if content is None:
        return ""
    if not isinstance(content, str):
        raise TypeError("content")
    return whole_characters(content)


def whole_characters(text: str) -> str:
    """A text without halves of surrogate pairs, which could be neither sent nor written."""
    return text.encode("utf-8", "replace").decode()


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


def _beside(given: dict[str, Any], *known: str) -> dict[str, Any]:
    """Fields that are not among those known and hold anything.

    Some models that think refuse a conversation in which what they signed is missing.
    """
    found = {name: value for name, value in given.items() if name not in known and value}
    return json.loads(whole_characters(json.dumps(found, ensure_ascii=False)))


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


def _usage(given: Any) -> tuple[int, int] | None:
    if not isinstance(given, dict):
        return None
    counts = (given.get("prompt_tokens"), given.get("completion_tokens"))
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 10**9 for n in counts):
        return None
    return counts  # type: ignore[return-value]


def _is_too_long(body: bytes) -> bool:
    code, text = (error_field(body, name) or "" for name in ("code", "message"))
    return "context_length" in code or "context length" in text.lower()
