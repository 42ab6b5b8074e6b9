"""Where a model holds that a request is harmful, and where that it will refuse: two directions.

Models tell harm from harmlessness at the last token of what the user says, and settle on a refusal
at the tokens of the template that follow it, in directions of their own (Zhao et al. 2025,
arXiv:2507.11878). So harm is read at the end of the message, off harmful requests against harmless
ones, borderline ones among them; and refusal at the end of the prompt, off requests that the model
would refuse against those that it would answer. Harm is read below the layer of refusal, where it
cannot be the refusal itself.

A direction is the difference of means over every second pair, at the layer that separates those
best in cross-validation. The other pairs give its scale: 0 is where harmless prompts lie on
average, 1 where harmful ones do. Harmful requests differ in topic from harmless ones, too; how far
the harm direction tells twins in nearly the same words apart stands beside it.
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
        """Whether it separates the groups beyond chance, and so well that one reading says enough.

        Where the average of the positive group lies among the negative ones, a high reading is
        mostly noise, which falls by itself.
        """
        return self.interval[0] > 0.5 and self.limit < 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values, without the vector."""
        return {key: value for key, value in vars(self).items() if key != "vector"}


@dataclass(frozen=True)
class SafetyDirections:
    """Both directions of a model, and where its template follows what the user says."""

    harm: Direction
    refusal: Direction
    twins: float
    """AUROC of the harm direction on pairs in nearly the same words, which set nothing."""
    twins_interval: tuple[float, float]
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
    way = thinking_of(model)
    groups = [_spread([x for x in texts if x not in unread]) for texts in refusal_prompts()]
    prompts = encode_prompts(model, [text for group in groups for text in group], thinking=way)
    read = read_activations(
        model,
        prompts,
        layers,
        readout=log_odds_readout(opening_tokens(model, way)),
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "refusal direction"),
    )
    assert read.readout is not None  # noqa: S101 (one was asked for)
    refused = read.readout[:, 0] > 0
    by_label = FEWEST <= int(refused.sum()) <= len(prompts) - FEWEST
    if not by_label:
        refused = torch.arange(len(prompts)) < len(groups[0])
    refusal = _fit_groups("refusal", read.values[refused], read.values[~refused], layers)

    def at_message_end(of: Sequence[Encoded], below: Sequence[int]) -> Tensor:
        # Under a causal mask a prompt that is cut there reads the same up to there.
        cut = [up_to(prompt, tail) for prompt in of]
        report = phase_of(on_progress, "harm direction")
        read = read_activations(model, cut, below, batch_tokens=batch_tokens, on_progress=report)
        return read.values

    below = layers[: max(refusal.layer, 1)]
    states = at_message_end(prompts, below)
    n = len(groups[0])
    harm = _fit_groups("harm", states[:n], states[n:], below)
    pairs = feature_types()[HARM_RECOGNITION].pairs
    twins = encode_prompts(
        model, [x for pair in pairs for x in (pair.positive, pair.negative)], thinking=way
    )
    scores = harm.read(at_message_end(twins, (harm.layer,))[:, 0])
    return SafetyDirections(
        harm,
        refusal,
        twins=float(auroc(scores[::2], scores[1::2])),
        twins_interval=bootstrap_interval(scores[::2], scores[1::2], auroc),
        tail=tail,
        by_label=by_label,
    )


def _fit_groups(name: str, yes: Tensor, no: Tensor, layers: Sequence[int]) -> Direction:
    """Of two groups of different sizes, as many of each."""
    n = min(len(yes), len(no))
    return fit_direction(name, spread(yes, n), spread(no, n), layers)


def _spread(texts: Sequence[str]) -> list[str]:
    """At most so many, evenly over them: borderline requests come after the everyday ones."""
    n = min(len(texts), MOST)
    return [texts[i * len(texts) // n] for i in range(n)]


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
