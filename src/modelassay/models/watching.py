"""Hooks on a network's modules that see one thread's passes only and are always removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

Hook = tuple[nn.Module, Callable[..., Any]]
"""A module, and what is called with it, its arguments, its keyword arguments and its output."""


@contextmanager
def watched(before: Iterable[Hook] = (), after: Iterable[Hook] = ()) -> Iterator[None]:
    """Calls hooks as modules run, in passes of the calling thread: a model may be shared.

    Args:
        before: Called before a module runs, without an output. What one gives back, `(args,
            kwargs)`, the module is given.
        after: Called once a module has run. What one gives back stands in for the output.
    """
    owner = threading.get_ident()

    def here(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: hook(*args) if threading.get_ident() == owner else None

    handles: list[RemovableHandle] = []
    try:
        for module, hook in before:
            handles.append(module.register_forward_pre_hook(here(hook), with_kwargs=True))
        for module, hook in after:
            handles.append(module.register_forward_hook(here(hook), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def input_device(network: Any) -> torch.device:
    """Where a network's input ids have to be."""
    embedding = network.get_input_embeddings()
    # accelerate moves inputs of offloaded modules.
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    return embedding.weight.device if device is None else torch.device(device)


def stream_of(output: Any) -> Any:
    """The residual stream in what a layer gives back: itself, or the first of several things."""
    return output[0] if isinstance(output, tuple | list) else output
