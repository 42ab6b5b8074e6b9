"""The layouts that rows of conversations come in, and what each of them teaches.

* Conversations: `messages` of roles and contents, also under the names in `CONVERSATIONS`, as a
  list or written as JSON (OpenAI, ShareGPT, Gemini), with an optional system prompt.
* Pairs: one of `ASKED` with one of `ANSWERED`, texts or messages, with an optional `input` or
  `context`, `history` (Alpaca) and system prompt.
* Preferences: `chosen` and `rejected` (DPO, ORPO, reward models), or OpenAI's `preferred_output`
  and `non_preferred_output`; texts, transcripts (`Human:`, `Assistant:`) or messages, with the
  prompt apart or in both. The chosen response is taught, the rejected one moved away from.
* Judged responses: a pair of `prompt` and `completion`, or `messages`, with a `label` that is true
  or false (KTO), or with a completion 1 or 0. A response with the label false is not taught, but
  moved away from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from modelassay.data.messages import (
    Read,
    Turn,
    as_json,
    is_taught,
    messages_in,
    read_or_empty,
    text_of_parts,
    turn_of,
)
from modelassay.errors import InputError

CONVERSATIONS = ("messages", "conversations", "conversation", "contents", "dialogue", "dialog")
ASKED = ("prompt", "instruction", "question", "query", "input", "user")
ANSWERED = ("response", "output", "completion", "answer", "assistant")
ABOUT: Mapping[str, tuple[str, ...]] = dict.fromkeys(
    ("instruction", "question", "query"), ("input", "context")
)
"""What some prompts refer to; all others to an `input`."""
SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
PAIRS = (
    ("prompt", "response"),
    ("instruction", "output"),
    ("user", "assistant"),
    ("prompt", "completion"),
)
"""Those that belong together; they come first where a row has several."""
PREFERENCES = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
    ("response_j", "response_k"),
)
LABELS = ("label", "kto_tag")
_TRANSCRIPT = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant): ?")


@dataclass(frozen=True)
class Conversation:
    """What a row says."""

    turns: tuple[Turn, ...]
    """Role and text of each turn; of a preference, those of the chosen side."""
    rejected: tuple[Turn, ...] = ()
    """What training moves away from, after the turns that both sides share."""
    untaught: frozenset[int] = frozenset()
    """Turns of the assistant that are read and not learnt, by their place among the turns."""

    def said_by(self, *roles: str) -> str:
        """All that some roles say, parted by empty lines."""
        return joined(text for role, text in self.turns if role in roles)

    @property
    def taught(self) -> str:
        """All of the assistant's turns that are learnt, parted by empty lines."""
        return joined(
            text
            for place, (role, text) in enumerate(self.turns)
            if role == "assistant" and place not in self.untaught
        )


def joined(texts: Iterable[str]) -> str:
    """Texts parted by empty lines, without those that are empty."""
    return "\n\n".join(filter(None, texts))


def layout_names() -> str:
    """The layouts, for an error."""
    return (
        f"`messages`, one of {'/'.join(ASKED)} with one of {'/'.join(ANSWERED)}, or `chosen` with"
        " `rejected`"
    )


def conversation_of(
    row: Mapping[str, Any], name: str, read: Read, *, prompt_alone: bool = False
) -> Conversation | None:
    """What a row says, or None if it has none of the layouts of this module.

    Args:
        row: Of a file.
        name: What an error calls the row.
        read: Checks a text, given its field and the row's name, as `text_of` does.
        prompt_alone: Whether a prompt without a response will do.

    Raises:
        InputError: a field is of the wrong kind, or the prompt of a pair is empty.
    """
    row = {str(field).strip().lower(): value for field, value in row.items()} | dict(row)
    found = _preference(row, name, read) or _conversation(row, name, read)
    found = found or _pair(row, name, read, prompt_alone=prompt_alone)
    if found is not None and not found.rejected and _is_undesired(row):
        return _turned_away(found)
    return found


def _preference(row: Mapping[str, Any], name: str, read: Read) -> Conversation | None:
    for wanted, other in PREFERENCES:
        if wanted not in row or not (_is_given(row[wanted]) or _is_given(row.get(other))):
            continue
        asked = _asked_before(row, name, read)
        answer = _side(row[wanted], wanted, name, read, transcript=True)
        unwanted = Conversation(())
        if _is_given(row.get(other)):
            unwanted = _side(row[other], other, name, read, transcript=True)
        if any(role != "assistant" for role, _ in answer.turns):  # the whole conversation
            system = [turn for turn in asked.turns if turn[0] == "system"]
            has_own = any(role == "system" for role, _ in answer.turns)
            asked = Conversation(() if has_own else tuple(system))
            shared = _shared(answer.turns, unwanted.turns)
            asked = _followed(asked, Conversation(answer.turns[:shared]))
            answer = Conversation(answer.turns[shared:])
            unwanted = Conversation(unwanted.turns[shared:])
        return replace(_followed(_as_context(asked), answer), rejected=unwanted.turns)
    return None


def _asked_before(row: Mapping[str, Any], name: str, read: Read) -> Conversation:
    """The prompt of a preference and its system prompt, as far as they are apart from the sides."""
    field = next((field for field in ASKED if _is_given(row.get(field))), None)
    opening = _system(row, name, read)
    if field is not None:
        return _followed(opening, _asked(row, field, name, read, transcript=True))
    return _conversation(row, name, read) or opening


def _conversation(row: Mapping[str, Any], name: str, read: Read) -> Conversation | None:
    field = next((field for field in CONVERSATIONS if _is_given(row.get(field))), None)
    if field is None or (field != "messages" and messages_in(row[field]) is None):
        return None
    messages = messages_in(row[field])
    if messages is None:
        if isinstance(row[field], list | tuple):
            for message in row[field]:  # says which role is wrong
                turn_of(message, name, read)
        raise InputError(f"{name}: `{field}` must be a list of role and content.")
    found = _of_messages(messages, name, read)
    if any(role == "system" for role, _ in found.turns):
        return found
    return _followed(_system(row, name, read), found)


def _pair(
    row: Mapping[str, Any], name: str, read: Read, *, prompt_alone: bool
) -> Conversation | None:
    fields = [*PAIRS, *product(ASKED, ANSWERED)]
    both = next((pair for pair in fields if all(_is_given(row.get(each)) for each in pair)), None)
    both = both or next((pair for pair in fields if all(each in row for each in pair)), None)
    field = both[0] if both else next((field for field in ASKED if _is_given(row.get(field))), None)
    if field is None or not (both or prompt_alone):
        return None
    asked = _asked(row, field, name, read)
    if not any(text for _, text in asked.turns):
        raise InputError(f"{name}: `{field}` is empty.")
    history = _followed(_system(row, name, read), _history(row.get("history"), name, read))
    before = _followed(history, _as_context(asked))
    return _followed(before, _side(row[both[1]], both[1], name, read)) if both else before


def _asked(
    row: Mapping[str, Any], field: str, name: str, read: Read, *, transcript: bool = False
) -> Conversation:
    """What a field asks, with the `input` or `context` that it is about."""
    value = row[field]
    if isinstance(value, Mapping) and "messages" in value:  # OpenAI's preferences
        value = value["messages"]
    asked = _side(value, field, name, read, role="user", transcript=transcript)
    if not asked.turns or asked.turns[-1][0] != "user":
        return asked
    extra = (
        read_or_empty(
            as_json(value) if isinstance(value, list | Mapping) else value, name, read, more
        )
        for more in ABOUT.get(field, ("input",))
        if more != field and isinstance(value := row.get(more), str | int | float | list | Mapping)
    )
    prompt = "\n".join(filter(None, (asked.turns[-1][1], *extra)))
    return replace(asked, turns=(*asked.turns[:-1], ("user", prompt)))


def _history(value: Any, name: str, read: Read) -> Conversation:
    """Alpaca's earlier turns: pairs of what was asked and answered."""
    if messages := messages_in(value):
        return _of_messages(messages, name, read)
    turns: list[Turn] = []
    for pair in value if isinstance(value, list | tuple) else ():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InputError(f"{name}: `history` must hold pairs of a prompt and a response.")
        for role, text in zip(("user", "assistant"), pair, strict=True):
            turns.append((role, read(text, "history", name)))
    return Conversation(tuple(turns))


def _side(
    value: Any,
    field: str,
    name: str,
    read: Read,
    *,
    role: str = "assistant",
    transcript: bool = False,
) -> Conversation:
    """A cell that holds a text, messages or, of a preference, perhaps a transcript."""
    if messages := messages_in(value):
        return _of_messages(messages, name, read)
    if transcript and isinstance(value, str) and _TRANSCRIPT.match(value):
        return Conversation(tuple(_transcript(value, field, name, read)))
    return Conversation(((role, read(value, field, name)),))


def _transcript(text: str, field: str, name: str, read: Read) -> Iterable[Turn]:
    _, *parts = _TRANSCRIPT.split(text)
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        if said.strip():  # a prompt ends with the name of who speaks next
            yield ("user" if speaker == "Human" else "assistant"), read(said, field, name)


def _of_messages(messages: list[Any], name: str, read: Read) -> Conversation:
    turns = tuple(turn_of(message, name, read) for message in messages)
    roles = (role for role, _ in turns)
    untaught = frozenset(
        place
        for place, (role, message) in enumerate(zip(roles, messages, strict=True))
        if role == "assistant" and not is_taught(message)
    )
    return Conversation(turns, untaught=untaught)


def _system(row: Mapping[str, Any], name: str, read: Read) -> Conversation:
    value = next((row[field] for field in SYSTEM if _is_given(row.get(field))), None)
    if isinstance(value, Mapping):
        value = value.get("parts") or value.get("content") or value
    if isinstance(value, list | Mapping):
        value = text_of_parts(value)
    text = read_or_empty(value, name, read, "system")
    return Conversation((("system", text),) if text else ())


def _followed(first: Conversation, second: Conversation) -> Conversation:
    n = len(first.turns)
    untaught = first.untaught | {n + place for place in second.untaught}
    return Conversation((*first.turns, *second.turns), second.rejected, frozenset(untaught))


def _as_context(asked: Conversation) -> Conversation:
    """A prompt, of which nothing is learnt even where the assistant speaks."""
    spoken = (place for place, (role, _) in enumerate(asked.turns) if role == "assistant")
    return replace(asked, untaught=frozenset(spoken))


def _turned_away(found: Conversation) -> Conversation:
    """A conversation whose last responses are judged bad: nothing of it is learnt."""
    end = max((i for i, (role, _) in enumerate(found.turns) if role != "assistant"), default=-1) + 1
    return replace(_as_context(Conversation(found.turns[:end])), rejected=tuple(found.turns[end:]))


def _is_undesired(row: Mapping[str, Any]) -> bool:
    """Whether a label of KTO's says that the response is a bad one."""
    if not ("completion" in row or any(_is_given(row.get(field)) for field in CONVERSATIONS)):
        return False
    bad = ("false", "0", "0.0") if _is_given(row.get("completion")) else ("false",)
    return any(str(row.get(field)).strip().lower() in bad for field in LABELS)


def _shared(one: tuple[Turn, ...], other: tuple[Turn, ...]) -> int:
    """How many turns two conversations begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _is_given(value: Any) -> bool:
    return value is not None and value not in ("", [], {})
