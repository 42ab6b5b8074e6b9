"""Do the directions that changed make the behaviour that changed? Tried out, not inferred.

A difference direction is the mean of candidate - base over the last tokens of harmful prompts at
one layer. Put into the base there, it ought to make the base behave as the candidate does; taken
out of the candidate, it ought to bring the base's behaviour back. Random directions of the same
length do the same work for comparison: what they do as well, the direction does not explain. All of
it happens in memory, in forward hooks; no weight is changed and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.diff.activations import UNCHANGED
from modelassay.diff.features import Q_LEVEL, SAEDiff
from modelassay.diff.pair import Role
from modelassay.diff.reading import Reading
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import LoadedModel
from modelassay.models.components import Component, blocks_of
from modelassay.reading.activations import read_activations
from modelassay.reading.interventions import add, intervene
from modelassay.reading.prompts import Encoded
from modelassay.reading.resuming import ResumePoint
from modelassay.reading.thinking import thinking_of
from modelassay.sae import SAE

MEAN_CHANGE = "mean change"
TOP_LAYERS = 3
TOP_FEATURES = 2
N_RANDOM = 8
MAX_PROMPTS = 16
SEED = 0


@dataclass(frozen=True)
class Intervention:
    """What became of the refusal log-odds when one direction was put in or taken out."""

    what: Literal["into the base", "out of the candidate"]
    direction: str
    layer: int
    before: float
    """Mean refusal log-odds of the model that is changed, in nats."""
    after: float
    target: float
    """That of the other model: what the intervention would give if it explained all."""
    restored: float | None
    """Share of the difference between the models that it makes; None where there is hardly any."""
    random: tuple[float, ...]
    """The same share for each random direction of equal length."""
    n: int

    @property
    def beyond_chance(self) -> bool | None:
        """Whether it does more than every random direction; None where there is nothing to do."""
        return None if self.restored is None else self.restored > max(self.random)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "beyond_chance": self.beyond_chance}


@dataclass(frozen=True)
class Direction:
    """A vector to be put in or taken out after one layer."""

    name: str
    layer: int
    vector: Tensor
    """[hidden], candidate - base."""


MIN_DIFFERENCE = 0.25
"""Nats between the two models below which there is nothing to explain."""


def try_directions(
    model: LoadedModel,
    role: Role,
    prompts: Sequence[Encoded],
    tried: Sequence[int],
    directions: Sequence[Direction],
    readings: Mapping[Role, Reading],
) -> tuple[Intervention, ...]:
    """Adds directions to a base's residual stream, or takes them out of a candidate's.

    Args:
        model: The model.
        role: Which it is.
        prompts: All prompts that were read, without responses.
        tried: Indices of harmful ones, on which the refusal log-odds are read.
        directions: What to add to every token's state, or to take away.
        readings: Of both models: no layer up to a direction's is run again.
    """
    reading, other = readings[role], readings["candidate" if role == "base" else "base"]
    sign = 1 if role == "base" else -1
    tried = list(tried[:MAX_PROMPTS])
    asked = [prompts[i] for i in tried]
    start, goal = (float(each.log_odds[tried].double().mean()) for each in (reading, other))
    to_explain = abs(goal - start) >= MIN_DIFFERENCE
    rng = np.random.default_rng(SEED)
    found = []
    for direction in directions:
        vectors = [direction.vector]
        for _ in range(N_RANDOM if to_explain else 0):
            draw = torch.from_numpy(rng.standard_normal(len(direction.vector))).float()
            vectors.append(draw / draw.norm() * direction.vector.norm())
        resume = reading.resume_point(direction.layer, responses=False)
        after = [float(_log_odds(model, asked, resume, sign * vector).mean()) for vector in vectors]
        shares = [(each - start) / (goal - start) for each in after] if to_explain else [None]
        found.append(
            Intervention(
                what="into the base" if role == "base" else "out of the candidate",
                direction=direction.name,
                layer=direction.layer,
                before=start,
                after=after[0],
                target=goal,
                restored=shares[0],
                random=tuple(share for share in shares[1:] if share is not None),
                n=len(tried),
            )
        )
    return tuple(found)


def difference_directions(
    before: Reading,
    after: Reading,
    prompts: Sequence[int],
    features: Sequence[SAEDiff],
    saes: Sequence[SAE],
) -> tuple[Direction, ...]:
    """The directions to try: the mean change where it is largest, and the features that moved most.

    Args:
        before: The base's reading.
        after: The candidate's.
        prompts: Indices of the prompts that the mean is taken over, at their last token.
        features: Feature changes, each SAE's most moving ones first.
        saes: The SAEs of `features`, in the same order.
    """
    rows = before.matched.last_prompt_tokens()[list(prompts)]
    means = {
        layer: (after.at(layer)[rows] - before.at(layer)[rows]).mean(dim=0)
        for layer in before.layers
    }
    scale = {layer: float(before.at(layer)[rows].norm(dim=1).mean()) for layer in means}
    relative = {layer: float(means[layer].norm()) / scale[layer] for layer in means}
    changed = [layer for layer in means if relative[layer] > UNCHANGED]
    order = sorted(changed, key=lambda layer: -relative[layer])
    found = [Direction(MEAN_CHANGE, layer, means[layer]) for layer in sorted(order[:TOP_LAYERS])]
    for changes, sae in zip(features, saes, strict=True):
        significant = [c for c in changes.features if c.q_value < Q_LEVEL and c.part == "prompt"]
        for change in significant[:TOP_FEATURES]:
            row = sae.module.W_dec[change.feature].detach().float().cpu()
            at = _mean_activation_change(before, after, sae, change.feature, rows)
            found.append(Direction(f"feature {change.feature}", sae.layer, row * at))
    return tuple(d for d in found if float(d.vector.norm()) > 0)


@torch.inference_mode()
def _mean_activation_change(
    before: Reading, after: Reading, sae: SAE, feature: int, rows: Tensor
) -> float:
    module = sae.module

    def mean(reading: Reading) -> float:
        activations = reading.at(sae.layer)[rows].to(module.device)
        return float(module.encode(activations)[:, feature].mean())

    return mean(after) - mean(before)


def _log_odds(
    model: LoadedModel, prompts: Sequence[Encoded], resume: ResumePoint, vector: Tensor
) -> Tensor:
    readout = log_odds_readout(opening_tokens(model, thinking_of(model)))
    # The layer that hands on the known states is still the one whose output is moved.
    edits = {Component(resume.layer, "block"): add(vector)}
    with intervene(blocks_of(model.layers), edits):
        read = read_activations(model, prompts, [resume.layer], readout=readout, resume=resume)
    assert read.readout is not None  # noqa: S101 (one was asked for)
    return read.readout[:, 0].double()
