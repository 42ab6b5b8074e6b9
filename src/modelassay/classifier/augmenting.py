"""Changes of responses that leave their class as it is: prefixes, and the forms of chat models.

A guarded chat judges answers that are not complete yet. A prefix has the label of its row, so the
classifier learns to say early where a response is going. Only training rows are multiplied; what
scores the classifier stays as it is.

Unsafe responses in public data are written by chat models, in numbered steps that open with "Sure";
answers of people are plain sentences. Without mixing the forms a classifier learns the form.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from modelassay.data.labelled import LabelledExchange

MIN_WORDS = 3
"""Shorter prefixes carry nothing: "Sure, here" opens answers of every kind."""
MAX_WORDS = 120
PREFIXES = 1
OPENERS = (
    "Sure! ",
    "Sure, here it is: ",
    "Of course! ",
    "Certainly. Here you go:\n\n",
    "Sure, here's what you asked for:\n\n",
    "Absolutely! ",
    "Great question! ",
    "Here is a detailed answer:\n\n",
    "Yes, I can help with that. ",
    "Here are the steps:\n\n",
)
CLOSERS = (
    " I hope this helps!",
    "\n\nLet me know if you have any other questions.",
    "\n\nFeel free to ask for more details.",
)
HEADINGS = ("**Answer:**\n\n", "## Answer\n\n", "### Overview\n", "**Response**\n\n", "Step 1: ")
CASES = ("I understand. ", "As requested, ", "Okay. ")
OPENING = re.compile(
    r"^(?:sure|of course|certainly|absolutely|yes|okay|ok|great|title:)\b[^\n.:!]{0,80}[\n.:!]\s*",
    re.IGNORECASE,
)
MARKS = re.compile(r"(?m)^\s*(?:\d+[.)]|[*\-•]|#{1,4})\s+")
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def word_prefix(text: str, n_words: int) -> str:
    """The first words of a text, up to the end of word number `n_words`, spacing as it was."""
    for number, word in enumerate(re.finditer(r"\S+", text), 1):
        if number == n_words:
            return text[: word.end()]
    return text


def count_words(text: str) -> int:
    """Number of whitespace-separated words."""
    return len(text.split())


def stream_prefixes(text: str, first: int = 8) -> list[str]:
    """What a guarded chat would ask about: 8, 16, 32, … words, and the whole response."""
    n_words, prefixes, at = count_words(text), [], first
    while at < n_words:
        prefixes.append(word_prefix(text, at))
        at *= 2
    return [*prefixes, text]


def with_prefixes(
    rows: Sequence[LabelledExchange], seed: int, prefixes: int = PREFIXES
) -> list[LabelledExchange]:
    """Rows, each followed by prefixes of its response that end with a whole word.

    Lengths are drawn evenly on a logarithmic scale, so that beginnings are as frequent as longer
    parts.

    Args:
        rows: Training rows.
        seed: Of the draw.
        prefixes: Of each response; answers too short for a proper prefix get none.
    """
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    grown = []
    for row in rows:
        grown.append(row)
        n_words = min(count_words(row.response), MAX_WORDS + 1)
        if n_words <= MIN_WORDS:
            continue
        lengths = {
            round(MIN_WORDS * (n_words / MIN_WORDS) ** draw.random()) for _ in range(prefixes)
        }
        grown += [
            replace(row, response=word_prefix(row.response, n))
            for n in sorted(lengths)
            if MIN_WORDS <= n < n_words
        ]
    return grown


def dressed(text: str, draw: random.Random) -> str:
    """A harmless response in one of the forms that chat models use."""
    chance = draw.random()
    if chance < 0.22:
        text = listed(text, draw)
    elif chance < 0.34:
        text = draw.choice(HEADINGS) + text
    chance = draw.random()
    if chance < 0.35:
        text = draw.choice(OPENERS) + text
    elif chance < 0.4:
        text = draw.choice(CASES) + text[:1].lower() + text[1:]
    return text + draw.choice(CLOSERS) if draw.random() < 0.1 else text


def undressed(text: str, draw: random.Random) -> str:
    """A response without the opening, the list marks or the bold type of chat models, at times."""
    if draw.random() < 0.35:
        rest = OPENING.sub("", text, count=1)
        text = rest or text
    if draw.random() < 0.3:
        text = MARKS.sub("", text).replace("**", "")
    if draw.random() < 0.15:
        text = " ".join(text.split())
    return text


def listed(text: str, draw: random.Random) -> str:
    """The sentences of a text as a numbered or bulleted list; one sentence stays as it is."""
    sentences = [part for part in SENTENCE.split(text.strip()) if part]
    if len(sentences) < 2 or MARKS.search(text):
        return text
    kind = draw.choice(("number", "bullet", "bold"))
    marks = {"number": "{}. ", "bullet": "* ", "bold": "**Step {}:** "}
    return "\n".join(
        marks[kind].format(number) + sentence for number, sentence in enumerate(sentences, 1)
    )
