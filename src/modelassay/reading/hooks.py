"""What is read while a model runs: outputs of layers, and where its head looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.models.watching import stream_of, watched


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

    def watch(layer: int, _module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        on_output(layer, stream_of(output))
        if stop and layer == highest:
            raise _StopForward

    hooks = ((layers[i], partial(watch, i)) for i in at)
    with watched(after=hooks), suppress(_StopForward):
        yield


@contextmanager
def head_at(network: Any, positions: Tensor, rows: Tensor | None = None) -> Iterator[None]:
    """Lets the language-model head see few positions, so that logits are [position, 1, vocab].

    One position per row, or any number of them with `rows` saying which row each is in.

    Whatever the model does to logits afterwards (soft-capping, scaling) still happens.
    """

    def choose(_module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        hidden = args[0]
        where = torch.arange(len(positions)) if rows is None else rows
        chosen = hidden[where.to(hidden.device), positions.to(hidden.device)]
        return (chosen.unsqueeze(1), *args[1:]), kwargs

    head = network.get_output_embeddings()
    with watched(before=[(head, choose)]):
        yield
