"""What is changed inside a model while it runs, and undone when it has run.

An edit is a function of a component's values. It stands in for them in passes of the calling thread
and only as long as the context lasts; no weight is changed and nothing is kept, so a model may be
shared. Whatever tries out what a part of a model does comes through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models.components import Component, Components, Site
from modelassay.models.watching import Hook, stream_of, watched

K = TypeVar("K")
Edit = Callable[[Tensor], Tensor]
"""A component's values [batch, token, width] on their device -> what stands in for them."""


@contextmanager
def intervene(components: Components, edits: Mapping[Component, Edit]) -> Iterator[None]:
    """Lets edits stand in for what components make, in passes of the calling thread.

    Args:
        components: Those of the model, as `find_components` gives them, or its layers alone
            (`blocks_of`).
        edits: What is done to which. Heads and other parts of one layer may be edited together.

    Raises:
        InputError: the model has no such component, or an expert is given another edit than `Scale`
            or `zero`.
    """
    before: list[Hook] = []
    after: list[Hook] = []
    for component, edit in edits.items():
        site = components.site(component)
        if site.side == "output":
            after.append((site.module, partial(_edit_output, edit)))
        elif site.side == "input":
            before.append((site.module, partial(_edit_input, edit, site)))
        elif isinstance(edit, Scale):
            before.append((site.module, partial(_rescale_expert, edit, component.index)))
        else:
            raise InputError(f"{component} can only be scaled or set to zero.")
    with watched(before, after):
        yield


@contextmanager
def observe(
    components: Components,
    watch: Sequence[Component],
    on_values: Callable[[Component, Tensor], None],
) -> Iterator[None]:
    """Calls `on_values(component, values)` with what components make, before any edit of it.

    Raises:
        InputError: the model has no such component, or it is an expert, which has no values alone.
    """
    with observe_sites({part: components.site(part) for part in watch}, on_values):
        yield


@contextmanager
def observe_sites(
    sites: Mapping[K, Site], on_values: Callable[[K, Tensor], None]
) -> Iterator[None]:
    """The same of any places in a model, called with each one's key.

    Raises:
        InputError: a place has no values of its own.
    """
    before: list[Hook] = []
    after: list[Hook] = []
    for key, site in sites.items():
        if site.side == "output":
            after.append((site.module, partial(_tell_output, on_values, key)))
        elif site.side == "input":
            before.append((site.module, partial(_tell_input, on_values, key, site)))
        else:
            raise InputError(f"{key} has no values of its own to read.")
    with watched(before, after):
        yield


@dataclass(frozen=True)
class Scale:
    """Values times a number: the one edit that an expert can be given."""

    factor: float

    def __call__(self, values: Tensor) -> Tensor:
        """Scales values."""
        return values * self.factor


def zero() -> Edit:
    """Nothing in their place."""
    return Scale(0.0)


def add(vector: Tensor) -> Edit:
    """Adds a vector [width] to every token's."""
    return lambda values: values + vector.to(values)


def replace_by(others: Tensor) -> Edit:
    """Puts others in their place.

    Args:
        others: What broadcasts to them: [width] for one mean, or [batch, token, width] of another
            run, a patch.
    """
    return lambda values: others.to(values).expand_as(values)


def remove_direction(direction: Tensor, centre: Tensor | None = None) -> Edit:
    """Takes out what lies along a direction.

    Args:
        direction: [width], of any length.
        centre: [width], what it is set to along the direction; None for zero.
    """
    unit = direction / direction.norm().clamp_min(1e-12)

    def removed(values: Tensor) -> Tensor:
        along = unit.to(values)
        moved = values if centre is None else values - centre.to(values)
        return values - (moved @ along)[..., None] * along

    return removed


def set_features(sae: Any, features: Sequence[int], factor: float = 0.0) -> Edit:
    """Scales features of an SAE in what a block writes; what the SAE does not explain stays.

    Args:
        sae: A module of sae-lens, with `encode` and `W_dec`.
        features: Which.
        factor: What their activations are multiplied by: 0 suppresses, more than 1 boosts.
    """
    rows = list(features)

    def changed(values: Tensor) -> Tensor:
        given = values.to(sae.W_dec.dtype).to(sae.W_dec.device)
        active = sae.encode(given)[..., rows] * unit_of_features(sae, given)
        return values + ((factor - 1.0) * active @ decoder_rows(sae)[rows]).to(values)

    return changed


def decoder_rows(sae: Any) -> Tensor:
    """What each feature of a sae-lens SAE writes when it fires with strength one, [width, hidden].

    In units of what it reads: see `unit_of_features`.
    """
    rows = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        return rows / rows.norm(dim=-1, keepdim=True)
    return rows


def unit_of_features(sae: Any, given: Tensor) -> Tensor:
    """The scale on which a sae-lens SAE reads, and writes, each token.

    Args:
        sae: Whose features.
        given: [..., hidden], what it reads.

    Returns:
        [..., 1], the factor from what its decoder writes to the model's own activations.
    """
    scaling = sae.cfg.normalize_activations
    if scaling == "layer_norm":
        return given.std(dim=-1, keepdim=True)
    if scaling == "constant_norm_rescale":
        return given.norm(dim=-1, keepdim=True) / given.shape[-1] ** 0.5
    return torch.ones_like(given[..., :1])


def at_positions(edit: Edit, where: Tensor) -> Edit:
    """An edit of chosen tokens alone.

    Args:
        edit: What is done there.
        where: bool [token] or [batch, token].
    """
    return lambda values: torch.where(where.to(values.device)[..., None], edit(values), values)


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))


def _edit_output(edit: Edit, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
    """A module's output, or the first of several, as an edit makes it."""
    if isinstance(output, tuple | list):
        return type(output)((edit(output[0]), *output[1:]))
    return edit(output)


def _edit_input(
    edit: Edit, site: Site, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    changed = _given(args, kwargs).clone()
    changed[..., site.columns] = edit(changed[..., site.columns])
    if args:
        return (changed, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): changed}


def _rescale_expert(
    edit: Scale, expert: int | None, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Any]:
    """Experts are told which tokens are for whom, and with which weights."""
    given = list(args) + list(kwargs.values())
    chosen = next(x for x in given if isinstance(x, Tensor) and not x.is_floating_point())
    weights = given[next(i for i, x in enumerate(given) if x is chosen) + 1]
    scaled = torch.where(chosen == expert, edit(weights), weights)
    swap = lambda x: scaled if x is weights else x  # noqa: E731
    return tuple(map(swap, args)), {key: swap(x) for key, x in kwargs.items()}


def _tell_output(
    on_values: Callable[[K, Tensor], None],
    key: K,
    _module: Any,
    _args: Any,
    _kwargs: Any,
    output: Any,
) -> None:
    on_values(key, stream_of(output))


def _tell_input(
    on_values: Callable[[K, Tensor], None],
    key: K,
    site: Site,
    _module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    on_values(key, _given(args, kwargs)[..., site.columns])
