"""Where a thought ends and the answer begins.

Reasoning models think before they answer, between marks that differ by family. A thought is no
answer: it is neither judged nor counted. The marks are in one table here; a chat template that
opens a section of its own right before the response adds one more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Marks(NamedTuple):
    """What opens a thought and what closes it."""

    opens: re.Pattern[str]
    closes: re.Pattern[str]


class Spoken(NamedTuple):
    """What a model said, parted."""

    answer: str | None
    """What follows the thought; None where the thought did not end."""
    thought: bool
    """Whether a thought came first."""


def _marks(opens: str, closes: str) -> Marks:
    return Marks(re.compile(opens, re.I), re.compile(closes, re.I))


# <think>, <thinking>, <seed:think>, <longcat_think>, <|thinking|>, <|START_THINKING|>,
# <|begin_of_thought|>, and what closes them.
_WORD = (
    r"(?:\w+[:_])?(?:ant)?(?:think(?:ing)?|thoughts?|thought_process|reason(?:ing)?|reflection"
    r"|scratchpad|analysis|cot)(?::\w+)?"
)
_OPEN = rf"<\|?(?!end)(?:(?:begin|start)_?(?:of_?)?)?{_WORD}(?:_?(?:begin|start))?\|?>"
_CLOSE = rf"<\|?(?:/\|?|end_?(?:of_?)?){_WORD}\|?>|<\|?{_WORD}_?end\|?>|\[/THINK\]|◁/think▷"
# gpt-oss: every channel but the final one.
_CHANNEL = r"[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
_FINAL = rf"<\|channel\|>\s*final\b{_CHANNEL}"
TABLE: tuple[Marks, ...] = (
    _marks(rf"<\|channel\|>\s*(?!final\b)\w+{_CHANNEL}", _FINAL),
    _marks(r"to=self<\|message\|>", r"to=user<\|message\|>"),  # Muse
    _marks(r"<\|channel>\s*thought", r"<channel\|>"),  # Gemma 4
    _marks(r"<unused94>(?:\s*thought)?", r"<unused95>"),  # MedGemma
    _marks(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    _marks(r"\[THINK\]|◁think▷", r"\[/THINK\]|◁/think▷"),  # Magistral, Kimi-VL
    _marks(r"here(?: is|'s) my thought process:", r"here(?: is|'s) my response:"),  # Granite 3.2
    _marks(r"here are my reasoning steps:", r"\[BEGIN FINAL RESPONSE\]"),  # Apriel
    # Some end a thought with the mark of the answer alone.
    _marks(
        _OPEN,
        rf"{_CLOSE}|<\|(?:(?:begin|start)_of_)?(?:response|answer|solution|output|content)\|>",
    ),
    _marks(r"analysis(?=[A-Z])", r"assistantfinal"),  # gpt-oss without its special tokens
)
_CLOSED = (
    ("<think>", "<think>\n\n</think>\n\n"),
    ("[THINK]", "[THINK][/THINK]"),
    ("<|channel|>analysis<|message|>",
     "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel|>", "<|channel|>final<|message|>"),  # an answer has a channel of its own
    ("<|channel>", "<|channel>thought\n<channel|>"),
    ("◁think▷", "◁think▷◁/think▷"),
    ("<|START_THINKING|>", "<|START_THINKING|><|END_THINKING|><|START_RESPONSE|>"),
    ("<|inner_prefix|>", "<|inner_prefix|><|inner_suffix|>"),
    ("<unused94>", "<unused94>thought\n<unused95>"),
    ("<|begin_of_thought|>",
     "<|begin_of_thought|>\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n"),
    ("<seed:think>", "<seed:think></seed:think>"),
    ("<longcat_think>", "<longcat_think>\n\n</longcat_think>\n\n"),
    ("<thinking>", "<thinking>\n\n</thinking>\n\n"),
    ("<thought>", "<thought>\n\n</thought>\n\n"),
)  # fmt: skip
"""Marks, and a thought in them that says nothing."""
_PIECES = ("<|channel|>", "<|message|>", "<|constrain|>", "<|channel>")
"""Tokens that are part of a mark."""
_UNOPENED = re.compile(rf"{_CLOSE}|{_FINAL}|to=user<\|message\|>|\[BEGIN FINAL RESPONSE\]", re.I)
"""Ends a thought even where nothing shows that it began: a prompt may have opened it."""
_BLANKS = " \t\r\n\u00a0\u200b\u200c\u200d\u200e\u200f\ufeff"
_SECTION = re.compile(r"([<\[])([\w:.|-]{2,30})([>\]])\s*\Z")
_OF_ANSWERS = re.compile(r"respon|answer|reply|output|solution|final|assistant|model|bot|ai", re.I)


def split_thought(text: str, opened: Marks | None = None) -> Spoken:
    """The answer in what a model said.

    Args:
        text: What it said, with the special tokens that mark a thought.
        opened: Marks of the thought that the prompt had opened, if it had.
    """
    marks, thought = opened, False
    while True:
        if marks is None:
            start = _opening(text)
            if start is None:
                break
            marks, end = start
            text = text[end:]
        thought = True
        close = _last(marks.closes.finditer(text))
        if close is None:
            return Spoken(None, thought)
        text, marks = text[close.end() :], None
    if close := _last(_UNOPENED.finditer(text)):
        return Spoken(text[close.end() :], thought=True)
    return Spoken(text, thought)


def _opening(text: str) -> tuple[Marks, int] | None:
    """The thought that a text begins with, and where its mark ends."""
    start = len(text) - len(text.lstrip(_BLANKS))
    for marks in TABLE:
        if opens := marks.opens.match(text, start):
            return marks, opens.end()
    return None


def is_mark(token: str) -> bool:
    """Whether a token is, or begins or ends, a mark of a thought."""
    return token in _PIECES or any(
        pattern.fullmatch(token) for marks in TABLE for pattern in (marks.opens, marks.closes)
    )


def opened_thought(prompt: str, others: Sequence[Marks] = ()) -> Marks | None:
    """Marks of the thought that the end of a prompt opens, and leaves open; None if it does not.

    Args:
        prompt: Text whose end is looked at.
        others: Marks beside those of the table.
    """
    for marks in (*others, *TABLE):
        start = _last(marks.opens.finditer(prompt))
        # Another mark after it begins something else: a turn, or the end of this very thought.
        if start and not re.search(r"[<\[◁]", prompt[start.end() :]):
            return marks
    return None


def own_marks(opening: str, source: str, between: str) -> Marks | None:
    """Marks of a section that a template opens before a response, if it is a thought's.

    Args:
        opening: What the template puts before a response.
        source: The template.
        between: What it puts after a response: what is closed there held the response itself.
    """
    section = _SECTION.search(opening)
    if section is None:
        return None
    left, name, right = section.groups()
    closing = f"{left}/{name}{right}"
    if closing not in source or closing in between or _OF_ANSWERS.search(name):
        return None
    return _marks(re.escape(f"{left}{name}{right}"), re.escape(closing))


def closed_thoughts() -> tuple[tuple[str, str], ...]:
    """What a model that knows a mark is given to have thought: (mark, an empty thought)."""
    return _CLOSED


def closing_of(opening: str, marks: Marks, source: str) -> str:
    """What ends the thought that a prompt opens; empty where that is not known.

    Args:
        opening: The end of the prompt.
        marks: Of the thought that it opens.
        source: The chat template, which may show how a thought ends.
    """
    start = _last(marks.opens.finditer(opening))
    if start is None:
        return ""
    mark, after = start[0].strip(), opening[start.end() :]
    for _, thought in _CLOSED:
        if thought.startswith(mark) and marks.closes.search(thought):
            return thought[len(mark) :].removeprefix(after)
    left, name, right = mark[:1], mark[1:-1], mark[-1:]
    bare = name.strip("|")
    tried = (f"{left}/{name}{right}", f"{left}|/{bare}|{right}", f"</{bare}>", f"<|end_{bare}|>")
    known = [each for each in tried if marks.closes.search(each)]
    best = next((each for each in known if each in source), known[0] if known else "")
    return f"\n{best}\n\n" if best else ""


def _last(found: Iterable[T]) -> T | None:
    last = None
    for last in found:  # noqa: B007 (the last one is what is asked for)
        pass
    return last
