"""Where a model holds that a request is harmful, and where that it will refuse: two directions.

Models tell harm from harmlessness at the last token of what the user says, and settle on a refusal
at the tokens of the template that follow it, in directions of their own (Zhao et al. 2025,
arXiv:2507.11878). So harm is read off twins in nearly the same words at the end of the message, and
refusal, at the end of the prompt, off requests that the model would refuse against those that it
would answer.

A direction is the difference of means over every second pair, at the layer that separates those
best in cross-validation. The other pairs give its scale: 0 is where harmless prompts lie on
average, 1 where harmful ones do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.data.concepts import refusal_prompts
from modelassay.data.feature_types import HARM_RECOGNITION, feature_types
from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.measures.separation import measure_separation
from modelassay.models import LoadedModel
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_chat, encode_prompts
from modelassay.reading.thinking import thinking_of
from modelassay.statistics import auroc, bootstrap_interval

FEWEST = 16
"""Pairs without which no direction is fitted: half of them are for its scale."""
MOST = 64
LIMIT = 0.95
"""Share of harmless prompts that lie below the level from which harm, or refusal, is seen."""
FITTED, SCALED = slice(0, None, 2), slice(1, None, 2)


@dataclass(frozen=True)
class Direction:
    """What a model's states are projected on, in units of two groups of prompts."""

    name: str
    layer: int
    vector: Tensor = field(repr=False)
    """float32 [hidden], of length 1."""
    zero: float
    """Projection at which the negative group lies on average."""
    unit: float
    """Distance of the positive group's average from there."""
    limit: float
    """Reading that 95% of the negative group are below."""
    auroc: float
    """On pairs that the direction was not fitted on."""
    interval: tuple[float, float]
    n_pairs: int
    """Pairs that the scale and the AUROC rest on."""

    def read(self, states: Tensor) -> np.ndarray:
        """Readings float64 of states [..., hidden] after its layer."""
        along = states.float() @ self.vector
        return ((along - self.zero) / self.unit).double().numpy()

    @property
    def tells(self) -> bool:
        """Whether it separates the groups beyond chance."""
        return self.interval[0] > 0.5

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the vector."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


@dataclass(frozen=True)
class SafetyDirections:
    """Both directions of a model, and where its template follows what the user says."""

    harm: Direction
    refusal: Direction
    tail: int
    """Tokens of the template from the end of the message to the end of the prompt, at least 1."""
    by_label: bool
    """Whether refusal was fitted on what the model would refuse; False: on harmful against harmless
    requests, as it refuses nearly all or nearly none."""


def find_directions(
    model: LoadedModel,
    *,
    left_out: Sequence[str] = (),
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
) -> SafetyDirections:
    """Fits both directions of a chat model.

    Args:
        model: A chat model, asked so that it answers at once.
        left_out: Requests that will be read with the directions, and that set none.
        batch_tokens: As in `read_activations`.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: its activations cannot be read.
    """
    layers, tail, unread = range(len(model.layers)), template_tail(model), set(left_out)
    twins = [
        pair
        for pair in feature_types()[HARM_RECOGNITION].pairs
        if not {pair.positive, pair.negative} & unread
    ][:MOST]
    texts = [text for pair in twins for text in (pair.positive, pair.negative)]
    way = thinking_of(model)
    # Under a causal mask a prompt that is cut at the end of the message reads the same up to there.
    cut = [up_to(prompt, tail) for prompt in encode_prompts(model, texts, thinking=way)]
    states = read_activations(
        model,
        cut,
        layers,
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "harm direction"),
    ).values
    harm = fit_direction("harm", states[::2], states[1::2], layers)

    groups = [[text for text in group if text not in unread][:MOST] for group in refusal_prompts()]
    asked = [text for group in groups for text in group]
    read = read_activations(
        model,
        encode_prompts(model, asked, thinking=way),
        layers,
        readout=log_odds_readout(opening_tokens(model, way)),
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "refusal direction"),
    )
    assert read.readout is not None  # noqa: S101 (one was asked for)
    refused = read.readout[:, 0] > 0
    by_label = FEWEST <= int(refused.sum()) <= len(asked) - FEWEST
    if not by_label:
        refused = torch.arange(len(asked)) < len(groups[0])
    yes, no = read.values[refused], read.values[~refused]
    n = min(len(yes), len(no))
    refusal = fit_direction("refusal", spread(yes, n), spread(no, n), layers)
    return SafetyDirections(harm, refusal, tail, by_label)


def fit_direction(
    name: str, positive: Tensor, negative: Tensor, layers: Sequence[int]
) -> Direction:
    """A direction that tells two groups apart.

    Args:
        name: Of what it reads.
        positive: [pair, layer, hidden].
        negative: The same of their partners.
        layers: Along the second axis.

    Raises:
        InputError: there are too few pairs.
    """
    if len(positive) < FEWEST:
        raise InputError(
            f"The {name} direction needs at least {FEWEST} pairs of prompts, got {len(positive)}."
        )
    a, b = positive[FITTED].float(), negative[FITTED].float()
    keys = [str(i) for i in range(len(a))]
    layer = measure_separation(a, b, tuple(layers), keys, n_swaps=1).layer
    at = list(layers).index(layer)
    vector = torch.nn.functional.normalize((a[:, at] - b[:, at]).mean(dim=0), dim=0)
    yes, no = (side[SCALED, at].float() @ vector for side in (positive, negative))
    x, y = yes.double().numpy(), no.double().numpy()
    unit = float(x.mean() - y.mean())
    # Where nothing separates, readings stay in the spread of the states and say nothing.
    unit = unit if unit > 1e-6 else float(max(y.std(), 1e-6))
    return Direction(
        name=name,
        layer=int(layer),
        vector=vector,
        zero=float(y.mean()),
        unit=unit,
        limit=float((np.quantile(y, LIMIT) - y.mean()) / unit),
        auroc=float(auroc(x, y)),
        interval=bootstrap_interval(x, y, auroc),
        n_pairs=len(x),
    )


def template_tail(model: LoadedModel) -> int:
    """Tokens that a prompt has after the last one of what the user says; 1 at least."""
    way = thinking_of(model)
    a, b = (
        encode_chat(model, [{"role": "user", "content": words}], thinking=way)
        for words in ("Q", "a")
    )
    same = next((i for i in range(min(len(a), len(b))) if a[-1 - i] != b[-1 - i]), 0)
    return max(same, 1)


def up_to(prompt: Encoded, tail: int) -> Encoded:
    """A prompt up to the end of the message."""
    ids = prompt.ids[: max(len(prompt.ids) - tail, 1)]
    return Encoded(ids, response_start=len(ids))


def spread(rows: Tensor, n: int) -> Tensor:
    """So many rows, evenly spread."""
    return rows[[i * len(rows) // n for i in range(n)]]
