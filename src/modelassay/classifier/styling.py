"""Changes of form that leave the class of an answer as it is.

Unsafe answers in public data are written by chat models, in numbered steps that open with "Sure";
answers of people are plain sentences. Without mixing the forms a classifier learns the form.
"""

from __future__ import annotations

import random
import re

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


def dressed(text: str, draw: random.Random) -> str:
    """A harmless answer in one of the forms that chat models use."""
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
    """An answer without the opening, the list marks or the bold type of chat models, at times."""
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
