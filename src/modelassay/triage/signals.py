"""Streams: ways in which a row can stand out, each a score that is high for suspicious rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import Unpack

from modelassay.errors import InputError
from modelassay.models import ModelIdentity, ModelRef, PairOptions
from modelassay.models.refs import take_pair
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.triage.loss import RowLosses, row_losses
from modelassay.triage.outliers import embed_rows, harm_of_responses, neighbourhoods
from modelassay.triage.rows import TrainingRow

WINDOW_SHARE = 0.05
MIN_WINDOW = 40
MIN_SPREAD = 0.02
"""Nats a token: rows from one template would otherwise differ by many deviations of nothing."""


@dataclass(frozen=True)
class Signal:
    """One score of every row."""

    name: str
    meaning: str
    """What a high score says, with its unit."""
    scores: np.ndarray
    """float64 [row], NaN where a row has none."""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the score was made of, [row] each."""
    models: tuple[ModelIdentity, ...] = ()
    """Base and candidate, where it read them."""
    notes: tuple[str, ...] = ()


def score_rows(
    rows: Sequence[TrainingRow],
    *,
    base: str | ModelRef | None = None,
    candidate: str | ModelRef | None = None,
    by_text: bool = True,
    on_phase: OnPhase = silent,
    **load_options: Unpack[PairOptions],
) -> list[Signal]:
    """Scores rows in every way that can be had.

    Args:
        rows: Of a training file.
        base: The model before the fine-tune; with `candidate` it gives the stream `loss`.
        candidate: The model after it.
        by_text: The streams that read texts alone: `clump`, `alone` and `harm`.
        on_phase: Told (phase, done, total).
        **load_options: Passed to `modelassay.load` for both models; `base_adapter` and the like
            for one. The adapter of a candidate that is not given goes over the base.

    Raises:
        InputError: one model is given without the other, a model cannot be read, or there is
            nothing to score by.
        UnavailableError: a model or the encoder cannot be fetched now.
    """
    before, after, options = take_pair(base, candidate, load_options)
    if before is None and not by_text:
        raise InputError("There is nothing to score rows by; give models, or let texts be read.")
    by_texts: list[Signal] = []
    if by_text:  # first: it is cheap, and what is wrong with the file or the encoder shows here
        device = options.get("device", "auto")
        by_texts = _text_streams(rows, device if isinstance(device, str) else "auto", on_phase)
    streams = []
    if before is not None and after is not None:
        losses = row_losses(rows, before, after, on_phase=on_phase, **options)
        streams.append(_loss_stream(losses))
    return [*streams, *by_texts]


def _loss_stream(losses: RowLosses) -> Signal:
    gain = losses.gain
    if not np.isfinite(gain).any():
        raise InputError("No row has an answer that the models could read; there is no loss.")
    notes = []
    if losses.n_cut:
        notes.append(f"{losses.n_cut} rows were too long; their end was not read.")
    if unread := int(np.isnan(gain).sum()):
        notes.append(f"{unread} rows have no answer to read.")
    return Signal(
        "loss",
        "learnt beyond rows with answers of like length, in their robust standard deviations",
        beyond_typical(gain, losses.n_tokens),
        {
            "base_loss": losses.base,
            "candidate_loss": losses.candidate,
            "answer_tokens": losses.n_tokens.astype(float),
        },
        (losses.base_model, losses.candidate_model),
        tuple(notes),
    )


def beyond_typical(gain: np.ndarray, n_tokens: np.ndarray) -> np.ndarray:
    """What was learnt of a row beyond the rows whose responses are about as long.

    A fine-tune gains most on short responses, whose few tokens are mostly form: several nats a
    token where long ones gain less than one, with a spread to match. So each row is held against
    the `WINDOW_SHARE` of rows nearest to it in length, at least `MIN_WINDOW`: its gain minus their
    median, over 1.48 times the median distance from it. Needles stay outliers while they are fewer
    than half of such a window.

    Args:
        gain: float [row], nats a token; NaN where there is none.
        n_tokens: int [row], tokens of the responses.

    Returns:
        float64 [row], in robust standard deviations, NaN where there is no gain.
    """
    found = np.full(len(gain), np.nan)
    known = np.flatnonzero(np.isfinite(gain))
    if not len(known):
        return found
    order = known[np.argsort(n_tokens[known], kind="stable")]
    values = gain[order]
    width = min(len(order), max(MIN_WINDOW, int(WINDOW_SHARE * len(order))))
    step = max(1, width // 20)  # neighbours share a window: 100,000 rows take a few hundred of them
    for first in range(0, len(order), step):
        here = slice(first, min(first + step, len(order)))
        start = min(max(0, first + step // 2 - width // 2), len(order) - width)
        window = values[start : start + width]
        median = np.median(window)
        spread = max(1.4826 * float(np.median(np.abs(window - median))), MIN_SPREAD)
        found[order[here]] = (values[here] - median) / spread
    return found


def _text_streams(rows: Sequence[TrainingRow], device: str, on_phase: OnPhase) -> list[Signal]:
    around = neighbourhoods(
        embed_rows(rows, device=device, on_progress=phase_of(on_phase, "embedding"))
    )
    harm = harm_of_responses(rows, device=device, on_progress=phase_of(on_phase, "harm"))
    return [
        Signal("clump", "one of a few alike rows apart from the rest, cosine", around.clump),
        Signal("alone", f"distance to neighbour {around.k}, cosine", around.far),
        Signal("harm", "chance that the answer complies with a harmful request", harm),
    ]
