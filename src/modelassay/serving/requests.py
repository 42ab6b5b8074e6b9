"""Requests of chat completions: what a client sends, checked field by field.

A field that this server cannot follow is refused by name; nothing is left out without a word. What
changes no answer is taken and ignored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from modelassay.guard.decoding import Sampling
from modelassay.serving.errors import bad_request

MOST_CHOICES = 8
MOST_STOPS, LONGEST_STOP = 4, 200
MOST_MESSAGES = 512
MAX_TEMPERATURE = 2.0
LARGEST_SEED = 2**63 - 1
DEFAULT_TEMPERATURE = 1.0
"""As the protocol has it."""

ROLES: Mapping[str, str] = MappingProxyType(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
)
"""The role that the guard knows each as."""
TAKEN = frozenset(
    {
        "model",
        "messages",
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "repetition_penalty",
        "n",
        "stop",
        "seed",
        "stream",
        "stream_options",
    }
)
IGNORED = frozenset(
    {
        "user",
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "parallel_tool_calls",
    }
)
"""Fields that change no answer."""
NEUTRAL: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "presence_penalty": (0,),
        "frequency_penalty": (0,),
        "logit_bias": ({},),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "tools": ([],),
        "functions": ([],),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "store": (False,),
    }
)
"""Fields that this server cannot follow, and values that ask for nothing."""
MESSAGE_EXTRAS = frozenset({"name", "refusal", "annotations", "guard"})
"""Fields of a message that are not read; a client sends an answer back with all that it has."""


@dataclass(frozen=True)
class ChatRequest:
    """What a client asks for."""

    model: str
    messages: tuple[dict[str, str], ...]
    sampling: Sampling
    max_tokens: int | None = None
    """None for as many as the server gives."""
    n: int = 1
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    """Whether a stream ends with a chunk that counts tokens."""

    def sampling_of(self, choice: int) -> Sampling:
        """How one of the choices is drawn: each has a seed of its own."""
        seed = self.sampling.seed
        if seed is None or choice == 0:
            return self.sampling
        return replace(self.sampling, seed=(seed + choice) % (LARGEST_SEED + 1))


def parse_chat(body: bytes) -> ChatRequest:
    """A request from the bytes of its body.

    Raises:
        RequestError: it is no JSON object, or a field is missing, wrong or cannot be followed.
    """
    given = _fields(body)
    unknown = [
        name
        for name, value in given.items()
        if name not in TAKEN | IGNORED and not _asks_for_nothing(name, value)
    ]
    if unknown:
        shown = ", ".join(f"'{name[:60]}'" for name in unknown[:8])
        raise bad_request(
            f"This server does not support {shown}; leave it out.",
            unknown[0][:60],
            "unsupported_parameter",
        )
    model = given.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("You must provide a model parameter: a text.", "model")
    whole = _whole(given, "max_tokens", 1, 10**9)
    newer = _whole(given, "max_completion_tokens", 1, 10**9)
    if whole is not None and newer is not None and whole != newer:
        raise bad_request(
            "'max_tokens' and 'max_completion_tokens' differ; give one of them.", "max_tokens"
        )
    stream = _flag(given, "stream")
    options = given.get("stream_options")
    if options is not None and (not stream or not isinstance(options, dict)):
        raise bad_request(
            "'stream_options' is an object and goes with 'stream': true.", "stream_options"
        )
    other = [name for name in options or {} if name not in ("include_usage", "include_obfuscation")]
    if other:
        raise bad_request(
            f"This server does not support '{other[0][:60]}' in 'stream_options'; leave it out.",
            "stream_options",
            "unsupported_parameter",
        )
    temperature = _number(given, "temperature", 0, MAX_TEMPERATURE)
    top_p = _number(given, "top_p", 0, 1)
    if top_p == 0:  # the likeliest token alone
        temperature, top_p = 0.0, None
    penalty = _number(given, "repetition_penalty", 0.1, 10)
    return ChatRequest(
        model=model,
        messages=_messages(given.get("messages")),
        sampling=Sampling(
            temperature=DEFAULT_TEMPERATURE if temperature is None else temperature,
            top_p=1.0 if top_p is None else top_p,
            top_k=_whole(given, "top_k", 0, 10**6) or 0,
            repetition_penalty=1.0 if penalty is None else penalty,
            seed=_seed(given),
        ),
        max_tokens=whole if newer is None else newer,
        n=_whole(given, "n", 1, MOST_CHOICES) or 1,
        stop=_stop(given.get("stop")),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage", "stream_options.include_usage"),
    )


def _fields(body: bytes) -> dict[str, Any]:
    def unknown_number(name: str) -> Any:
        raise ValueError(name)

    try:
        given = json.loads(body.decode("utf-8"), parse_constant=unknown_number)
    except (ValueError, RecursionError) as error:
        raise bad_request(
            "The body of the request is not valid JSON; send a JSON object in UTF-8."
        ) from error
    if not isinstance(given, dict):
        raise bad_request("The body of the request must be a JSON object.")
    return given


def _asks_for_nothing(name: str, value: Any) -> bool:
    return value is None or any(
        value == neutral and isinstance(value, bool) == isinstance(neutral, bool)
        for neutral in NEUTRAL.get(name, ())
    )


def _messages(given: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(given, list) or not given:
        raise bad_request("'messages' must be a list with a message in it.", "messages")
    if len(given) > MOST_MESSAGES:
        raise bad_request(
            f"'messages' has {len(given)} messages and may have {MOST_MESSAGES}.", "messages"
        )
    turns = [_message(each, f"messages[{i}]") for i, each in enumerate(given)]
    if turns[-1]["role"] != "user":
        raise bad_request("'messages' must end with a message of the user.", "messages")
    if not turns[-1]["content"].strip():
        raise bad_request("The last message is empty.", "messages")
    return tuple(turns)


def _message(given: Any, place: str) -> dict[str, str]:
    if not isinstance(given, dict):
        raise bad_request(f"'{place}' must be an object with a role and a content.", place)
    role = given.get("role")
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(ROLES)
        raise bad_request(f"'{place}.role' must be one of {known}.", f"{place}.role")
    for name, value in given.items():
        if name in {"role", "content"} | MESSAGE_EXTRAS or value in (None, [], {}):
            continue
        raise bad_request(
            f"This server does not support '{place}.{name[:60]}'; leave it out.",
            f"{place}.{name[:60]}",
            "unsupported_parameter",
        )
    return {"role": ROLES[role], "content": _content(given.get("content"), f"{place}.content")}


def _content(given: Any, place: str) -> str:
    """A message's text, also of a list of text parts."""
    if isinstance(given, str):
        return given
    if not isinstance(given, list) or not given:
        raise bad_request(f"'{place}' must be a text, or a list of parts of text.", place)
    texts = []
    for i, part in enumerate(given):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise bad_request(
                f"'{place}[{i}]' must be a part of type text; this server reads text alone.",
                f"{place}[{i}]",
            )
        texts.append(text)
    return "".join(texts)


def _stop(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given
    if stops is None:
        return ()
    if not isinstance(stops, Sequence) or not all(isinstance(each, str) for each in stops):
        raise bad_request("'stop' must be a text or a list of texts.", "stop")
    if len(stops) > MOST_STOPS or any(not 0 < len(each) <= LONGEST_STOP for each in stops):
        raise bad_request(
            f"'stop' takes up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters.", "stop"
        )
    return tuple(stops)


def _seed(given: Mapping[str, Any]) -> int | None:
    seed = _whole(given, "seed", -(2**63), LARGEST_SEED)
    return None if seed is None else seed % (LARGEST_SEED + 1)


def _flag(given: Mapping[str, Any], name: str, param: str | None = None) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"'{param or name}' must be true or false.", param or name)
    return bool(value)


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise bad_request(f"'{name}' must be a whole number.", name, "invalid_type")
    if not least <= value <= most:
        raise bad_request(f"'{name}' must be {least} to {most}.", name, "invalid_value")
    return value


def _number(given: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_request(f"'{name}' must be a number.", name, "invalid_type")
    if not math.isfinite(value) or not least <= value <= most:
        raise bad_request(f"'{name}' must be {least:g} to {most:g}.", name, "invalid_value")
    return float(value)
