"""The conversation with the model that investigates: its turns, and which responses count."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelassay.hub.chat_completions import (
    ATTEMPTS,
    KEY_VARIABLE,
    NEWER_RESPONSE_TOKENS,
    RESPONSE_TOKENS,
    ChatModel,
    Completion,
    ToolCall,
    open_chat,
)

ENDPOINT_OPTION, MODEL_OPTION = "--endpoint", "--model"
TIMEOUT = 300.0
"""Seconds that one response may take in all; models that think take long."""
MAX_RESPONSE_BYTES = 5_000_000
TOKEN_CHARACTERS = 4
"""Characters of a token, where an endpoint does not count them."""
MAX_CALLS = 32
"""Tool calls of one response; more are nonsense."""


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

    chat: ChatModel

    @property
    def name(self) -> str:
        """What is asked for at the endpoint."""
        return self.chat.model

    @property
    def url(self) -> str:
        """Where it is asked."""
        return self.chat.endpoint.url

    @property
    def told(self) -> dict[str, Any]:
        """The settings, for a record; what the endpoint did not take is null."""
        settings = self.chat.settings
        tokens = (settings.get(each) for each in (RESPONSE_TOKENS, NEWER_RESPONSE_TOKENS))
        return {
            "temperature": settings.get("temperature"),
            "response_tokens": next((n for n in tokens if n is not None), None),
        }

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
        found = self.chat.ask(messages, tools, useless)
        return turn_of(found, [messages, tools])


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
        InputError: this is no http(s) address or no name of a model, or the key cannot be a header.
    """
    settings = {"temperature": temperature, RESPONSE_TOKENS: response_tokens}
    chat = open_chat(
        url,
        name,
        name="The agent's endpoint",
        url_option=ENDPOINT_OPTION,
        model_option=MODEL_OPTION,
        advice="the same command goes on with the runs that are left.",
        key_variable=key_variable,
        settings={name: value for name, value in settings.items() if value is not None},
        timeout=timeout,
        attempts=attempts,
        max_bytes=MAX_RESPONSE_BYTES,
        sleep=sleep,
    )
    return AgentModel(chat)


def useless(found: Completion) -> str | None:
    """In a few words why a response cannot be worked with; None if it can."""
    if not found.readable:
        return "no chat completion"
    if not (found.text or "").strip() and not found.tool_calls:
        return "the endpoint's own filter declined" if found.filtered else "an empty response"
    if len(found.tool_calls) > MAX_CALLS:
        return f"more than {MAX_CALLS} tool calls at once"
    return None


def turn_of(found: Completion, asked: Any = None) -> Turn:
    """A response as a turn of the conversation.

    Args:
        found: It.
        asked: What was sent, whose tokens are estimated where the response does not count them.
    """
    text, calls = found.text or "", found.tool_calls
    if found.usage is not None:
        counts = (found.usage.prompt, found.usage.response)
    else:
        sent, said = len(json.dumps(asked)), len(text) + sum(len(str(c.arguments)) for c in calls)
        counts = (-(-sent // TOKEN_CHARACTERS), -(-said // TOKEN_CHARACTERS))
    return Turn(text, calls, *counts, estimated=found.usage is None, beside=found.beside)
