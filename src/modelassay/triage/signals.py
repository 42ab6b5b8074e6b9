"""Streams: ways in which a row can stand out, each a score that is high for suspicious rows.

* Loss: how much more of a row the candidate has learnt than of rows with responses of like length.

Three read texts alone, without the models that were trained on them:

* Alone: how far a row is from its neighbours in the space of the MiniLM sentence encoder.
* Clump: how much closer a row's few nearest neighbours are than those a little further out. Poison
  is seldom one row: it takes several that say the same, and they lie together apart from the rest.
* Harm: how likely the embedded exchange classifier holds it that the response complies with a
  harmful request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from typing_extensions import Unpack

from modelassay.classifier.model import UNSAFE, load_classifier, load_encoder
from modelassay.errors import InputError
from modelassay.models import ModelIdentity, ModelRef, PairOptions
from modelassay.models.embedded import ensure_encoder
from modelassay.models.loading import pick_device
from modelassay.models.refs import take_pair
from modelassay.progress import OnPhase, OnProgress, phase_of, silent
from modelassay.report.text import counted
from modelassay.triage.loss import RowLosses, row_losses
from modelassay.triage.rows import TrainingRow

WINDOW_SHARE = 0.05
MIN_WINDOW = 40
MIN_SPREAD = 0.02
"""Nats a token: rows from one template would otherwise differ by many deviations of nothing."""
MAX_TOKENS = 256
"""What the encoder was made for; the rest of a row is not read."""
BATCH = 32
CHUNK = 256  # rows between two signs of life
MIN_ROWS = 10
NEAR = 3
WORKING_MEMORY = 128  # MB, of the distances that are held at a time


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
        raise InputError("No row has a response that the models could read; there is no loss.")
    notes = []
    if losses.n_cut:
        notes.append(f"{counted(losses.n_cut, 'row')} too long to be read to the end.")
    if unread := int(np.isnan(gain).sum()):
        notes.append(f"{counted(unread, 'row')} without a response to read.")
    return Signal(
        "loss",
        "learnt beyond rows with responses of like length, in their robust standard deviations",
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
        Signal("harm", "chance that the response complies with a harmful request", harm),
    ]


def embed_rows(
    rows: Sequence[TrainingRow], *, device: str = "auto", on_progress: OnProgress | None = None
) -> np.ndarray:
    """Embeddings of prompt and response together, float32 [row, 384] of length 1.

    Args:
        rows: What to embed; the first `MAX_TOKENS` tokens of each are read.
        device: auto, cpu, cuda or cuda:N.
        on_progress: Told (different rows done, different rows in all).

    Raises:
        UnavailableError: the encoder cannot be fetched.
    """
    texts = [row.plain or f"{row.prompt}\n{row.response}" for row in rows]
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # alike lengths pad least
    encoder, tokenizer = load_encoder(ensure_encoder())
    where = pick_device(device)
    encoder.to(where).eval()
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(distinct), BATCH):
            inputs = tokenizer(
                distinct[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(where)
            hidden = encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # the pooling it was trained with
            found.append(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
            if on_progress:
                on_progress(min(start + BATCH, len(distinct)), len(distinct))
    index = {text: i for i, text in enumerate(distinct)}
    return np.concatenate(found)[[index[text] for text in texts]]


@dataclass(frozen=True)
class Neighbourhoods:
    """Cosine distances, 0 … 2, of every row to its neighbours; equal rows count as one."""

    near: np.ndarray
    """float64 [row], to the `NEAR`-th nearest different row."""
    far: np.ndarray
    """float64 [row], to the k-th, k = √n of n different rows: how alone a row is."""
    k: int

    @property
    def clump(self) -> np.ndarray:
        """float64 [row], `far - near`: large in a group of more than `NEAR` and fewer than k."""
        return self.far - self.near


def neighbourhoods(embeddings: np.ndarray) -> Neighbourhoods:
    """Distances of rows to those around them.

    Args:
        embeddings: float [row, width] of length 1.

    Raises:
        InputError: fewer than `MIN_ROWS` different rows.
    """
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    distinct, inverse = np.unique(embeddings.round(5), axis=0, return_inverse=True)
    n = len(distinct)
    if n < MIN_ROWS:
        raise InputError(
            f"Rows that stand out are looked for among {MIN_ROWS} different ones or more; there"
            f" are {n}."
        )
    k = min(max(NEAR + 1, int(np.ceil(np.sqrt(n)))), n - 1)
    with config_context(working_memory=WORKING_MEMORY):
        nearest = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(distinct)
        lengths, _ = nearest.kneighbors(distinct)  # the first one is the row itself
    distances = (lengths.astype(np.float64) ** 2 / 2)[inverse.ravel()]
    return Neighbourhoods(distances[:, NEAR], distances[:, k], k)


def harm_of_responses(
    rows: Sequence[TrainingRow], *, device: str = "auto", on_progress: OnProgress | None = None
) -> np.ndarray:
    """P(the response complies with a harmful request) by the embedded exchange classifier.

    Args:
        rows: What to judge; plain text is judged as a response to nothing.
        device: auto, cpu, cuda or cuda:N.
        on_progress: Told (rows done, rows in all).

    Returns:
        float64 [row], 0 … 1, NaN for rows without a response.

    Raises:
        UnavailableError: the encoder cannot be fetched.
    """
    classifier = load_classifier(device=device)
    answered = [i for i, row in enumerate(rows) if row.response or row.plain]
    found = np.full(len(rows), np.nan)
    for start in range(0, len(answered), CHUNK):
        part = answered[start : start + CHUNK]
        pairs = [(rows[i].prompt, rows[i].response or rows[i].plain) for i in part]
        found[part] = classifier.predict(pairs, whole=True)[:, UNSAFE]
        if on_progress:
            on_progress(start + len(part), len(answered))
    return found
