"""The layers that a model runs, held against what the names in its class promise.

Names say where a family keeps its layers. Whether they are a residual stream that can be read is
seen in one short pass over two rows of tokens: each layer gets what the layer below it wrote, one
vector a token, and no token sees what follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import InputError, UnavailableError
from modelassay.models.explain import first_line, is_out_of_memory
from modelassay.models.layers import find_layers, text_config
from modelassay.models.watching import input_device, stream_of, watched

PROBE_TEXT = "The sky is blue."
PROBE_TOKENS = 8
# Largest relative change of earlier tokens, when a later one changes, that counts as rounding.
CAUSAL_TOLERANCE = {torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.05


@dataclass
class _Pass:
    """What the layers got and wrote in one forward pass."""

    order: list[int] = field(default_factory=list)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)


def find_stack(network: Any, tokenizer: Any) -> tuple[nn.Module, ...]:
    """The layers of a language model, checked by running it.

    Returns:
        For each layer the module whose output is the residual stream after it. A layer that does
        not run on text (cross-attention to images) leaves the stream as it is, so that its module
        is that of the layer below.

    Raises:
        InputError: names the model's class and says why its layers cannot be read.
        UnavailableError: the memory does not hold a pass over a few tokens.
    """
    layers = find_layers(network)
    seen = _run(network, layers, _probe_ids(tokenizer))
    name = type(getattr(network, "get_base_model", lambda: network)()).__name__
    if len(set(seen.order)) < len(seen.order):
        raise InputError(
            f"{name} runs the same layers several times for each token, so that a layer has no one"
            " output; modelassay reads models that run each layer once."
        )
    if not seen.order or seen.order[0] != 0 or seen.order != sorted(seen.order):
        raise InputError(
            f"{name} does not run its layers in their order (first: {seen.order[:4]}); modelassay"
            " reads models that run them from first to last."
        )
    hidden_size = text_config(network.config).hidden_size
    for i in seen.order:
        _check_shape(name, i, hidden_size, seen)
    for below, above in zip(seen.order, seen.order[1:], strict=False):
        if not _same(seen.outputs[below], seen.inputs[above]):
            raise InputError(
                f"Layer {above} of {name} does not read what layer {below} wrote: the model keeps"
                " another stream beside its layers; modelassay reads models with one."
            )
    _check_causal(network, name, seen)
    carriers: list[nn.Module] = []
    for i, layer in enumerate(layers):
        carriers.append(layer if i in seen.outputs else carriers[-1])
    return tuple(carriers)


def _probe_ids(tokenizer: Any) -> Tensor:
    """Two rows of plain text that differ in the last token [2, token]."""
    ids = list(tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"])[:PROBE_TOKENS]
    if len(ids) < 2:
        ids = [1, 2, 3, 4]
    return torch.tensor([ids, [*ids[:-1], ids[0]]])


def _run(network: Any, layers: tuple[nn.Module, ...], ids: Tensor) -> _Pass:
    seen = _Pass()

    def before(i: int, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.order.append(i)
        given = args[0] if args else kwargs.get("hidden_states", next(iter(kwargs.values()), None))
        if isinstance(given, Tensor):
            seen.inputs[i] = given

    def after(i: int, _module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
        seen.outputs[i] = stream_of(output)

    hooks_before = ((layer, partial(before, i)) for i, layer in enumerate(layers))
    hooks_after = ((layer, partial(after, i)) for i, layer in enumerate(layers))
    try:
        with torch.inference_mode(), watched(hooks_before, hooks_after):
            network(input_ids=ids.to(input_device(network)), use_cache=False)
    except Exception as error:  # the code of any family, or of a repository
        if is_out_of_memory(error):
            raise UnavailableError(
                "The model fits into memory, but not a pass over a few tokens beside it; try"
                " --load-4bit or --dtype bfloat16."
            ) from error
        raise InputError(
            f"{type(network).__name__} does not run on text alone:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error
    return seen


def _check_shape(name: str, layer: int, hidden_size: int, seen: _Pass) -> None:
    """Refuses what is not one vector for each token."""
    output, given = seen.outputs.get(layer), seen.inputs.get(layer)
    if not isinstance(output, Tensor) or given is None:
        raise InputError(
            f"Layer {layer} of {name} gives back no tensor; modelassay reads models whose layers"
            " write hidden states."
        )
    if output.dim() != 3 or output.shape[-1] != hidden_size:
        raise InputError(
            f"{name} keeps several residual streams side by side (a layer writes"
            f" a tensor of shape {list(output.shape)} where its config says hidden"
            f" size {hidden_size}); modelassay reads models with one stream."
        )


def _same(a: Tensor, b: Tensor) -> bool:
    a, b = a.float().cpu(), b.float().cpu()
    return a.shape == b.shape and torch.allclose(a, b, equal_nan=True)


def _check_causal(network: Any, name: str, seen: _Pass) -> None:
    """Refuses a model in which a token sees what follows it."""
    packed = getattr(network, "is_quantized", False)
    tolerance = LOW_PRECISION_TOLERANCE
    if not packed:
        tolerance = CAUSAL_TOLERANCE.get(network.dtype, tolerance)
    for output in seen.outputs.values():
        first, second = output[:, :-1].float()
        change = (first - second).norm(dim=-1) / first.norm(dim=-1).clamp_min(1e-12)
        if bool((change > tolerance).any()):
            raise InputError(
                f"In {name} a token sees what follows it (the whole prompt is read at once, or"
                " answers are made by diffusion); modelassay reads models that read from left to"
                " right."
            )
