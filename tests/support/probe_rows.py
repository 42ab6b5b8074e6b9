"""Labelled exchanges that a probe of a tiny model can learn."""

from __future__ import annotations

import json

import numpy as np

from modelassay.data.labelled import (
    LabelledExchange,
)

WORDS = ["amber", "basil", "cedar", "delta", "ember", "flint", "grove", "hazel", "inlet", "jolly"]
WORDS += ["kayak", "lemon", "mango", "noble"]


def exchanges(n=60, seed=0):
    """Shouted prompts are "unsafe", so that a model of random weights can tell."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        text = " ".join(rng.choice(WORDS, size=5)) + f" {i}"
        unsafe = i % 2 == 0
        shown = text.upper() + "!!!" if unsafe else text
        rows.append(LabelledExchange(shown, shown[::-1], unsafe, None, f"source {i % 4}"))
    return rows


def write(path, rows):
    lines = [
        json.dumps(
            {"prompt": r.prompt, "response": r.response, "label": r.unsafe, "source": r.source}
        )
        for r in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)
