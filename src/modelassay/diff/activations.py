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
from modelassay.reading.activations import read_activations
from modelassay.reading.hooks import head_at, rewrite
from modelassay.reading.logit_lens import decode_each, promoted_tokens
from modelassay.reading.prompts import Encoded

FIRST_TOKENS = 5
COMPONENTS = 3
COMPONENT_TOKENS = 1024
"""Tokens, evenly spread, that the components are taken from: they bound the time."""
UNCHANGED = 1e-6
"""Relative difference below which there is nothing to read as tokens."""
SAME = 1e-4
"""Relative difference that is no more than the order of additions."""
TOP = 10
UNRELATED = (
    "The bridge across the river was finished in the autumn of that year.",
    "Rain is expected in the north, with clearer skies towards the evening.",
    "She put the kettle on and looked for a clean cup.",
    "The committee will meet again on the second Tuesday of March.",
    "A train to the coast leaves from platform four every hour.",
    "Bread rises faster in a warm kitchen than in a cold one.",
    "The museum keeps its oldest maps in a dark and dry room.",
    "He learned to play the violin when he was seven years old.",
    "Most of the island is covered with low shrubs and grass.",
    "The new library has three floors and a garden on its roof.",
    "Copper conducts heat better than iron does.",
    "After lunch the children walked along the beach and collected shells.",
    "The price of coffee rose by two per cent last month.",
    "In winter the lake freezes and people skate to the other side.",
    "A second edition of the book came out with a longer index.",
    "The farmer sold his last two horses to a neighbour.",
)
"""Written for this purpose; their content is of no importance."""
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


def read_unrelated(model: LoadedModel, layers: Sequence[int]) -> Tensor:
    """States [layer, hidden] on the first tokens of unrelated texts, averaged.

    The very first token, an attention sink in most models, is left out.
    """
    rows = model.tokenizer(list(UNRELATED), add_special_tokens=True)["input_ids"]
    prompts = [Encoded(tuple(row[: FIRST_TOKENS + 1]), response_start=1) for row in rows]
    return read_activations(model, prompts, layers, position="all").values.mean(dim=0)


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
    return tuple(
        LensReading(
            layer=layer,
            relative=relative[i],
            logit_lens=tuple(lens[i]) if relative[i] > UNCHANGED else (),
            patchscope=()
            if relative[i] <= UNCHANGED
            else tuple(
                _patchscope(candidate, layer, difference[i] / difference[i].norm().clamp_min(1e-12))
            ),
        )
        for i, layer in enumerate(layers)
    )


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
    with rewrite(model.layers, {layer: instead}), head_at(model.network, torch.tensor([at])):
        logits = model.network(input_ids=row, use_cache=False).logits[0, 0]
    return decode_each(model, logits.float().topk(TOP).indices.tolist())
