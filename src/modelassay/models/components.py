"""The parts of a model that one can look at and change: blocks, attention, MLPs, heads, experts.

Names of modules differ from family to family, so no name decides. Attention and MLP are where the
matrices are that write to the residual stream (`modelassay.models.writers`); one short pass tells
which module puts out what they write, a norm after it included. A head is a slice of what the
attention's writer is given, an expert a share in what the router sends on.

What a family lacks is not there: a layer that mixes tokens by other means than heads has no heads,
one without a router no experts. Where a model cannot be taken apart with certainty its blocks are
left.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from modelassay.errors import InputError
from modelassay.models.layers import find_layers, resolve_layers, text_config
from modelassay.models.watching import input_device, stream_of, watched
from modelassay.models.writers import Kind, find_writers

Part = Literal["block", "attention", "mlp", "head", "expert"]
PARTS: tuple[Part, ...] = get_args(Part)
NUMBERED = ("head", "expert")
"""Parts that a layer has several of, as a rule."""
_NAME = re.compile(r"(-?\d{1,4})\.([a-z]+)(?:\.(\d{1,5}))?")
N_TOKENS = 4
SUMS_UP = 1e-3
"""Of what a layer adds, what its parts may miss together: rounding."""


@dataclass(frozen=True, order=True)
class Component:
    """One part of one layer, such as `12.attention` or `12.head.3`."""

    layer: int
    part: Part
    index: int | None = None
    """Which head or expert; of attention or MLP only where a layer has several."""

    def __str__(self) -> str:
        """The name that `parse_component` reads."""
        end = "" if self.index is None else f".{self.index}"
        return f"{self.layer}.{self.part}{end}"


def parse_component(name: str) -> Component:
    """Reads the name of a component; a layer may be counted from the end, as in `-1.mlp`.

    `Components.resolve` tells which one that is in a model.

    Raises:
        InputError: it is none.
    """
    found = _NAME.fullmatch(name.strip())
    part: Part | None = next((p for p in PARTS if found and p == found[2]), None)
    if found is None or part is None or (found[3] is None and part in NUMBERED):
        raise InputError(
            f"{name[:60]!r} names no component; write 12.block, 12.attention, 12.mlp, 12.head.3 or"
            " 12.expert.5, with layers counted from 0 (or -1.mlp, from the end)."
        )
    return Component(int(found[1]), part, None if found[3] is None else int(found[3]))


@dataclass(frozen=True)
class Site:
    """Where a component's values pass through a model."""

    module: nn.Module
    side: Literal["output", "input", "routing"] = "output"
    """What holds them: what the module puts out, what it is given, or what a router sends it."""
    width: int = 0
    """Numbers a token."""
    first: int = 0
    """Where they begin on the last axis."""

    @property
    def columns(self) -> slice:
        """Of the last axis."""
        return slice(self.first, self.first + self.width)


@dataclass(frozen=True)
class Components:
    """What a model can be taken apart into."""

    sites: Mapping[Component, Site]
    n_layers: int
    unsure: str | None = None
    """Why only blocks are there; None where the model could be taken apart."""
    adds_up: bool = False
    """Whether what attention and MLPs put out is, summed, what each layer adds to the stream."""
    given: Mapping[Component, Site] = field(default_factory=dict)
    """Of each MLP that is alone in its layer: where what it is given passes through, as wide as the
    stream and behind any norm."""

    def of(self, *parts: Part) -> tuple[Component, ...]:
        """All components of these parts, by layer."""
        return tuple(sorted(component for component in self.sites if component.part in parts))

    def resolve(self, component: Component) -> Component:
        """The same component with its layer counted from 0.

        Raises:
            InputError: the model has no such layer.
        """
        try:
            return replace(component, layer=resolve_layers([component.layer], self.n_layers)[0])
        except InputError as error:
            raise InputError(f"There is no component {component}. {error}") from error

    def site(self, component: Component) -> Site:
        """Where a component is.

        Raises:
            InputError: the model has no such component.
        """
        component = self.resolve(component)
        if (found := self.sites.get(component)) is not None:
            return found
        if self.unsure and component.part != "block":
            raise InputError(f"There is no component {component} to find: {self.unsure}.")
        there = sorted(c for c in self.sites if c.layer == component.layer)
        kinds = list(dict.fromkeys(c.part for c in there))
        n = sum(c.part == component.part for c in there)
        raise InputError(
            f"There is no component {component}: layer {component.layer} has"
            f" {', '.join(kinds)}" + (f", and {n} of that kind." if n else ".")
        )


def blocks_of(layers: Sequence[nn.Module]) -> Components:
    """A model's layers alone, for which no pass is needed."""
    sites = {Component(i, "block"): Site(layer) for i, layer in enumerate(layers)}
    return Components(sites, len(layers))


def find_components(network: Any) -> Components:
    """Takes a causal or image-text language model apart; a few short passes, nothing is changed.

    Args:
        network: A transformers model, PEFT-wrapped or not.
    """
    layers = find_layers(network)
    hidden = text_config(network.config).hidden_size
    sites = {Component(i, "block"): Site(layer, width=hidden) for i, layer in enumerate(layers)}
    writers = find_writers(network)
    if writers.unsure:
        return Components(sites, len(layers), writers.unsure)
    seen = _watch(network, layers)
    modules = dict(network.named_modules())
    names = {module: name for name, module in modules.items()}
    given: dict[Component, Site] = {}
    adds_up = True
    for i, layer in enumerate(layers):
        if layer not in seen:  # it does not run on text
            continue
        found: dict[Kind, list[nn.Module]] = {}
        for kind in ("attention", "mlp"):
            owners = [
                modules[w.name.rpartition(".")[0]]
                for w in writers.found
                if w.layer == i and w.kind == kind
            ]
            found[kind] = _speakers(owners, layer, names, modules, seen, hidden)
            if kind == "attention" and len(owners) == 1:
                sites.update(_heads(i, owners[0], seen, network))
        if len(found["mlp"]) == 1:
            whole = _whole(found["mlp"][0], layer, names, modules, seen, hidden)
            if whole is not None:
                given[Component(i, "mlp")] = Site(whole, "input", hidden)
        sums, found = _with_norms(layer, found, seen)
        adds_up &= sums
        for kind, speakers in found.items():
            for k, module in enumerate(speakers):
                index = k if len(speakers) > 1 else None
                sites[Component(i, kind, index)] = Site(module, width=hidden)
        sites.update(_experts(i, layer))
    return Components(sites, len(layers), adds_up=adds_up, given=given)


@dataclass
class _Seen:
    """What a module was given and put out, in one pass."""

    given: Tensor | None
    put_out: Tensor | None


def _watch(network: Any, layers: tuple[nn.Module, ...]) -> dict[nn.Module, _Seen]:
    seen: dict[nn.Module, _Seen] = {}

    def after(module: nn.Module, _m: Any, args: Any, kwargs: Any, output: Any) -> None:
        given = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
        out = stream_of(output)
        seen[module] = _Seen(*(x.clone() if isinstance(x, Tensor) else None for x in (given, out)))

    hooks = [(m, partial(after, m)) for layer in layers for m in layer.modules()]
    vocabulary = text_config(network.config).vocab_size
    ids = torch.arange(1, N_TOKENS + 1)[None] * max(vocabulary // (2 * N_TOKENS), 1)
    with torch.inference_mode(), watched(after=hooks):
        network(input_ids=ids.to(input_device(network)), use_cache=False)
    return seen


def _is_stream(values: Tensor | None, hidden: int) -> bool:
    return values is not None and tuple(values.shape) == (1, N_TOKENS, hidden)


def _speakers(
    owners: list[nn.Module],
    layer: nn.Module,
    names: Mapping[nn.Module, str],
    modules: Mapping[str, nn.Module],
    seen: Mapping[nn.Module, _Seen],
    hidden: int,
) -> list[nn.Module]:
    """The modules, within a layer, that put out what the owners of writing matrices write."""
    inside, chosen = names[layer] + ".", []
    for owner in owners:
        name = names[owner]
        while name.startswith(inside):
            module = modules[name]
            if module in seen and _is_stream(seen[module].put_out, hidden):
                chosen.append(name)
                break
            name = name.rpartition(".")[0]
    outer = [n for n in chosen if not any(n.startswith(other + ".") for other in chosen)]
    return [modules[name] for name in dict.fromkeys(outer)]


def _whole(
    speaker: nn.Module,
    layer: nn.Module,
    names: Mapping[nn.Module, str],
    modules: Mapping[str, nn.Module],
    seen: Mapping[nn.Module, _Seen],
    hidden: int,
) -> nn.Module | None:
    """The module around a speaker that is given a stream and puts out what the speaker does."""
    inside, name, said = names[layer] + ".", names[speaker], seen[speaker].put_out
    while name.startswith(inside):
        each = seen.get(modules[name])
        if (
            each is not None
            and _is_stream(each.given, hidden)
            and each.put_out is not None
            and said is not None
            and torch.equal(each.put_out, said)
        ):
            return modules[name]
        name = name.rpartition(".")[0]
    return None


def _with_norms(
    layer: nn.Module,
    found: Mapping[Kind, list[nn.Module]],
    seen: Mapping[nn.Module, _Seen],
) -> tuple[bool, dict[Kind, list[nn.Module]]]:
    """The same, behind a norm that comes between a part and the stream.

    Returns:
        Whether what these put out is, summed, what the layer adds; and them.
    """
    whole = seen[layer]
    assert whole.given is not None and whole.put_out is not None  # noqa: PT018, S101 (it ran)
    added = whole.put_out - whole.given
    parts: dict[Kind, list[nn.Module]] = {kind: list(each) for kind, each in found.items()}
    if _adds_up(parts, added, seen):
        return True, parts
    inside = list(layer.modules())

    def behind(speaker: nn.Module) -> nn.Module:
        put_out = seen[speaker].put_out
        for module in inside:
            each = seen.get(module)
            if (
                each is not None
                and module is not speaker
                and not any(module is child for child in speaker.modules())
                and each.given is not None
                and each.put_out is not None
                and put_out is not None
                and each.given.shape == put_out.shape == each.put_out.shape
                and torch.equal(each.given, put_out)
            ):
                return module
        return speaker

    normed: dict[Kind, list[nn.Module]] = {
        kind: [behind(each) for each in speakers] for kind, speakers in parts.items()
    }
    return (True, normed) if _adds_up(normed, added, seen) else (False, parts)


def _adds_up(
    parts: Mapping[Any, list[nn.Module]], added: Tensor, seen: Mapping[nn.Module, _Seen]
) -> bool:
    total = torch.zeros_like(added)
    for speaker in (module for speakers in parts.values() for module in speakers):
        put_out = seen[speaker].put_out
        total += 0 if put_out is None else put_out
    return float((total - added).norm()) <= SUMS_UP * float(added.norm())


def _heads(
    layer: int, writer: nn.Module, seen: Mapping[nn.Module, _Seen], network: Any
) -> dict[Component, Site]:
    """The slices of what the attention's writer is given; none where they are not its heads."""
    config = text_config(network.config)
    n = getattr(config, "num_attention_heads", None)
    if not isinstance(n, int) or writer not in seen or (given := seen[writer].given) is None:
        return {}
    width = given.shape[-1] // n
    known = {
        getattr(config, "v_head_dim", None),
        getattr(config, "head_dim", None) or config.hidden_size // n,
    }
    if given.shape[-1] % n or width not in known or given.dim() != 3:
        return {}
    return {Component(layer, "head", k): Site(writer, "input", width, k * width) for k in range(n)}


def _experts(layer: int, block: nn.Module) -> dict[Component, Site]:
    """Experts that one module holds together, which is told by whom each token is for."""
    for module in block.modules():
        n = getattr(module, "num_experts", None)
        stacked = any(p.dim() == 3 for p in module.parameters(recurse=False))
        if isinstance(n, int) and stacked:
            return {Component(layer, "expert", k): Site(module, "routing") for k in range(n)}
    return {}
