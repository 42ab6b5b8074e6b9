"""Passes that begin in the middle of a model, at activations that are known.

Two models that are alike up to a layer write the same activations there, and so does one model
before and after they are changed further up. What lies below need not be computed again.

The model itself is never touched: a pass runs through a copy of the few modules that hold the list
of layers, in which the layers to leave out hand on what is known. All parameters, all other modules
and all hooks are shared with the model.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from modelassay.models import LoadedModel
from modelassay.reading.prompts import Encoded


@dataclass(frozen=True)
class ResumePoint:
    """Activations at which passes over certain prompts can begin."""

    layer: int
    """The layer that wrote them; passes begin above it."""
    activations: dict[tuple[int, ...], Tensor]
    """By token ids: float [token, hidden] of a prompt's last tokens, as many as are known."""

    def covers(self, prompts: Sequence[Encoded], skip: int) -> bool:
        """Whether all tokens of these prompts after the first `skip` are known."""
        return all(
            prompt.ids in self.activations
            and len(self.activations[prompt.ids]) >= len(prompt.ids) - skip
            for prompt in prompts
        )

    def padded(self, prompts: Sequence[Encoded], skip: int) -> Tensor:
        """[prompt, token, hidden], the activations of all tokens after the first `skip`."""
        rows = [self.activations[prompt.ids][-(len(prompt.ids) - skip) :] for prompt in prompts]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


def begin_after(model: LoadedModel, layer: int, hidden: Tensor) -> nn.Module:
    """The model as one whose layers up to `layer` do nothing, the last of them writing `hidden`.

    Args:
        model: It stays as it is, and may be in use elsewhere.
        layer: The last layer that does not run.
        hidden: [batch, token, hidden].
    """
    first = model.layers[0]
    path = next(
        name
        for name, module in model.network.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) > 0 and module[0] is first
    )
    copied = inner = _shallow(model.network)
    for name in path.split("."):
        held = _shallow(inner._modules[name])
        inner._modules[name] = held
        inner = held
    hidden = hidden.to(model.device, model.network.dtype)
    for i, module in enumerate(model.layers[: layer + 1]):
        inner._modules[str(i)] = _handing_on(module, hidden)
    return copied


def _handing_on(module: nn.Module, hidden: Tensor) -> nn.Module:
    """A layer with the same hooks and attributes that writes `hidden` whatever it reads."""
    copied = _shallow(module)

    def forward(*_args: object, **_kwargs: object) -> Tensor:
        return hidden

    copied.forward = forward
    return copied


def _shallow(module: nn.Module | None) -> nn.Module:
    """A copy with a table of modules of its own."""
    assert module is not None  # noqa: S101 (found by its name)
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    return copied
