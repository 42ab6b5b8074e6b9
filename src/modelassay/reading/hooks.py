"""Hooks on a model's modules that see one thread's passes only and are always removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from modelassay.models.stack import stream_of


class _StopForward(Exception):  # noqa: N818 (control flow, not an error)
    """Leaves the forward pass after the last layer that is needed."""


@contextmanager
def capture(
    layers: Sequence[nn.Module],
    at: Sequence[int],
    on_output: Callable[[int, Tensor], None],
    *,
    stop: bool = False,
) -> Iterator[None]:
    """Calls `on_output(layer, hidden)` as each asked layer finishes; hooks are always removed.

    Only forward passes of the calling thread are seen, so that a model may be shared.

    Args:
        layers: The model's decoder layers.
        at: Which of them to watch.
        on_output: Gets the layer's output [batch, token, hidden], on its device.
        stop: End the forward pass after the highest of `at`.
    """
    highest = max(at)

    def watch(layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        on_output(layer, stream_of(output))
        if stop and layer == highest:
            raise _StopForward

    hooks = (layers[i].register_forward_hook(_in_this_thread(partial(watch, i))) for i in at)
    with _held(hooks), suppress(_StopForward):
        yield


@contextmanager
def rewrite(
    layers: Sequence[nn.Module], edits: Mapping[int, Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """Lets `edits[layer](hidden)` stand in for what those layers write; hooks are always removed.

    Only forward passes of the calling thread are changed, so that a model may be shared.

    Args:
        layers: The model's decoder layers.
        edits: Layer index to a function of its output [batch, token, hidden], on its device.
    """

    def change(layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return type(output)((edits[layer](output[0]), *output[1:]))
        return edits[layer](output)

    hooks = (layers[i].register_forward_hook(_in_this_thread(partial(change, i))) for i in edits)
    with _held(hooks):
        yield


@contextmanager
def head_at(network: Any, positions: Tensor, rows: Tensor | None = None) -> Iterator[None]:
    """Lets the language-model head see few positions, so that logits are [position, 1, vocab].

    One position per row, or any number of them with `rows` saying which row each is in.

    Whatever the model does to logits afterwards (soft-capping, scaling) still happens.
    """

    def choose(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        where = torch.arange(len(positions)) if rows is None else rows
        chosen = hidden[where.to(hidden.device), positions.to(hidden.device)]
        return (chosen.unsqueeze(1), *args[1:])

    head = network.get_output_embeddings()
    with _held([head.register_forward_pre_hook(_in_this_thread(choose))]):
        yield


def _in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook, doing nothing in passes of other threads."""
    owner = threading.get_ident()
    return lambda *args: hook(*args) if threading.get_ident() == owner else None


@contextmanager
def _held(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks, whatever happens meanwhile."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
