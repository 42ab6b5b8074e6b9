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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import InputError
from modelassay.measures.weight_changes import WeightChange
from modelassay.models import LoadedModel, find_layers
from modelassay.models.watching import input_device, watched
from modelassay.monitors.reading import given_width

DIRECTIONS = 8
"""Of an input, at most; those that stand out of noise."""
PLACES = 24
"""Inputs that are watched, those whose readers changed most: each costs a hook in every pass, some
25 µs on a CPU."""
LEADING = 24
"""Singular values computed of a change, to tell directions from noise."""
N_TOKENS = 4


@dataclass(frozen=True)
class Changed:
    """What is to be watched of a fine-tune."""

    directions: dict[str, Tensor]
    """float32 [direction, width] on the CPU, of a linear layer's input, by its module's name. Where
    several layers are given the same, as queries, keys and values are, the first one stands for
    all."""
    share: float
    """Of all change, ‖ΔW‖², how much is in these layers."""


@dataclass(frozen=True)
class _Found:
    place: str
    vectors: Tensor
    energy: float
    relative: float


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
    before, after = (dict(model.network.named_parameters()) for model in (base, candidate))
    rest = [name for name in after if name in before]
    found: list[_Found] = []
    total = 0.0
    for places in _inputs(candidate):
        names = [f"{place}.weight" for place in places if f"{place}.weight" in rest]
        rest = [name for name in rest if name not in names]
        # GPT-2 lays its matrices down as [in, out].
        turned = not isinstance(candidate.network.get_submodule(places[0]), nn.Linear)
        if not names or (change := _change(names, before, after, turned)) is None:
            continue
        total += change.energy
        spectrum = change.spectrum(LEADING)
        if n := min(spectrum.rank, DIRECTIONS):
            vectors = spectrum.right[:n].float().cpu()
            relative = change.energy / max(change.scale, 1e-30)
            found.append(_Found(places[0], vectors, change.energy, relative))
    for name in rest:
        change = _change([name], before, after)
        total += 0.0 if change is None else change.energy
    if not found:
        raise InputError(
            f"{candidate.info.id} does not differ from {base.info.id} in a linear layer by more"
            " than noise, so there is nothing to watch."
        )
    most = sorted(found, key=lambda each: -each.relative)[:PLACES]
    chosen = [each for each in found if each in most]
    return Changed(
        {each.place: each.vectors for each in chosen},
        min(sum(each.energy for each in chosen) / total, 1.0),
    )


def _change(
    names: Sequence[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    turned: bool = False,
) -> WeightChange | None:
    """The change of weights that read the same, as one matrix [out, in]; None where there is none.

    Args:
        names: Of the weights.
        before: By name.
        after: By name.
        turned: Whether they are laid down as [in, out].
    """
    pairs = [_pair(name, before[name], after[name]) for name in names]
    if all(torch.equal(ours, theirs) for ours, theirs in pairs):
        return None
    ours, theirs = ([pair[i].T if turned else pair[i] for pair in pairs] for i in (0, 1))
    if len(pairs) == 1:
        change = WeightChange(ours[0], theirs[0])
    else:
        change = WeightChange(torch.cat(ours), torch.cat(theirs))
    if not math.isfinite(change.energy):
        raise InputError(f"{names[0]} has values that are not numbers (NaN or infinite).")
    return change


def _pair(name: str, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
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
    shape = (1, -1) if ours.dim() < 2 else (rows, -1)
    return ours.reshape(shape), theirs.reshape(shape)


def _inputs(model: LoadedModel) -> list[tuple[str, ...]]:
    """Linear layers by what they are given, those that are given every token; experts are not."""
    inside = {module: name for name, module in model.network.named_modules() if given_width(module)}
    layers = {each for layer in find_layers(model.network) for each in layer.modules()}
    given: dict[int, tuple[Tensor, list[str]]] = {}  # the tensor is kept, or its id would be free

    def before(module: nn.Module, args: Any, _kwargs: Any) -> None:
        if args and args[0].shape[:-1].numel() == N_TOKENS:
            given.setdefault(id(args[0]), (args[0], []))[1].append(inside[module])

    ids = torch.arange(1, N_TOKENS + 1)[None].to(input_device(model.network))
    hooks = [(module, before) for module in inside if module in layers]
    with torch.inference_mode(), watched(before=hooks):
        model.network(input_ids=ids, use_cache=False)
    return [tuple(names) for _, names in given.values()]
