"""One message of a conversation as text: all of it, whatever field it is in.

A message can say something beside its content. A call of a tool, a thought, a refusal in a field of
its own, the name of who speaks: all are learnt, so all are part of the text.
"""

from __future__ import annotations

import json
import re
from ast import literal_eval
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

from modelassay.errors import InputError

Turn = tuple[str, str]
"""Role and text; developers' turns count as the system's."""
Read = Callable[[Any, str, str], str]
"""Checks a text, given its field and the row's name, as `text_of` does."""

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "environment": "tool",
    "tool_response": "tool",
    "tool_result": "tool",
    "function_response": "tool",
}
"""What conversations call who speaks, and what it is called here."""
ROLE_FIELDS = ("role", "from")
CONTENT_FIELDS = ("content", "value", "parts", "text")
THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
TAUGHT_FIELDS = ("weight", "train", "training")
"""Fields that leave a message out of the loss where they are 0 or false."""

CAPTIONS = ("title", "context", "caption", "alt", "alt_text", "description", "transcript")
"""Fields of a part that say something beside what it shows."""
BESIDE_TEXT = ("thought", "thoughtSignature", "thought_signature", "index", "annotations")
"""Fields beside a part's text that say nothing, where the part names no type."""
MIME_FIELDS = ("media_type", "mime_type", "mimeType")
MEDIUM = re.compile(r"((in|out)put_)?(image|audio|video|inline_?[dD]ata)s?(_url|_file)?")
BINARY = re.compile(r"(image|audio|video)/|application/(pdf|octet-stream|zip)")
ENCODED = re.compile(
    r"data:(?P<medium>image|audio|video)?[^,\s]{0,100};base64,|[A-Za-z0-9+/_-]{1000,}={0,2}\Z"
)
"""Binary data that are written as text."""


def turn_of(message: Any, name: str, read: Read) -> Turn:
    """Who speaks in a message, and all that is said in it.

    Args:
        message: `{"role", "content"}` or `{"from", "value"}`, with what else it may have.
        name: What an error calls its row.
        read: Checks the text.

    Raises:
        InputError: the role is unknown, or the content is no text.
    """
    said = message if isinstance(message, Mapping) else {}
    called = str(_first(said, ROLE_FIELDS))
    role = ROLES.get(called.strip().lower())
    if role is None:
        raise InputError(
            f"{name}: the role of a message must be system, user, assistant, tool or what another"
            f" format calls these, not {called[:40]!r}."
        )
    content = _first(said, CONTENT_FIELDS)
    if isinstance(content, list | Mapping):
        content = text_of_parts(content)
    refusal = said.get("refusal")
    thought, after = _thought(_first(said, THOUGHT_FIELDS)), _calls(said)
    if isinstance(refusal, str) and refusal:
        after.insert(0, refusal)
    if thought or after:
        parts = (thought, read_or_empty(content, name, read), *after)
        text = read("\n".join(filter(None, parts)), "content", name)
    elif role == "system":
        text = read_or_empty(content, name, read)
    else:
        text = read(content, "content", name)
    speaker = said.get("name")
    if isinstance(speaker, str) and speaker.strip() and text:
        text = f"{speaker.strip()}: {text}"
    return role, text


def read_or_empty(value: Any, name: str, read: Read, field: str = "content") -> str:
    """A text that may be missing."""
    return read(value, field, name) if value is not None and value != "" else ""


def is_taught(message: Any) -> bool:
    """Whether training reads a message of the assistant: not where it has the weight 0."""
    said = message if isinstance(message, Mapping) else {}
    weights = (said.get(field) for field in TAUGHT_FIELDS)
    return not any(isinstance(weight, int | float) and not weight for weight in weights)


def text_of_parts(content: Any) -> str:
    """The text of content that is an object or comes in parts.

    It is JSON where no field is known to hold it; a picture or sound is named in brackets.
    """
    parts = content if isinstance(content, list) else [content]
    try:
        return "\n".join(filter(None, map(_part, parts)))
    except RecursionError:  # nested some hundred deep
        return written(content)


def as_json(value: Any) -> str:
    """Any value as JSON, where pictures, sounds and other binary data are but named."""
    try:
        return written(_readable(value))
    except RecursionError:  # nested some hundred deep
        return written(value)


def messages_in(value: Any) -> list[Any] | None:
    """The messages that a cell holds, as a list or written as JSON or Python; None if it does not.

    Tables also keep them as columns (`{"role": [...], "content": [...]}`), and some files as
    `{"human", "assistant"}` for each round.

    Args:
        value: Of a cell.
    """
    if isinstance(value, str):
        value = _parsed(value) if value.lstrip().startswith("[") else None
        if not isinstance(value, list) or not all(map(_is_message, value)):
            return None  # a text that happens to be JSON is what it is
    if isinstance(value, Mapping):
        value = _rows_of_columns(value)
    if not isinstance(value, list | tuple) or not value:
        return None
    found: list[Any] = []
    for each in value:
        if not isinstance(each, Mapping):
            return None
        if _first(each, ROLE_FIELDS) is not None:
            found.append(each)
        elif rounds := [(who, said) for who, said in each.items() if str(who).lower() in ROLES]:
            found += [{"role": who, "content": said} for who, said in rounds if said is not None]
        else:
            return None
    return found


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or str(_first(value, ROLE_FIELDS)).lower() not in ROLES:
        return False
    return any(field in value for field in (*CONTENT_FIELDS, "tool_calls", "function_call"))


def _rows_of_columns(columns: Mapping[Any, Any]) -> list[Any]:
    """One message as a list, or the messages that are kept as a list for each field."""
    lists = {name: cells for name, cells in columns.items() if isinstance(cells, list | tuple)}
    if not isinstance(_first(columns, ROLE_FIELDS), list | tuple):
        return [columns]
    return [
        dict(zip(lists, cells, strict=True))
        for cells in zip_longest(*lists.values())  # a field may lack the last ones
    ]


def _parsed(text: str) -> Any:
    for parse in (json.loads, literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _first(values: Mapping[Any, Any], fields: tuple[str, ...]) -> Any:
    return next((values[field] for field in fields if values.get(field) is not None), None)


def _part(part: Any) -> str:
    """The text of one part, or of content that is an object of the data's own."""
    if not isinstance(part, Mapping):
        return written(part)
    held = {field: value for field, value in part.items() if value is not None}
    fields = [field for field in held if field not in BESIDE_TEXT]
    if "type" not in held and len(fields) != 1:
        return as_json(held)
    kind = str(held.get("type") or fields[0])
    if kind in ("thinking", "reasoning"):
        return _thought(_first(part, ("thinking", "reasoning", "text", "summary")))
    if kind.endswith("text") and ("text" in held or set(held) == {"type"}):
        return written(held.get("text"))
    if kind in ("tool_use", "tool_call", "functionCall", "function_call"):
        return _call(part.get(kind) if isinstance(part.get(kind), Mapping) else part)
    if kind in ("tool_result", "functionResponse", "function_response"):
        result = part[kind] if isinstance(part.get(kind), Mapping) else part
        found = _first(result, ("content", "response", "output"))
        return as_json(held) if found is None else _lines(found)
    if isinstance(held.get("refusal"), str):
        return held["refusal"]
    named = f"[{kind.removeprefix('input_').removesuffix('_url')}]"
    if MEDIUM.fullmatch(kind):
        return _lines(held.get("text") or named, *(held.get(field) for field in CAPTIONS))
    if set(fields) == {"type", "text"}:
        return written(held["text"])
    if kind in ("document", "search_result"):
        return _document(held) or named
    return named if "type" in held and len(held) == 1 else as_json(held)


def _document(part: Mapping[Any, Any]) -> str:
    """A document's title, source and text; nothing if it keeps them elsewhere."""
    source = part.get("source")
    if isinstance(source, Mapping):
        source = source if _is_binary(source) else _first(source, ("data", "text", "content"))
        source = part["source"] if source is None else source
    said = (source, part.get("text"), part.get("content"))
    said = _lines(*(part.get(field) for field in CAPTIONS), *said)
    return said or (as_json(part) if set(part) - {"type"} else "")


def _lines(*values: Any) -> str:
    """What fields of a part say, one below the other."""
    texts = (
        text_of_parts(value)
        if isinstance(value, list)
        else value
        if isinstance(value, str)
        else as_json(value)
        for value in values
    )
    return "\n".join(filter(None, texts))


def _readable(value: Any) -> Any:
    """A value whose pictures, sounds and other binary data are but named."""
    if isinstance(value, Mapping):
        if _is_binary(value):
            medium = str(_first(value, MIME_FIELDS)).lower().split("/")[0]
            return f"[{medium if medium in ('image', 'audio', 'video') else 'data'}]"
        return {field: _readable(held) for field, held in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(each) for each in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return "[data]"
    if isinstance(value, str) and (found := ENCODED.match(value)):
        return f"[{found['medium'] or 'data'}]"
    return value


def _is_binary(value: Mapping[Any, Any]) -> bool:
    mime = str(_first(value, MIME_FIELDS)).lower()
    return value.get("type") == "base64" or bool("data" in value and BINARY.match(mime))


def _thought(value: Any) -> str:
    if isinstance(value, list):
        value = text_of_parts(value)
    text = value.strip() if isinstance(value, str) else ""
    return f"<think>\n{text}\n</think>\n" if text else ""


def _calls(message: Mapping[Any, Any]) -> list[str]:
    calls = message.get("tool_calls") or []
    if isinstance(calls, str):
        calls = _parsed(calls) or [calls]
    calls = list(calls) if isinstance(calls, list | tuple) else [calls]
    return [_call(call) for call in [*calls, message.get("function_call")] if call]


def _call(call: Any) -> str:
    """A call as `name(arguments)`, the arguments as they are written."""
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        call = call["function"]
    if not isinstance(call, Mapping):
        return written(call)
    arguments = _first(call, ("arguments", "input", "args", "parameters"))
    return f"{written(call.get('name'))}({written(arguments)})"


def written(value: Any) -> str:
    """Any value as text: JSON, unless it is text already; nothing for what is empty."""
    if isinstance(value, str) or value in (None, [], {}):
        return value or ""
    return json.dumps(value, ensure_ascii=False, default=str)
