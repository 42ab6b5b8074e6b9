"""Matched prompts, aligned token by token: one that ought to be refused, and its harmless twin.

What one run makes at a token can stand in for what the other makes only where the two tokens have
the same place. Twins share the template, but not always their number of tokens, so they are aligned
from their ends: the last token, at which the response begins, is under the last token, and so on
back to the first token in which they differ or to the start of the shorter one. Twins of which too
little lies under each other are left out.

Twins in the same words would be best, but small models hardly refuse one and not the other. So
plain harmful requests, which they do refuse, are matched with harmless ones of the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelassay.data.concepts import refusal_prompts
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.thinking import thinking_of

LEAST_SHARED = 0.7
"""Of the longer twin's tokens from where they differ, how many must have one under them."""
FEWEST = 8
"""Pairs without which nothing is told."""


@dataclass(frozen=True)
class AlignedPair:
    """Two prompts whose last tokens lie under each other."""

    harmful: Encoded
    harmless: Encoded
    shared: int
    """How many."""


def align(first: Encoded, second: Encoded) -> AlignedPair | None:
    """Aligns two prompts from their ends; None where too little lies under each other."""
    a, b = first.ids, second.ids
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if same is None:
        return None
    shared = min(len(a), len(b)) - same
    longest = max(len(a), len(b)) - same
    return AlignedPair(first, second, shared) if shared >= LEAST_SHARED * longest else None


def align_twins(
    model: LoadedModel, twins: Sequence[tuple[str, str]], most: int
) -> tuple[AlignedPair, ...]:
    """Pairs of prompts that align, in their order.

    Args:
        model: A chat model, asked so that it answers at once.
        twins: A harmful prompt and its harmless twin each.
        most: Pairs that are wanted.

    Raises:
        InputError: fewer than `FEWEST` align.
    """
    way = thinking_of(model)
    texts = [text for pair in twins for text in pair]
    encoded = encode_prompts(model, texts, thinking=way)
    aligned = [align(a, b) for a, b in zip(encoded[::2], encoded[1::2], strict=True)]
    return _enough([pair for pair in aligned if pair is not None], len(twins), most)


def _enough(found: Sequence[AlignedPair], given: int, most: int) -> tuple[AlignedPair, ...]:
    """As many pairs as are wanted, evenly spread."""
    if len(found) < FEWEST:
        raise InputError(
            f"Only {len(found)} of {given} pairs of prompts align token by token, and"
            f" {FEWEST} are needed; give twins of the same form and about the same length."
        )
    return (
        tuple(found[i * len(found) // most] for i in range(most))
        if most < len(found)
        else (tuple(found))
    )


def match_requests(model: LoadedModel, most: int) -> tuple[AlignedPair, ...]:
    """Harmful requests of a scan, each with the harmless one that is nearest in length.

    Args:
        model: A chat model, asked so that it answers at once.
        most: Pairs that are wanted.

    Raises:
        InputError: fewer than `FEWEST` align.
    """
    way = thinking_of(model)
    harmful, harmless = (encode_prompts(model, x, thinking=way) for x in refusal_prompts())
    free = list(harmless)
    found = []
    for prompt in harmful:
        near = min(free, key=lambda other: abs(len(other.ids) - len(prompt.ids)))
        if (pair := align(prompt, near)) is not None:
            free.remove(near)
            found.append(pair)
    return _enough(found, len(harmful), most)


def unrelated(pairs: Sequence[AlignedPair]) -> tuple[AlignedPair, ...]:
    """Harmless prompts held against each other, by the same rule: what any difference does."""
    prompts = [pair.harmless for pair in pairs]
    found = []
    for i, prompt in enumerate(prompts):
        others = (prompts[(i + step) % len(prompts)] for step in range(1, len(prompts)))
        matches = (align(prompt, other) for other in others)
        if (match := next((m for m in matches if m is not None), None)) is not None:
            found.append(match)
    return tuple(found)
