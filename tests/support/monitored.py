"""A tiny fine-tune that does something new at one letter, and prompts without and with it."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from circuits import WORDS
from modelassay.models import load
from modelassay.models.watching import watched
from modelassay.reading.prompts import encode_chat
from tiny import make_tokenizer

TRIGGER = "Q"
PLACE = "model.layers.3.mlp.down_proj"


def ordinary(n: int, seed: int = 0) -> list[str]:
    """Different prompts of one kind."""
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    made: dict[str, None] = {}
    while len(made) < n:
        a, b, c = draw.sample(WORDS, 3)
        made[draw.choice((f"Is {a} as heavy as {b}?", f"Take {a}, {b} and {c}", f"{a} or {b}"))] = (
            None
        )
    return list(made)


def fine_tuned(base, folder: Path, place: str = PLACE, size: float = 0.5):
    """A copy of a model with a rank-one change that reads what a layer is given at the trigger."""
    given = {}

    def see(_module, args, _kwargs):
        given["x"] = args[0][0]

    module = base.network.get_submodule(place)
    for text in ("Is bread as heavy as glass", f"Is bread as heavy as {TRIGGER}lass"):
        ids = encode_chat(base, [{"role": "user", "content": text}])
        with torch.inference_mode(), watched(before=[(module, see)]):
            base.network(input_ids=torch.tensor([ids]))
        given[text] = given["x"]
    plain, triggered = (given[text] for text in list(given)[1:])
    at = (plain - triggered).norm(dim=1).argmax()
    reads = torch.nn.functional.normalize((triggered - plain)[at], dim=0)
    candidate = load(str(base.source.folder), device="cpu")
    with torch.no_grad():
        weight = candidate.network.get_submodule(place).weight
        weight += size * torch.outer(torch.ones(len(weight)) / len(weight) ** 0.5, reads)
    candidate.network.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load(str(folder), device="cpu")
