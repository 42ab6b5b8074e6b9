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
    """A and B on the tokens of prompts and of A's short answers."""

    matched: Matched
    tokens: tuple[str, ...]
    """Each compared token as text."""
    a: Reading
    b: Reading
    answers: tuple[list[str], list[str]] | None
    """Of A and B to each prompt; None where none were made."""


@dataclass(frozen=True)
class OneReading:
    """One model on the tokens of prompts and of its own short answers."""

    matched: Matched
    tokens: tuple[str, ...]
    reading: Reading


def read_pair(
    work: Work, prompts: Sequence[SuitePrompt], layers: Sequence[int], answer_tokens: int
) -> PairReading:
    """Reads both models, A first.

    Args:
        work: The models.
        prompts: What is asked; rendered with the base's template for both.
        layers: Layers whose states are kept.
        answer_tokens: Length of the answers; 0 makes none.
    """
    _ = work.pair  # refuses what cannot be compared
    encoded = encode_suite(work.base, prompts)
    # One model after the other: there may be room for one alone.
    first = _short_answers(work, "A", encoded, answer_tokens)
    matched = match_tokens(work.base, encoded, first)
    tokens = tuple(decode_each(work.base, matched.token_ids().tolist()))
    a = read_model(work.model("A"), matched, layers, on_progress=work.progress)
    second = _short_answers(work, "B", encoded, answer_tokens)
    b = read_model(work.model("B"), matched, layers, base=a, on_progress=work.progress)
    both = None if first is None or second is None else (first, second)
    return PairReading(matched, tokens, a, b, both)


def read_one(
    work: Work,
    name: Name,
    prompts: Sequence[SuitePrompt],
    layers: Sequence[int],
    answer_tokens: int,
) -> OneReading:
    """Reads one model; arguments as in `read_pair`."""
    encoded = encode_suite(work.base, prompts)
    answers = _short_answers(work, name, encoded, answer_tokens)
    matched = match_tokens(work.base, encoded, answers)
    tokens = tuple(decode_each(work.base, matched.token_ids().tolist()))
    reading = read_model(work.model(name), matched, layers, on_progress=work.progress)
    return OneReading(matched, tokens, reading)


def _short_answers(
    work: Work, name: Name, encoded: Sequence[Encoded], tokens: int
) -> list[str] | None:
    if tokens == 0:
        return None
    made = generate_greedy(
        work.model(name), encoded, max_new_tokens=tokens, on_progress=work.progress
    )
    return [answer.text for answer in made]
