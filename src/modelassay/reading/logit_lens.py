"""From residual-stream activations to next-token logits, by the model's own final layers.

What follows the last layer differs between families (norms, soft-capping, scales), so nothing of it
is written out again here: the activations take the place of what the last layer writes in a pass
over a single token, and the model does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from modelassay.models import LoadedModel
from modelassay.models.components import Component, blocks_of
from modelassay.reading.interventions import intervene

ROWS_AT_ONCE = 512
"""Rows of logits in memory together; a vocabulary of 150,000 makes 300 MB of them."""


@torch.inference_mode()
def unembed(model: LoadedModel, activations: Tensor) -> Iterator[Tensor]:
    """Next-token logits of activations after the last layer.

    Args:
        model: Whose final norm and output layer are used.
        activations: [row, hidden], outputs of the last layer. Those of other layers, or directions,
            give the logit lens (nostalgebraist 2020).

    Yields:
        float32 logits [part, vocabulary] on the model's device, part after part, in order.
    """
    last = len(model.layers) - 1
    begin = model.tokenizer.bos_token_id or 0
    ids = torch.full((1, 1), int(begin), dtype=torch.long, device=model.device)
    for part in activations.split(ROWS_AT_ONCE):

        def instead(hidden: Tensor, part: Tensor = part) -> Tensor:
            return part.to(hidden)[None]

        with intervene(blocks_of(model.layers), {Component(last, "block"): instead}):
            logits = model.network(input_ids=ids, use_cache=False).logits
        # GPT-2 folds what it is given into the shape of its input; the rows stay in order.
        yield logits.flatten(0, 1).float()


def promoted_tokens(model: LoadedModel, directions: Tensor, top: int = 10) -> list[list[str]]:
    """The tokens that directions in the residual stream speak for most, by the logit lens.

    Args:
        model: The model.
        directions: [direction, hidden]; only where they point matters where the final norm is an
            RMS norm.
        top: Tokens for each.
    """
    found: list[list[str]] = []
    for logits in unembed(model, directions):
        found += [decode_each(model, row) for row in logits.topk(top, dim=-1).indices.tolist()]
    return found


def decode_each(model: LoadedModel, ids: Sequence[int]) -> list[str]:
    """Each token as text of its own."""
    return [model.tokenizer.decode([token]) for token in ids]
