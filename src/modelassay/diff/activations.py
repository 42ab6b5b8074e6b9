"""How the residual stream changed, layer by layer, and what the change is about.

On the compared tokens: how large the difference candidate - base is, how much of it is one constant
vector, and how few directions hold it (principal components of the differences). On the first
tokens of texts that have nothing to do with anything: the mean difference there betrays what a
model was fine-tuned on (activation difference lens, Minder et al. 2025); it is read as tokens, by
the logit lens and by a patchscope (Ghandeharioun et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.diff.reading import Reading
from modelassay.models import LoadedModel
from modelassay.models.components import Component, blocks_of
from modelassay.reading.hooks import head_at
from modelassay.reading.interventions import intervene
from modelassay.reading.logit_lens import decode_each, promoted_tokens

COMPONENTS = 3
COMPONENT_TOKENS = 1024
"""Tokens, evenly spread, that the components are taken from: they bound the time."""
UNCHANGED = 1e-6
"""Relative difference below which there is nothing to read as tokens."""
SAME = 1e-4
"""Relative difference that is no more than the order of additions."""
TOP = 10
IDENTITY_PROMPT = ("cat -> cat\n1135 -> 1135\nhello -> hello\n", "?")
"""A patchscope's prompt and its placeholder: the state written there is named by what follows."""


@dataclass(frozen=True)
class LayerChange:
    """How the output of one layer differs on the compared tokens."""

    layer: int
    relative: float
    """Mean over tokens of ‖Δ‖ / ‖base‖."""
    constant_share: float
    """‖mean Δ‖² / mean ‖Δ‖²: 1 where every token moved by the same vector."""
    component_shares: tuple[float, ...]
    """Shares of the variance of Δ in its first principal components."""
    effective_rank: float
    """(Σλ)² / Σλ² of the covariance's eigenvalues λ: how many directions share the variance."""


@dataclass(frozen=True)
class LensReading:
    """The mean difference on the first tokens of unrelated texts, at one layer, as tokens."""

    layer: int
    relative: float
    """‖mean Δ‖ / mean ‖base‖ there."""
    logit_lens: tuple[str, ...]
    patchscope: tuple[str, ...]
    """What the candidate expects after the mean difference stands in for a placeholder."""


@dataclass(frozen=True)
class ActivationDiff:
    """How the residual stream changed."""

    layers: tuple[LayerChange, ...]
    lens: tuple[LensReading, ...]
    n_tokens: int


def compare_activations(base: Reading, candidate: Reading) -> tuple[LayerChange, ...]:
    """How the states of two readings differ, layer by layer."""
    return tuple(
        _layer_change(layer, base.at(layer), candidate.at(layer) - base.at(layer))
        for layer in base.layers
    )


def same_activations(base: Tensor, candidate: Tensor, layers: Sequence[int], alike: int) -> bool:
    """Whether the layers that are said to be alike wrote the same on unrelated texts.

    Args:
        base: [layer, hidden], as `read_unrelated` gives it of the base.
        candidate: The same of the candidate.
        layers: The layers.
        alike: How many first layers have the same weights.
    """
    rows = [i for i, layer in enumerate(layers) if layer < alike]
    difference = (candidate[rows] - base[rows]).norm(dim=-1)
    return bool((difference <= SAME * base[rows].norm(dim=-1)).all())


def read_lens(
    candidate: LoadedModel, base: Tensor, changed: Tensor, layers: Sequence[int]
) -> tuple[LensReading, ...]:
    """Reads the mean differences on unrelated texts as tokens, in the candidate.

    Args:
        candidate: The candidate.
        base: [layer, hidden], as `read_unrelated` gives it of the base.
        changed: The same of the candidate.
        layers: The layers.
    """
    difference = changed - base
    scale = base.norm(dim=-1).clamp_min(1e-12)
    relative = (difference.norm(dim=-1) / scale).tolist()
    lens = promoted_tokens(candidate, difference, TOP)
    found = []
    for i, layer in enumerate(layers):
        named = patched = ()
        if relative[i] > UNCHANGED:
            direction = difference[i] / difference[i].norm().clamp_min(1e-12)
            named, patched = tuple(lens[i]), tuple(_patchscope(candidate, layer, direction))
        found.append(LensReading(layer, relative[i], named, patched))
    return tuple(found)


def _layer_change(layer: int, base: Tensor, difference: Tensor) -> LayerChange:
    size = difference.double().square().sum(dim=-1)
    mean = difference.mean(dim=0)
    centred = (difference - mean)[:: max(len(difference) // COMPONENT_TOKENS, 1)].float()
    # Of the smaller side: the eigenvalues other than zero are the same.
    gram = centred.T @ centred if len(centred) > centred.shape[1] else centred @ centred.T
    values = torch.linalg.eigvalsh(gram.double()).flip(0).clamp_min(0)
    total = float(values.sum())
    return LayerChange(
        layer=layer,
        relative=float((difference.norm(dim=-1) / base.norm(dim=-1).clamp_min(1e-12)).mean()),
        constant_share=float(mean.double().square().sum() / size.mean().clamp_min(1e-30)),
        component_shares=tuple(
            float(value) / total if total > 0 else 0.0 for value in values[:COMPONENTS]
        ),
        effective_rank=float(total**2 / values.square().sum()) if total > 0 else 0.0,
    )


@torch.inference_mode()
def _patchscope(model: LoadedModel, layer: int, direction: Tensor) -> list[str]:
    """Tokens that a model expects after a state in that direction stands at the placeholder."""
    before, placeholder = IDENTITY_PROMPT
    ids = model.tokenizer(before + placeholder, add_special_tokens=True)["input_ids"]
    at = len(ids) - 1

    def instead(hidden: Tensor) -> Tensor:
        written = hidden.clone()
        written[:, at] = direction.to(hidden) * hidden[:, at].norm(dim=-1, keepdim=True)
        return written

    row = torch.tensor([ids], device=model.device)
    edits = {Component(layer, "block"): instead}
    with (
        intervene(blocks_of(model.layers), edits),
        head_at(model.network, torch.tensor([at])),
    ):
        logits = model.network(input_ids=row, use_cache=False).logits[0, 0]
    return decode_each(model, logits.float().topk(TOP).indices.tolist())
