"""Prompt suites of the fine-tune auditor (codex_mcp_finetune_auditor), brought to our layout.

Its prompts have an id, and a `prompt` or the `messages` of a conversation. What has no counterpart
is told in a line, and a setting that would ask something else is never dropped without a word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelassay.errors import InputError
from modelassay.files.records import first_problem

MAX_TEXT = 20_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Message(_Strict):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=MAX_TEXT)


class _Prompt(_Strict):
    id: str | int | None = None
    messages: tuple[Message, ...] | None = Field(default=None, max_length=102)
    prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    system_prompt: str | None = Field(default=None, max_length=MAX_TEXT)
    use_chat_template: bool = True
    add_generation_prompt: bool = True


class _Suite(_Strict):
    suite_name: str = Field(default="suite", min_length=1, max_length=100)
    description: str = Field(default="", max_length=2_000)
    prompts: tuple[_Prompt, ...] = Field(min_length=1, max_length=5_000)


def is_auditors(data: Mapping[str, Any]) -> bool:
    """Whether a file is in the auditor's layout."""
    prompts = data.get("prompts")
    rows = prompts if isinstance(prompts, list) else []
    theirs = any(isinstance(row, dict) and {"messages", "prompt"} & row.keys() for row in rows)
    return "suite_name" in data or ("name" not in data and theirs)


def from_auditor(data: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A suite of the auditor's as a mapping in our layout, with `notes`.

    Args:
        data: As the file has it.
        source: The file, for errors.

    Raises:
        InputError: one line that names the key or the prompt.
    """
    try:
        theirs = _Suite.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{source}: {first_problem(error, model=_Suite)}.") from error
    notes = []
    for key in ("use_chat_template", "add_generation_prompt"):
        if n := sum(not getattr(prompt, key) for prompt in theirs.prompts):
            notes.append(
                f"`{key}: false` of {n} prompts is not followed: they are asked through the chat"
                " template, as the model's users ask."
            )
    return {
        "name": theirs.suite_name,
        "description": theirs.description,
        "prompts": [
            _row(prompt, f"{source}: prompt {number}")
            for number, prompt in enumerate(theirs.prompts, 1)
        ],
        "notes": notes,
    }


def _row(given: _Prompt, what: str) -> dict[str, Any]:
    if (given.messages is None) == (given.prompt is None):
        raise InputError(f"{what} needs either `messages` or a `prompt`.")
    messages = given.messages or (Message(role="user", content=given.prompt or ""),)
    row = split_messages(messages, given.system_prompt, what)
    return row if given.id is None else {**row, "id": str(given.id)}


def split_messages(
    messages: tuple[Message, ...] | list[Message], system: str | None, what: str
) -> dict[str, Any]:
    """A conversation as `text`, `system` and the turns `before`.

    Args:
        messages: What was said; a user speaks last.
        system: A system prompt besides.
        what: Of what, for errors.

    Raises:
        InputError: it does not end with what a user says, or says something to the model twice.
    """
    turns = list(messages)
    if turns and turns[0].role == "system":
        if system:
            raise InputError(f"{what} has two system prompts; give one.")
        system = turns.pop(0).content
    if any(turn.role == "system" for turn in turns):
        raise InputError(f"{what}: a system message stands first or nowhere.")
    if not turns or turns[-1].role != "user" or not turns[-1].content.strip():
        raise InputError(f"{what} ends with no words of a user, so there is nothing to answer.")
    return {
        "text": turns[-1].content,
        "system": system or None,
        "before": [turn.model_dump() for turn in turns[:-1]],
    }
