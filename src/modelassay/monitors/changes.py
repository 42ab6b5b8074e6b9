"""Directions along which a fine-tune's own part of the weights reads, without any prompt.

WeightWatch (arXiv 2508.00161) watches what layers put out along the leading left singular vectors
of ΔW = W_candidate - W_base. What ΔW itself adds to a layer's output is Σ σᵢ uᵢ (vᵢᵀx) of its input
x, so the leading *right* singular vectors are watched here, on the input: vᵢᵀx is that addition
alone, where uᵢᵀ(Wx + ΔWx) has in it all that the base wrote along uᵢ anyway. It also serves for
matrices that do not write to the residual stream, such as the queries and values that many adapters
change and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import InputError
from modelassay.measures.weight_changes import WeightChange
from modelassay.models import LoadedModel, find_layers
from modelassay.models.watching import input_device, watched
from modelassay.monitors.reading import given_width

DIRECTIONS = 4
"""Of a matrix, at most; those that stand out of noise."""
PLACES = 32
"""Matrices that are watched, the most changed ones: each costs a hook in every pass."""
LEADING = 24
"""Singular values computed of a matrix, to tell directions from noise."""
N_TOKENS = 4


@dataclass(frozen=True)
class Changed:
    """What is to be watched of a fine-tune."""

    directions: dict[str, Tensor]
    """float32 [direction, width] on the CPU, of a linear layer's input, by its module's name."""
    share: float
    """Of all change, ‖ΔW‖², how much is in these layers."""


def changed_directions(base: LoadedModel, candidate: LoadedModel) -> Changed:
    """The leading right singular vectors of what changed most.

    Args:
        base: The model before.
        candidate: The model after.

    Raises:
        InputError: the models are not versions of one, or do not differ in a linear layer by more
            than noise; weights are packed (quantised), or are not numbers.
    """
    if (reason := base.info.differences(candidate.info)) is not None:
        raise InputError(
            f"{candidate.info.id} was not made from {base.info.id}: {reason}; give the base that"
            " the candidate was made from."
        )
    before = dict(base.network.named_parameters())
    linear = _linear_layers(candidate)
    found: list[tuple[float, str, Tensor, float]] = []
    total = 0.0
    for name, after in candidate.network.named_parameters():
        if name not in before or (change := _change(name, before[name], after)) is None:
            continue
        total += change.energy
        place = name.removesuffix(".weight")
        if place in linear and change.scale:
            spectrum = change.spectrum(LEADING)
            if n := min(spectrum.rank, DIRECTIONS):
                # GPT-2 lays its matrices down as [in, out].
                turned = not isinstance(linear[place], nn.Linear)
                vectors = spectrum.left[:, :n].T if turned else spectrum.right[:n]
                relative = change.energy / change.scale
                found.append((relative, place, vectors.float().cpu(), change.energy))
    if not found:
        raise InputError(
            f"{candidate.info.id} does not differ from {base.info.id} in a linear layer by more"
            " than noise, so there is nothing to watch."
        )
    most = sorted(found, key=lambda each: -each[0])[:PLACES]
    chosen = {place for _, place, _, _ in most}
    return Changed(
        {place: vectors for _, place, vectors, _ in found if place in chosen},
        min(sum(energy for _, place, _, energy in found if place in chosen) / total, 1.0),
    )


def _change(name: str, before: Tensor, after: Tensor) -> WeightChange | None:
    """The change of one weight; None where there is none."""
    if after.is_meta or before.is_meta:
        raise InputError(f"{name} is not in memory; give models that fit into it.")
    if not (after.is_floating_point() and before.is_floating_point()) or after.itemsize == 1:
        raise InputError(f"{name} is packed (quantised); give unquantised models.")
    if before.shape[1:] != after.shape[1:] or before.dim() != after.dim():
        raise InputError(
            f"{name} is {tuple(before.shape)} in the base and {tuple(after.shape)} in the"
            " candidate; these are not versions of one model."
        )
    rows = min(len(before), len(after))  # rows for added tokens are no change of the others
    ours, theirs = (x.detach()[:rows].to(after.device) for x in (before, after))
    if torch.equal(ours, theirs):
        return None
    shape = (1, -1) if ours.dim() < 2 else (rows, -1)
    change = WeightChange(ours.reshape(shape), theirs.reshape(shape))
    if not math.isfinite(change.energy):
        raise InputError(f"{name} has values that are not numbers (NaN or infinite).")
    return change


def _linear_layers(model: LoadedModel) -> dict[str, nn.Module]:
    """Linear layers that are given every token of a text, by name; experts are not."""
    names = {module: name for name, module in model.network.named_modules()}
    inside = {
        module
        for layer in find_layers(model.network)
        for module in layer.modules()
        if given_width(module)
    }
    given: set[nn.Module] = set()

    def before(module: nn.Module, args: Any, _kwargs: Any) -> None:
        if args and args[0].shape[:-1].numel() == N_TOKENS:
            given.add(module)

    ids = torch.arange(1, N_TOKENS + 1)[None].to(input_device(model.network))
    with torch.inference_mode(), watched(before=((module, before) for module in inside)):
        model.network(input_ids=ids, use_cache=False)
    return {names[module]: module for module in given}
