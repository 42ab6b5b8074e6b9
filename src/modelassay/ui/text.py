"""Words that several tabs show."""

from __future__ import annotations

import re
from collections.abc import Sequence

from modelassay.guard import GuardEvent, Thresholds
from modelassay.ui.service import Step

PHASES = {
    "fetching": "Fetching the model",
    "files": "Hashing the files",
    "loading": "Loading the model",
    "weights": "Searching the weights for erased directions",
    "reading": "Reading activations",
    "statistics": "Measuring separation",
    "answering": "Judging short answers",
    "reading the candidate": "Reading activations of the candidate",
    "features": "Comparing features",
    "weight changes": "Comparing weights",
    "searching triggers": "Searching for triggers",
    "trying directions": "Trying directions out",
}

ACTIONS = {
    "continue": "answering",
    "pause": "held back",
    "escalate": "held back, classifier asked",
    "refuse": "refused",
}
ENDINGS = {
    "length": ", cut at the length that was asked for",
    "stop string": ", at a stop string",
    "cancelled": ", stopped",
}


def progress(step: Step) -> str:
    """A step as one line of Markdown."""
    count = f" {step.done} of {step.total}" if step.total > 1 else ""
    return f"{PHASES.get(step.phase, step.phase)}…{count}"


def plain(text: str) -> str:
    """Text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&-])", lambda match: f"&#{ord(match.group())};", text)


def chat_status(events: Sequence[GuardEvent], prompt: Thresholds) -> str:
    """Where a guarded response stands, as one line of Markdown."""
    first, newest = events[0], events[-1]
    lines = []
    if first.risk is not None:
        lines.append(f"Risk of the prompt **{first.risk:.3f}** (refused from {prompt.block:.3g})")
    if newest.kind == "end":
        reason = newest.reason or ""
        if newest.action == "refuse":
            where = f" at token {newest.index}" if newest.index else ""
            lines.append(f"**{reason.capitalize()}**{where}")
        else:
            lines.append(f"Done after {newest.index} tokens{ENDINGS.get(reason, '')}")
    elif newest.action in ACTIONS:
        lines.append(f"Token {newest.index}: {ACTIONS[newest.action]}")
    if detail := next((e.detail for e in reversed(events) if e.detail), None):
        lines.append(plain(detail))
    return " · ".join(lines)
