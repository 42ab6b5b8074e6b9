"""What the samples of a response teach: labels of its tokens, where the exchange has only one.

A response that is labelled unsafe begins harmlessly. So a sample at some length is unsafe only once
what had been said by then is: because it reaches a span that people marked, or as far as a
classifier says so of the text up to there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from modelassay.data.labelled import At, LabelledExchange
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.probes.features import Features, prefixes
from modelassay.probes.fitting import Lesson

TokenLabels = Literal["exchange", "spans", "classifier"]
TokenWeights = Literal["even", "whole", "soft"]
TOKEN_LABELS: tuple[TokenLabels, ...] = get_args(TokenLabels)
TOKEN_WEIGHTS: tuple[TokenWeights, ...] = get_args(TokenWeights)
Judge = Callable[[Sequence[tuple[str, str]]], np.ndarray]
"""P(unsafe) of exchanges (prompt, response so far), as a classifier's `unsafe` gives it."""


def make_lesson(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    features: Features,
    labels: TokenLabels,
    weights: TokenWeights,
    judge: Judge | None = None,
) -> Lesson:
    """What each sample teaches.

    Args:
        model: The model that was read.
        rows: The exchanges that the samples are of.
        features: The samples.
        labels: `exchange`, all samples are what their exchange is; `spans`, they are unsafe from
            the first marked character on (in a row without marks, all are what the exchange is);
            `classifier`, as far as it says.
        weights: `even`; `whole`, only whole responses are learnt from; or `soft`, see
            `probes.fitting`.
        judge: The classifier.
    """
    of = features.row
    unsafe = np.array([row.unsafe for row in rows], dtype=float)[of]
    if labels == "spans":
        texts = prefixes(model, rows, features)
        starts = [min((start for start, _ in row.spans), default=-1) for row in rows]
        reached = [len(text) > starts[i] for i, text in zip(of.tolist(), texts, strict=True)]
        unsafe *= np.array(reached)
    elif labels == "classifier":
        assert judge is not None  # noqa: S101 (checked by `train_head`)
        texts = prefixes(model, rows, features)
        asked = np.flatnonzero((unsafe == 1) & ~features.last)  # a whole response is as labelled
        scores = judge([(rows[of[i]].prompt, texts[i]) for i in asked])
        for i, score in zip(asked.tolist(), scores.tolist(), strict=True):
            # What was once said stays said.
            before = unsafe[i - 1] if i and of[i - 1] == of[i] else 0.0
            unsafe[i] = max(before, score)
    learnt = features.last if weights == "whole" else None
    return Lesson(unsafe, of, soft=weights == "soft", learnt=learnt)


def check_lesson(at: At, kind: str, labels: str, weights: str) -> None:
    """Refuses, without a model, what cannot be taught.

    Args:
        at: Where the head reads.
        kind: Of the head.
        labels: What the samples are labelled by.
        weights: How they count.

    Raises:
        InputError: an unknown choice, or one that does not fit the head.
    """
    for option, value, known in (
        ("--token-labels", labels, TOKEN_LABELS),
        ("--token-weights", weights, TOKEN_WEIGHTS),
    ):
        if value not in known:
            raise InputError(f"{option} is {' or '.join(known)}, not {value[:40]!r}.")
        if value == known[0]:
            continue
        if at == "prompt":
            raise InputError(f"{option} {value} is for responses, and a prompt is read once.")
        if kind == "attention":
            raise InputError(
                f"{option} {value} is not for --kind attention, which learns by itself which"
                " tokens count."
            )


def check_spans(labels: str, rows: Sequence[LabelledExchange]) -> None:
    """Refuses to learn from spans where no row has any.

    Raises:
        InputError: says so.
    """
    if labels == "spans" and not any(row.spans for row in rows):
        raise InputError(
            "--token-labels spans needs rows with `spans`, lists of [start, end] of what is unsafe"
            " in the response; no row has any."
        )
