"""Words that several tabs show."""

from __future__ import annotations

import re

from modelassay.ui.service import Step

PHASES = {
    "fetching": "Fetching the model",
    "files": "Hashing the files",
    "loading": "Loading the model",
    "weights": "Searching the weights for erased directions",
    "reading": "Reading activations",
    "statistics": "Measuring separation",
    "answering": "Judging short answers",
}


def progress(step: Step) -> str:
    """A step as one line of Markdown."""
    count = f" {step.done} of {step.total}" if step.total > 1 else ""
    return f"{PHASES.get(step.phase, step.phase)}…{count}"


def plain(text: str) -> str:
    """Text in which Markdown and HTML mean nothing."""
    return re.sub(r"([\\`*_{}\[\]()#+!|<>&-])", lambda match: f"&#{ord(match.group())};", text)
