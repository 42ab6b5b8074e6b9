"""Both models on the same tokens, as the tools about behaviour and about features need them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelassay.audit.blinding import Name
from modelassay.audit.work import Work
from modelassay.diff.reading import Matched, Reading, encode_suite, match_tokens, read_model
from modelassay.diff.suites import SuitePrompt
from modelassay.reading.generation import generate_greedy
from modelassay.reading.logit_lens import decode_each
from modelassay.reading.prompts import Encoded


@dataclass(frozen=True)
class PairReading:
    """A and B on the tokens of prompts and of A's short responses."""

    matched: Matched
    tokens: tuple[str, ...]
    """Each compared token as text."""
    a: Reading
    b: Reading
    responses: tuple[list[str], list[str]] | None
    """Of A and B to each prompt; None where none were made."""


@dataclass(frozen=True)
class OneReading:
    """One model on the tokens of prompts and of its own short responses."""

    matched: Matched
    tokens: tuple[str, ...]
    reading: Reading


def read_pair(
    work: Work, prompts: Sequence[SuitePrompt], layers: Sequence[int], response_tokens: int
) -> PairReading:
    """Reads both models, A first.

    Args:
        work: The models.
        prompts: What is asked; rendered with the base's template for both.
        layers: Layers whose states are kept.
        response_tokens: Length of the responses; 0 makes none.
    """
    _ = work.pair  # refuses what cannot be compared
    encoded = encode_suite(work.base, prompts)
    # One model after the other: there may be room for one alone.
    first = _short_responses(work, "A", encoded, response_tokens)
    matched = match_tokens(work.base, encoded, first)
    tokens = tuple(decode_each(work.base, matched.token_ids().tolist()))
    a = read_model(work.model("A"), matched, layers, on_progress=work.progress)
    second = _short_responses(work, "B", encoded, response_tokens)
    b = read_model(work.model("B"), matched, layers, base=a, on_progress=work.progress)
    both = None if first is None or second is None else (first, second)
    return PairReading(matched, tokens, a, b, both)


def read_one(
    work: Work,
    name: Name,
    prompts: Sequence[SuitePrompt],
    layers: Sequence[int],
    response_tokens: int,
) -> OneReading:
    """Reads one model; arguments as in `read_pair`."""
    encoded = encode_suite(work.base, prompts)
    responses = _short_responses(work, name, encoded, response_tokens)
    matched = match_tokens(work.base, encoded, responses)
    tokens = tuple(decode_each(work.base, matched.token_ids().tolist()))
    reading = read_model(work.model(name), matched, layers, on_progress=work.progress)
    return OneReading(matched, tokens, reading)


def _short_responses(
    work: Work, name: Name, encoded: Sequence[Encoded], tokens: int
) -> list[str] | None:
    if tokens == 0:
        return None
    made = generate_greedy(
        work.model(name), encoded, max_new_tokens=tokens, on_progress=work.progress
    )
    return [response.text for response in made]
