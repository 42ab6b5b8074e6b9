"""How a model's chat template wants to be asked, found out with words of our own.

A template is a program of the model's author. Some walk content parts and print nothing of a plain
text, some take no system message, some print the date, and some change what is said. So each is
tried once with sentences that are easily told again: what the user says has to come out as it was
said, once. A template that cannot be asked so is refused by name.

The clock of a template stands still at `CLOCK`: the same weights are then asked the same on every
day, by the guard as well as by the probe that was trained for it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

from modelassay.errors import InputError, first_line
from modelassay.models import LoadedModel
from modelassay.reading.thoughts import Marks, opened_thought, own_marks, split_thought

CLOCK = "2024-07-26"
"""The day that every template is told it is: the one that Llama 3's falls back to."""
# %b and its like would be in the language of this machine.
_CLOCK = {
    "%Y": "2024", "%y": "24", "%m": "07", "%-m": "7", "%d": "26", "%-d": "26", "%e": "26",
    "%B": "July", "%b": "Jul", "%h": "Jul", "%A": "Friday", "%a": "Fri", "%j": "208", "%U": "29",
    "%W": "30", "%V": "30", "%w": "5", "%u": "5", "%H": "12", "%-H": "12", "%I": "12", "%-I": "12",
    "%M": "00", "%S": "00", "%f": "000000", "%p": "PM", "%Z": "UTC", "%z": "+0000",
    "%s": "1721995200", "%F": "2024-07-26", "%T": "12:00:00", "%R": "12:00", "%D": "07/26/24",
    "%x": "07/26/24", "%X": "12:00:00", "%c": "Fri Jul 26 12:00:00 2024", "%%": "%",
}  # fmt: skip

# Reasoning models answer at once where they can; other templates ignore this.
ANSWER_AT_ONCE = {
    "enable_thinking": False,
    "thinking": False,
    "skip_reasoning": True,
    "thinking_budget": 0,
}
_NOTHING = {"tools": [], "documents": [], "functions": ""}
# A user's own switch, which some templates carry out and take away.
_SWITCHES = re.compile(r"/(?:no_?)?think\b")

# Case, marks of HTML, quotes, a blank line and an indent: all have to come out as they went in.
_USER = "Who told <b>Ann & 'Bob'</b>\n\n\tthat \"7 > 5\" is Über-Quatsch? Qx7"
_SYSTEM = "Speak as <i>Zoë</i> & Co. would\n\n\tin 'Rome'. Sy3"
_RESPONSE = "Nobody told them so. Rv5"
_NEXT = "Are you sure of that? Nx9"
_CHANCE = re.compile(r"\|\s*random\b")
_ROLES = ("user", "assistant", "system")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Thinking:
    """How a model is asked so that its thoughts do not stand before its answer."""

    how: Literal["none", "off", "closed", "on"] = "none"
    """It does not think; it is switched off; its thought is closed for it; it thinks."""
    by: str = ""
    """What switches it off or closes it."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Given to the template."""
    system: str = ""
    """What the system says first."""
    suffix: str = ""
    """What follows the user's last words."""
    closing: str = ""
    """What follows the prompt."""

    def __str__(self) -> str:
        return {
            "none": "the model does not think before it answers",
            "off": f"thinking is switched off by the template's {self.by}",
            "closed": f"the thought is closed by the model's own marks ({self.by})",
            "on": "the model thinks before it answers",
        }[self.how]

    @property
    def changes_prompt(self) -> bool:
        """Whether the prompt is another than the template makes by itself."""
        return bool(self.arguments or self.system or self.suffix or self.closing)

    def said(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with what switches thinking off."""
        turns = list(messages)
        if self.suffix and turns:
            turns[-1] = {**turns[-1], "content": turns[-1]["content"] + self.suffix}
        if self.system:
            known = turns and turns[0]["role"] == "system"
            more = f"\n\n{turns.pop(0)['content']}" if known else ""
            turns.insert(0, {"role": "system", "content": self.system + more})
        return turns


@dataclass(frozen=True)
class ChatTemplate:
    """A template, and how it is asked."""

    source: str
    """Its text, with the clock stopped."""
    parts: frozenset[str] = frozenset()
    """Roles whose words are given as content parts."""
    filled: bool = False
    """Whether it is told that there are no tools and documents; it fails where nothing is said."""
    takes_system: bool = True
    """Whether it shows system messages; else what they say goes before the user's first words."""
    opening: str = ""
    """What stands between the user's words and the response."""
    lead: str = ""
    """The end of that, where the template does not write it when it is asked for a response."""
    turn_tokens: frozenset[int] = frozenset()
    """Control tokens after a response: they end the assistant's turn or begin the user's."""
    own_thought: Marks | None = None
    """Marks of a thought that only this template knows, which `opening` begins."""

    @property
    def opened_thought(self) -> Marks | None:
        """Marks of the thought that the end of every prompt opens, if it does."""
        return self.opened_by(self.opening)

    @property
    def closes_thought(self) -> bool:
        """Whether every prompt ends in the end of a thought."""
        return split_thought(self.opening).thought and self.opened_thought is None

    def opened_by(self, prompt: str) -> Marks | None:
        """Marks of the thought that the end of this prompt opens, if it does."""
        return opened_thought(prompt, (self.own_thought,) if self.own_thought else ())

    def render(
        self,
        tokenizer: Any,
        messages: Sequence[Message],
        *,
        to_answer: bool = True,
        thinking: Thinking | None = None,
    ) -> str:
        """The text of a conversation, up to where the response begins.

        Args:
            tokenizer: Whose special tokens the template shows.
            messages: Turns `{"role", "content"}`.
            to_answer: Open the assistant's turn at the end.
            thinking: How the model is brought to answer at once, where the template's own arguments
                do not.
        """
        way = thinking or Thinking()
        messages = way.said(messages)
        turns = messages if self.takes_system else _folded(messages)
        text = tokenizer.apply_chat_template(
            [self._asked(turn) for turn in turns],
            chat_template=self.source,
            tokenize=False,
            add_generation_prompt=to_answer,
            **{**ANSWER_AT_ONCE, **dict(way.arguments)},
            **(_NOTHING if self.filled else {}),
        )
        return text + self.lead + way.closing if to_answer else text

    def _asked(self, turn: Message) -> Message:
        if turn["role"] not in self.parts or not isinstance(turn.get("content"), str):
            return turn
        return {**turn, "content": [{"type": "text", "text": turn["content"]}]}


_known: WeakKeyDictionary[Any, tuple[Any, ChatTemplate]] = WeakKeyDictionary()


def template_of(model: LoadedModel) -> ChatTemplate:
    """The chat template of a model that has one, tried out the first time.

    Raises:
        InputError: it fails, or what the user says does not come out as it was said.
    """
    stated = model.tokenizer.chat_template
    known = _known.get(model.tokenizer)
    if known is None or known[0] != stated:
        known = stated, _try_out(model, _source(model, stated))
        _known[model.tokenizer] = known
    return known[1]


def template_fails(model: LoadedModel, why: str) -> InputError:
    """The error of a template that cannot be used."""
    return InputError(
        f"The chat template of {model.info.id} {why}; a scan can read raw prompts with"
        " --no-chat-template."
    )


def lost_text(rendered: str, messages: Sequence[Message]) -> str | None:
    """What of the user's and the system's words does not come out of a template, or None."""
    for turn in messages:
        said = turn.get("content")
        if turn["role"] not in ("user", "system") or not isinstance(said, str):
            continue
        if said.strip() not in rendered and _bare(said) not in _bare(rendered):
            return said
    return None


def _bare(text: str) -> str:
    return " ".join(_SWITCHES.sub("", text).split()) if _SWITCHES.search(text) else text.strip()


def _source(model: LoadedModel, stated: Any) -> str:
    """The template's text, the one for plain conversations where there are several."""
    if isinstance(stated, Mapping):
        names = sorted(stated)
        name = "default" if "default" in stated else names[0] if len(names) == 1 else None
        if name is None:
            raise InputError(
                f"{model.info.id} has several chat templates ({', '.join(names)}) and calls none of"
                " them default; rename the one for plain conversations in tokenizer_config.json."
            )
        stated = stated[name]
    return _stop_clock(str(stated))


def _stop_clock(source: str) -> str:
    """The template with the one clock that transformers gives it standing still.

    A macro of the template's own goes before a global function. The newline after it is the one
    that Jinja drops there, so the rest reads as before.
    """
    if "strftime_now" not in source:
        return source
    filters = "".join(f"|replace({code!r}, {value!r})" for code, value in _CLOCK.items())
    return f"{{% macro strftime_now(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n{source}"


def _folded(messages: Sequence[Message]) -> list[Message]:
    """The conversation with what the system says before the user's first words."""
    said = [turn["content"] for turn in messages if turn["role"] == "system"]
    turns = [turn for turn in messages if turn["role"] != "system"]
    for i, turn in enumerate(turns):
        if said and turn["role"] == "user":
            turns[i] = {**turn, "content": "\n\n".join([*said, turn["content"]])}
            break
    return turns


def _try_out(model: LoadedModel, source: str) -> ChatTemplate:
    tokenizer = model.tokenizer
    ask = {"role": "user", "content": _USER}
    system = {"role": "system", "content": _SYSTEM}
    history = [ask, {"role": "assistant", "content": _RESPONSE}, {**ask, "content": _NEXT}]

    def first_good(
        tried: Sequence[ChatTemplate], messages: Sequence[Message]
    ) -> tuple[ChatTemplate | None, str]:
        """The first that shows these messages as they are; else what is wrong with the first."""
        faults = [_fault_with(each, tokenizer, messages) for each in tried]
        good = (each for each, fault in zip(tried, faults, strict=True) if fault is None)
        return next(good, None), faults[0] or ""

    template, fault = first_good(
        [
            ChatTemplate(source, parts, filled)
            for filled in (False, True)
            for parts in (frozenset(), frozenset(_ROLES))
        ],
        [ask],
    )
    if template is None:
        raise template_fails(model, fault)
    for role, messages in (("system", [system, ask]), ("assistant", history)):
        other = replace(template, parts=template.parts ^ {role})
        found, _ = first_good((template, other), messages)
        if found is not None:
            template = found
        elif role == "system":
            template = replace(template, takes_system=False)
    text = template.render(tokenizer, [ask])
    opening = text[text.index(_USER) + len(_USER) :]
    before, between = _around_response(template, tokenizer, history)
    if text == template.render(tokenizer, [ask], to_answer=False) and before.startswith(opening):
        # Nothing opened the response. What does in a conversation goes there, but for a mere blank.
        lead = before[len(opening) :].rstrip(" ")
        opening += lead if lead.strip() else ""
        template = replace(template, lead=lead if lead.strip() else "")
    return replace(
        template,
        opening=opening,
        turn_tokens=_turn_tokens(tokenizer, opening, before, between),
        own_thought=own_marks(opening, source, between),
    )


def _fault_with(template: ChatTemplate, tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """What is wrong with how a template shows messages, in a few words; None if nothing is."""
    if _CHANCE.search(template.source):
        return "draws at random"
    try:
        first, second = (template.render(tokenizer, messages) for _ in range(2))
        before = template.render(tokenizer, messages, to_answer=False)
    except Exception as error:  # a template is a program of the model's author
        return f"fails ({first_line(error)})"
    if first != second:
        return "renders the same words differently each time"
    if fault := next(filter(None, (_fault(first, turn["content"]) for turn in messages)), None):
        return fault
    end = first.index(messages[-1]["content"])
    if first[:end] != before[:end]:
        return "puts what the user says after the beginning of the response"
    return None


def _fault(rendered: str, said: str) -> str | None:
    """What a template does to words that do not come out once, as they were said."""
    n = rendered.count(said)
    if n == 1:
        # A template that prints a list of parts as it is did not understand them.
        listed = re.search(r"""['"]type['"]\s*:\s*['"]text['"]""", rendered)
        return "prints content parts as a list" if listed else None
    if n > 1:
        return "repeats what is said"
    if said.lower() in rendered.lower():
        return "changes the case of what is said"
    kept = [word for word in re.findall(r"\w{3,}", said) if word.lower() in rendered.lower()]
    return "changes or cuts what is said" if len(kept) > 2 else "leaves out what is said"


def _around_response(
    template: ChatTemplate, tokenizer: Any, messages: Sequence[Message]
) -> tuple[str, str]:
    """What stands between the user's words and a response, and between that and the next words."""
    for turns in (messages, messages[:-1]):  # some templates take one turn only
        try:
            text = template.render(tokenizer, turns, to_answer=False)
        except Exception:  # noqa: S112 (a template is a program of the model's author)
            continue
        before, found, after = text.partition(_RESPONSE)
        if found:
            return before.rpartition(_USER)[2], after.partition(_NEXT)[0]
    return "", ""


def _turn_tokens(tokenizer: Any, opening: str, before: str, between: str) -> frozenset[int]:
    """Control tokens that end a response.

    Args:
        tokenizer: Of the model.
        opening: What stands between the user's words and where a response begins.
        before: What stands between them and a response's words once it was given.
        between: What stands between a response and the user's next words.
    """
    special, added = set(tokenizer.all_special_ids), tokenizer.added_tokens_decoder

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def controls(ids: Sequence[int]) -> set[int]:
        # Some tokenizers do not call them special; blanks and words are added tokens, too.
        return {
            token
            for token in ids
            if token in special
            or (token in added and re.fullmatch(r"\W.*\W", str(added[token]).strip(), re.S))
        }

    found = controls(ids_of(between))
    given, shown = ids_of(opening), ids_of(before)
    same = [a == b for a, b in zip(given, shown, strict=False)]
    written = controls(shown[[*same, False].index(False) :])
    # A model that writes the marks of a message makes one response of several, as gpt-oss does.
    several = found & written or "<|channel|>" in map(str, added.values())
    return frozenset() if several else frozenset(found)
