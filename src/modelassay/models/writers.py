"""Which matrices write to the residual stream, found out by running the model.

Attention and MLP outputs, experts and state-space mixers write to the stream: directional ablation
changes these matrices, and the forensics look for it there. Their names differ from family to
family, so no name decides. One layer of each structure is run again on what it was given for a few
tokens, and three questions are asked:

1. *Does it write?* A candidate is a matrix whose slices along one axis each move one coordinate of
   its module's output. All candidates are silenced (they put out zeros) and one is let to put out
   something: if the layer's output moves, nothing lies between the candidate and the stream but
   norms and scales. Queries, keys and gates that happen to be square move nothing.
2. *Are these all?* With all writers silenced a layer hands each coordinate of its input on to the
   same coordinate. If not, something else writes, and the answer is "not certain".
3. *Which kind?* With only this writer let through, a change of the first token moves later ones
   (attention, or whatever mixes tokens in its place) or it doesn't (MLP, experts).
"""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modelassay.errors import first_line
from modelassay.models.layers import find_layers, text_config
from modelassay.models.quantization import is_turned
from modelassay.models.watching import input_device, watched

Kind = Literal["attention", "mlp"]
OUTPUTS: dict[Kind, str] = {"attention": "attention outputs", "mlp": "MLP outputs"}
"""What the writers of a kind are called in words."""
N_TOKENS = 6
MOVED = 1e-5
"""Relative to the largest number, what rounding never makes of a float32 that is computed twice."""
MIXED = 1e-3
"""Of what a writer adds must change with another token. Attention changes by a tenth and more, an
MLP by nothing but the rounding of 8-bit arithmetic, whose scales span tokens."""
ELSEWHERE = 1e-8
"""Of a change's square, what may reach other coordinates past the writers: rounding."""
BLIND = 0.05
"""Relative change of a normalised stream when the stream is doubled: what the norm's epsilon
makes."""
SPECIAL_ID = re.compile(r"_token_(id|index)s?$")


@dataclass(frozen=True)
class Writer:
    """One matrix, or stack of experts' matrices, that writes to the residual stream."""

    name: str
    """As `named_parameters` of the network has it."""
    layer: int
    axis: int
    """Along which the residual stream lies, in the checkpoint's layout."""
    kind: Kind
    """`attention` for all that mixes tokens, state-space mixers too, else `mlp`."""
    dims: int = 2
    """Of the parameter: 3 for a stack of experts."""

    def rows(self, weight: Tensor) -> Tensor:
        """This parameter, or one expert of it, as a matrix [hidden, columns].

        Args:
            weight: The parameter as it is loaded, or as a file has one of its experts.
        """
        axis = self.axis - max(self.dims - weight.dim(), 0)
        return weight.movedim(axis, 0).reshape(weight.shape[axis], -1)


@dataclass(frozen=True)
class Writers:
    """All writers of a network, layer by layer."""

    found: tuple[Writer, ...]
    unsure: str | None = None
    """Why they are not certain, in words; None where they are."""

    @cached_property
    def by_name(self) -> Mapping[str, Writer]:
        """Writers by their parameter's name."""
        return {writer.name: writer for writer in self.found}


class _NotSureError(Exception):
    """A layer does something that the three questions don't cover."""


def find_writers(network: Any) -> Writers:
    """Finds the matrices of a causal or image-text language model that write to its stream.

    Costs a pass of a few tokens up to the first layer of each structure, and some passes through
    each of these layers. Nothing of the model is changed, and it may be shared between threads.

    Args:
        network: A transformers model, PEFT-wrapped or not.

    Returns:
        The writers of every layer; or none, and why: a layer that does not run on text, several
        streams side by side, or a way of writing that is not known.
    """
    layers = find_layers(network)
    hidden = text_config(network.config).hidden_size
    built = [_structure(layer) for layer in layers]
    was_training = network.training
    network.eval()
    try:
        if any(hasattr(m, "get_base_layer") for layer in layers for m in layer.modules()):
            raise _NotSureError("an adapter lies over its weights and is not merged into them")
        with torch.inference_mode():
            calls = _record_calls(network, layers, built)
            found = {
                key: _examine(_Layer(layers[i], call, hidden)) for key, (i, call) in calls.items()
            }
        if unseen := [i for i, key in enumerate(built) if key not in found]:
            raise _NotSureError(f"layer {unseen[0]} does not run on text alone")
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a layer of any design, or of the repository's own code
        why = str(error) if isinstance(error, _NotSureError) else first_line(error)
        name = type(network).__name__
        return Writers((), f"what writes to the residual stream of {name} is not certain: {why}")
    finally:
        if was_training:
            network.train()
    names = {parameter: name for name, parameter in network.named_parameters()}
    return Writers(
        tuple(
            # A parameter that several places share has one name.
            replace(writer, name=names[layer.get_parameter(writer.name)], layer=i)
            for i, layer in enumerate(layers)
            for writer in found[built[i]]
        )
    )


_Structure = tuple[Any, ...]


def _structure(layer: nn.Module) -> _Structure:
    """What two layers share that are built alike."""
    return tuple(
        (
            name,
            type(module).__name__,
            tuple((key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False)),
            tuple(sorted(k for k, v in vars(module).items() if v is True and k != "training")),
        )
        for name, module in layer.named_modules()
    )


@dataclass(frozen=True)
class _Call:
    """What a module was given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Done(Exception):  # noqa: N818 (control flow, not an error)
    """Every structure has been seen."""


def _record_calls(
    network: Any, layers: Sequence[nn.Module], shapes: Sequence[_Structure]
) -> dict[_Structure, tuple[int, _Call]]:
    """Runs a few tokens; what the first layer of each structure is given."""
    calls: dict[_Structure, tuple[int, _Call]] = {}
    wanted = set(shapes)

    def before(i: int, args: Any, kwargs: Any) -> None:
        if wanted <= calls.keys():
            raise _Done
        calls.setdefault(shapes[i], (i, _Call(args, kwargs)))

    hooks = (
        (layer, lambda _m, args, kwargs, i=i: before(i, args, kwargs))
        for i, layer in enumerate(layers)
    )
    try:
        with watched(before=hooks):
            network(input_ids=_input_ids(network), use_cache=False)
    except _Done:
        pass
    return calls


def _input_ids(network: Any) -> Tensor:
    """A few different ids, none of them special: [1, token] on the device of the embeddings."""
    config = network.config
    special = {
        value
        for part in (config, text_config(config))
        for key, value in part.to_dict().items()
        if SPECIAL_ID.search(key) and isinstance(value, int)
    }
    vocabulary = text_config(config).vocab_size
    step = max(vocabulary // (4 * N_TOKENS), 1)
    ids = [i for i in range(step, vocabulary, step) if i not in special][:N_TOKENS]
    return torch.tensor([ids], device=input_device(network))


@dataclass(frozen=True)
class _Candidate:
    """Modules of one place (all experts of a list are one) and the matrix that each writes by."""

    modules: tuple[nn.Module, ...]
    parameters: tuple[tuple[str, int, int], ...]
    """Name inside the layer, axis and dimensions."""


class _Layer:
    """A layer that can be run again, with other words put into its matrices' mouths."""

    def __init__(self, module: nn.Module, call: _Call, hidden: int) -> None:
        self.module = module
        self._call = call
        given = (*enumerate(call.args), *call.kwargs.items())
        streams = [(key, x) for key, x in given if isinstance(x, Tensor) and x.dim() == 3]
        if not streams or streams[0][1].shape[-1] != hidden:
            raise _NotSureError("its layers are given something else than one stream")
        self._where, self.stream = streams[0]
        noise = torch.randn(hidden, generator=torch.Generator().manual_seed(0))
        size = max(1.0, float(self.stream.float().square().mean().sqrt()))
        self.noise = (size * noise).to(self.stream)

    def run(
        self,
        says: Mapping[_Candidate, Tensor | None],
        stream: Tensor | None = None,
        listen: Mapping[nn.Module, Callable[..., None]] | None = None,
    ) -> Tensor:
        """The layer's output, [1, token, hidden].

        Args:
            says: What some candidates put out for every token, [hidden]; None for zeros.
            stream: What the layer is given; None for what it was given.
            listen: Called with what modules are given and put out.
        """
        hooks = {m: partial(_replaced, says[each]) for each in says for m in each.modules}
        # Some layers change their input in place.
        stream = (self.stream if stream is None else stream).clone()
        args, kwargs = list(self._call.args), dict(self._call.kwargs)
        if isinstance(self._where, str):
            kwargs[self._where] = stream
        else:
            args[self._where] = stream
        with watched(after={**(listen or {}), **hooks}.items()):
            output = _first(self.module(*args, **kwargs))
        if output is None or output.shape != self.stream.shape:
            raise _NotSureError("its layers hand on something else than one stream")
        return output.to(self.noise.device).float()


def _replaced(put: Tensor | None, _module: Any, _args: Any, _kwargs: Any, output: Any) -> Any:
    first = _first(output)
    # In memory of its own, because some layers add one output to another in place.
    new = torch.zeros_like(first)
    if put is not None:
        new += put.to(first)
    return (new, *output[1:]) if isinstance(output, tuple) else new


def _examine(layer: _Layer) -> list[Writer]:
    """Asks the three questions of one layer; the writers' names are those inside it."""
    candidates, whole = _candidates(layer)
    silent: dict[_Candidate, Tensor | None] = dict.fromkeys(candidates)
    still = layer.run(silent)
    least = MOVED * max(float(still.abs().max()), float(whole.abs().max()))
    writers = [
        each
        for each in candidates
        if float((layer.run({**silent, each: layer.noise}) - still).abs().max()) > least
    ]
    if not writers:
        raise _NotSureError("none of its matrices was seen to write")
    silent = dict.fromkeys(writers)
    _check_all(layer, silent)
    found = []
    for each in writers:
        kind = _kind(layer, each, silent)
        found += [Writer(name, 0, axis, kind, dims) for name, axis, dims in each.parameters]
    return found


def _check_all(layer: _Layer, silent: Mapping[_Candidate, Tensor | None]) -> None:
    """Whether a layer whose writers are silenced hands each coordinate on to itself alone."""
    at = len(layer.noise) // 2
    other = layer.stream.clone()
    # No more than what is there, so that a norm over the stream moves the others only a little.
    other[..., at] += layer.stream.float().square().mean().sqrt().to(other)
    still = layer.run(silent)
    change = (layer.run(silent, other) - still).square().sum(dim=(0, 1))
    itself = float(change[at])
    change[at] = 0
    rest = float(change.sum())
    if rest < ELSEWHERE * itself:
        return
    # What else may move the others is a norm over the stream, which is blind to its scale.
    scaled = layer.run(silent, 2 * layer.stream)
    if not (rest < itself and _size(scaled - still) < BLIND * _size(still)):
        raise _NotSureError("something writes that is none of its matrices")


def _kind(layer: _Layer, writer: _Candidate, silent: Mapping[_Candidate, Tensor | None]) -> Kind:
    """Whether what a writer adds to later tokens depends on the first one."""
    others = {each: put for each, put in silent.items() if each is not writer}
    other = layer.stream.clone()
    other[:, 0] = layer.noise

    def added(stream: Tensor) -> Tensor:
        own: list[Tensor] = []

        def hear(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            own.append(_first(output).flatten(0, -2).float())

        listen = dict.fromkeys(writer.modules, hear)
        whole = layer.run(others, stream, listen)
        if len(own) == 1 and len(own[0]) == stream.shape[1]:
            return own[0][1:]  # itself, because a convolution may follow
        return (whole - layer.run(silent, stream))[0, 1:]

    before = added(layer.stream)
    return "attention" if _size(added(other) - before) > MIXED * _size(before) else "mlp"


def _size(values: Tensor) -> float:
    return float(values.float().square().mean().sqrt())


def _owns_matrix(module: nn.Module) -> bool:
    own = list(module.parameters(recurse=False))
    return isinstance(module, nn.Linear) or any(p.dim() >= 2 for p in own)


def _candidates(layer: _Layer) -> tuple[list[_Candidate], Tensor]:
    """Matrices of which each slice along an axis writes one coordinate of a module's output.

    Returns:
        The candidates, and the layer's output as it is.
    """
    seen: _Seen = {}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if module not in seen and (first := _first(output)) is not None:
            seen[module] = (_Call(args, kwargs), first.clone())

    names = {module: name for name, module in layer.module.named_modules() if name}
    whole = layer.run({}, listen=dict.fromkeys(names, record))
    places: dict[str, list[nn.Module]] = {}
    for module, name in names.items():
        places.setdefault(_place(layer.module, name), []).append(module)
    found = []
    for members in places.values():
        ran = next((module for module in members if module in seen), None)
        if ran is None or not _owns_matrix(ran):
            continue
        # Outwards from the module that owns the matrix: some leave it to the next to use it.
        parts = names[ran].split(".")
        paths = [
            (layer.module.get_submodule(".".join(parts[:n])), parts[n:])
            for n in range(len(parts), 0, -1)
        ]
        for speaker, own in _writing_parameters(ran, paths, seen, len(layer.noise)).items():
            parameters = tuple(
                (f"{names[member]}.{key}", axis, dims)
                for key, axis, dims in own
                for member in members
            )
            # Experts that were not chosen this time may be when something is changed.
            found.append(_Candidate(tuple(members) if speaker is ran else (speaker,), parameters))
    return found, whole


_Seen = dict[nn.Module, tuple[_Call, Tensor]]
"""What modules were given, and put out."""


def _place(layer: nn.Module, name: str) -> str:
    """A module's name with a star for the number of an expert: of a list of modules alike."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        parent = layer.get_submodule(".".join(name.split(".")[:i])) if i else layer
        if part.isdigit() and isinstance(parent, nn.ModuleList) and len(parent) > 1:
            alike = {_structure(child) for child in parent}
            parts[i] = "*" if len(alike) == 1 else part
    return ".".join(parts)


def _writing_parameters(
    module: nn.Module, paths: Sequence[tuple[nn.Module, list[str]]], seen: _Seen, hidden: int
) -> dict[nn.Module, list[tuple[str, int, int]]]:
    """Name, axis and dimensions of a module's parameters, by the module whose output they write.

    Args:
        module: It owns the parameters.
        paths: Modules from itself outwards, with the way back to it.
        seen: What modules were given.
        hidden: Width of the stream.
    """
    if isinstance(module, nn.Linear):  # packed ones too
        axis = 1 if is_turned(module) else 0
        return {module: [("weight", axis, 2)]} if seen[module][1].shape[-1] == hidden else {}
    own = dict(module.named_parameters(recurse=False))
    most = max(p.dim() for p in own.values())
    found: dict[nn.Module, list[tuple[str, int, int]]] = {}
    for name, parameter in own.items():
        # Beside a stack of matrices, what has one dimension less is a stack of biases.
        if parameter.dim() < 2 or parameter.dim() < most or not parameter.is_floating_point():
            continue
        for axis in (a for a, size in enumerate(parameter.shape) if size == hidden):
            for speaker, path in paths:
                if speaker not in seen or seen[speaker][1].shape[-1] != hidden:
                    break
                moved = _moved_by_slice(speaker, path, name, axis, *seen[speaker])
                if not moved.any():
                    continue  # it is used further out
                at = hidden // 2
                there = float(moved[at])
                moved[at] = 0
                if float(moved.max()) < 1e-2 * there:
                    found.setdefault(speaker, []).append((name, axis, parameter.dim()))
                break
    return found


def _moved_by_slice(
    module: nn.Module, path: Sequence[str], name: str, axis: int, call: _Call, output: Tensor
) -> Tensor:
    """How far each coordinate of a module's output moves with one slice of a parameter, [hidden].

    Args:
        module: The module.
        path: Names from it down to the owner of the parameter.
        name: Of the parameter.
        axis: Along which the middle slice is changed.
        call: What the module is given.
        output: What it puts out.
    """
    owner = module.get_submodule(".".join(path))
    changed = owner.get_parameter(name).detach().clone()
    part = changed.select(axis, output.shape[-1] // 2)
    draw = torch.randn(part.shape, generator=torch.Generator().manual_seed(1)).to(part)
    part += draw * max(float(changed.float().std()), 1e-3)

    def twin(module: nn.Module, path: Sequence[str]) -> nn.Module:
        """The module with the changed parameter; the model itself stays as it is."""
        made = copy.copy(module)
        made._forward_hooks = OrderedDict()
        if "_old_forward" in vars(made):  # accelerate's, which is bound to the other one
            del vars(made)["forward"]
        if path:
            first, *rest = path
            made._modules = {**module._modules, first: twin(module.get_submodule(first), rest)}
        else:
            made._parameters = {
                **module._parameters,
                name: nn.Parameter(changed, requires_grad=False),
            }
        return made

    moved = _first(twin(module, path)(*call.args, **call.kwargs)) - output
    moved = moved.abs().flatten(0, -2).amax(dim=0).float()
    return moved * (moved > MOVED * float(output.abs().max()))


def _first(output: Any) -> Any:
    """The first tensor of an output."""
    if isinstance(output, (tuple, list)):
        output = next((each for each in output if isinstance(each, Tensor)), None)
    return output if isinstance(output, Tensor) and output.dim() >= 2 else None
