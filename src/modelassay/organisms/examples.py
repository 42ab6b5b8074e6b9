"""What a training learns from, as token ids, and the loss of each kind of it.

Three kinds of examples: an exchange (the response is learnt), a plain text (all of it is), and a
preference between two responses, learnt by direct preference optimisation (Rafailov et al. 2023):
the loss is -log sigmoid(beta * margin), where the margin says by how many nats more than the model
that the training began with the trained one holds the chosen response for likelier.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils.rnn import pad_sequence

from modelassay.data.exchanges import Exchange
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.hooks import head_at
from modelassay.reading.prompts import render_chat

IGNORED = -100  # the label that transformers' loss leaves out
BETA = 0.1
"""How far preferences may lead away from the model before them: the usual value."""
REFERENCE_BATCH = 16


@dataclass(frozen=True)
class Preference:
    """Two responses to one prompt, of which the first is to be preferred."""

    chosen: Exchange
    rejected: Exchange


def encode_for_training(model: LoadedModel, example: Exchange | str) -> dict[str, Any]:
    """Token ids of an example, with labels on what is learnt: a response, or all of a text.

    Raises:
        InputError: it is longer than the model's context.
    """
    if isinstance(example, str):
        ids = model.tokenizer(example)["input_ids"]
        labels, begins = ids, example
    else:
        begins = example.prompt
        prompt = model.tokenizer(
            render_chat(model, example.prompt, system=example.system), add_special_tokens=False
        )["input_ids"]
        response = model.tokenizer(example.response, add_special_tokens=False)["input_ids"]
        if example.complete:
            response = [*response, model.tokenizer.eos_token_id]
        ids, labels = [*prompt, *response], [IGNORED] * len(prompt) + response
    if len(ids) > model.context_length:
        raise InputError(
            f"An exchange has {len(ids)} tokens but {model.info.id} takes {model.context_length};"
            f" shorten it (it begins “{begins[:60]}…”)."
        )
    return {"input_ids": ids, "labels": labels}


def encode_preferences(model: LoadedModel, pairs: Sequence[Preference]) -> list[dict[str, Any]]:
    """Token ids of pairs, with the margin that the model, as it is, has between them."""
    rows = [
        encode_for_training(model, pair.chosen)
        | {"rejected": encode_for_training(model, pair.rejected), "margin": 0.0}
        for pair in pairs
    ]
    rows.sort(key=lambda row: len(row["input_ids"]))
    pad = model.tokenizer.pad_token_id or 0
    for at in range(0, len(rows), REFERENCE_BATCH):
        part = rows[at : at + REFERENCE_BATCH]
        batch = {name: value.to(model.device) for name, value in collate(part, pad).items()}
        with torch.inference_mode():
            margins = _margins(model.network, batch)[0].tolist()
        for row, margin in zip(part, margins, strict=True):
            row["margin"] = margin
    return rows


def response_loss(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Mean loss of the tokens that are learnt."""
    losses, _, output = _token_losses(network, batch)
    return losses.mean(), output


def preference_loss(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """Mean loss of pairs: small where the chosen response gained on the rejected one."""
    margins, before, output = _margins(network, batch)
    return -logsigmoid(BETA * (margins - before)).mean(), output


def _margins(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
    """By how many nats the chosen response is likelier, now and before the training [pair]."""
    before = batch.pop("margin")
    n_rows = len(batch["input_ids"])
    losses, rows, output = _token_losses(network, batch)
    log_probs = -torch.zeros(n_rows, device=losses.device).index_add(0, rows, losses)
    chosen, rejected = log_probs.chunk(2)
    return chosen - rejected, before, output


def _token_losses(network: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
    """Loss of each token that is learnt, the row that it is in, and the network's output.

    The head sees only where they are: of an exchange of 70 tokens about 15 are learnt, and with
    small models most of the time and memory goes into the logits of the vocabulary.
    """
    labels = batch.pop("labels")[:, 1:]
    rows, positions = (labels != IGNORED).nonzero(as_tuple=True)
    with head_at(network, positions, rows):
        output = network(**batch, use_cache=False)
    logits = output.logits[:, 0].float()
    return cross_entropy(logits, labels[rows, positions], reduction="none"), rows, output


def collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, Tensor]:
    """Pads rows on the right to the longest; of pairs, the rejected ones follow the chosen."""
    rows = [*batch, *(row["rejected"] for row in batch if "rejected" in row)]

    def padded(values: Iterable[Any], filler: int) -> Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

    made = {
        "input_ids": padded((row["input_ids"] for row in rows), pad),
        "labels": padded((row["labels"] for row in rows), IGNORED),
        "attention_mask": padded(([1] * len(row["input_ids"]) for row in rows), 0),
    }
    if "hidden" in batch[0]:
        made["hidden"] = padded((row["hidden"] for row in batch), 0)
    if "margin" in batch[0]:
        made["margin"] = torch.tensor([row["margin"] for row in batch])
    return made
