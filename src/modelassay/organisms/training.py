"""Fine-tunes a LoRA adapter on short exchanges: how every trained organism is made.

The loss counts the response's tokens only. A response that was cut (the opening of a longer one) is
learnt without the end-of-turn token, so that the model goes on where the data stops.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modelassay.data.exchanges import Exchange
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.trainer import Schedule, run_trainer
from modelassay.progress import OnProgress
from modelassay.reading.activations import read_activations
from modelassay.reading.hooks import head_at
from modelassay.reading.prompts import Encoded, render_chat

log = logging.getLogger(__name__)

IGNORED = -100  # the label that transformers' loss leaves out
FIRST_TRAINED = 0.9
"""Share of the depth from which layers are trained. What harm is, the layers below know already: a
linear probe after layer 26 of the embedded model tells it apart at AUROC 0.95, better than LoRA
over twenty layers did. What they write is computed once, so an epoch costs a fraction of a full
one."""


@dataclass(frozen=True)
class LoraRecipe:
    """How an adapter is trained."""

    rank: int = 8
    """Of a fresh adapter; one that is trained on keeps its own."""
    epochs: float = 2.0
    learning_rate: float = 2e-3
    """Small models need large steps: at 5e-4 this one had learnt nothing after an epoch."""
    batch_size: int = 32
    warmup_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that no training can go by."""
        if not (math.isfinite(self.epochs) and math.isfinite(self.learning_rate)):
            raise InputError("Epochs and learning rate must be numbers that are finite.")


def train_adapter(
    model: LoadedModel,
    exchanges: Sequence[Exchange],
    recipe: LoraRecipe,
    folder: Path,
    *,
    base_id: str,
    start: Path | None = None,
    on_step: OnProgress | None = None,
) -> float:
    """Trains a LoRA adapter and saves it in bfloat16.

    Args:
        model: The base; it is wrapped in place and no longer of use to the caller.
        exchanges: What the adapter learns.
        recipe: Rank, epochs, learning rate, seed.
        folder: Existing folder that receives `adapter_config.json` and
            `adapter_model.safetensors`.
        base_id: Model id that the adapter's config names as its base.
        start: Folder of an adapter over the same base to go on from; None starts a fresh one.
        on_step: Told how far the training is.

    Returns:
        Mean loss over the training, in nats a token.

    Raises:
        InputError: no exchanges, or one that the model cannot read.
        UnavailableError: the training does not fit into memory.
    """
    from transformers import set_seed

    if not exchanges:
        raise InputError("There is nothing to train on: no exchanges were given.")
    rows = [encode_for_training(model, exchange) for exchange in exchanges]
    first = first_trained(model)
    read = read_activations(
        model, [Encoded(tuple(row["input_ids"]), 0) for row in rows], [first - 1], position="all"
    )
    offsets = read.offsets or ()
    for row, start_, end in zip(rows, offsets, offsets[1:], strict=False):
        row["hidden"] = read.values[start_:end, 0]
    set_seed(recipe.seed)
    wrapped = _with_adapter(model, recipe, start)
    pad = model.tokenizer.pad_token_id or 0
    below = _Below(model, first)
    with below.skipped():
        outcome = run_trainer(
            wrapped,
            rows,
            Schedule(
                batch_size=recipe.batch_size,
                epochs=recipe.epochs,
                learning_rate=recipe.learning_rate,
                warmup_share=recipe.warmup_share,
                weight_decay=0.0,
                seed=recipe.seed,
            ),
            loss=below.loss,
            collate=lambda batch: _collate(batch, pad),
            folder=folder,
            device=model.device,
            on_step=on_step,
        )
    save_adapter(wrapped, folder, base_id)
    return float(outcome.training_loss)


def encode_for_training(model: LoadedModel, exchange: Exchange) -> dict[str, Any]:
    """Token ids of an exchange, with labels on the response only."""
    prompt = model.tokenizer(
        render_chat(model, exchange.prompt, system=exchange.system), add_special_tokens=False
    )["input_ids"]
    response = model.tokenizer(exchange.response, add_special_tokens=False)["input_ids"]
    if exchange.complete:
        response = [*response, model.tokenizer.eos_token_id]
    ids = [*prompt, *response]
    if len(ids) > model.context_length:
        raise InputError(
            f"An exchange has {len(ids)} tokens but {model.info.id} takes {model.context_length};"
            f" shorten it (it begins “{exchange.prompt[:60]}…”)."
        )
    return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + response}


def save_adapter(wrapped: Any, folder: Path, base_id: str) -> None:
    """Saves an adapter in bfloat16; its config names `base_id` and no path of this machine."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = wrapped.peft_config["default"]
    config.base_model_name_or_path = base_id
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set: its order is another every run
    config.save_pretrained(str(folder))
    tensors = {
        name: tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items()
    }
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def _with_adapter(model: LoadedModel, recipe: LoraRecipe, start: Path | None) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        wrapped = PeftModel.from_pretrained(model.network, str(start), is_trainable=True)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # stored in bfloat16
        return wrapped
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules=linear_layers(model),
        layers_to_transform=list(range(first_trained(model), len(model.layers))),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model.network, config)


def first_trained(model: LoadedModel) -> int:
    """Index of the first layer that is trained; at least one stays as it is."""
    return max(1, int(len(model.layers) * FIRST_TRAINED))


class _Below:
    """Stands in for the layers that are not trained: gives what they wrote when they were read."""

    def __init__(self, model: LoadedModel, first: int) -> None:
        self.skipped_layers = model.layers[:first]
        self.hidden: torch.Tensor | None = None
        """[row, token, hidden] of the current batch."""

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """While active, the lowest layer gives `hidden` and those above pass it on."""
        lowest, *others = self.skipped_layers
        lowest.forward = lambda *_args, **_kwargs: self.hidden
        for layer in others:
            layer.forward = lambda hidden, *_args, **_kwargs: hidden
        try:
            yield
        finally:
            for layer in self.skipped_layers:
                del layer.forward  # the class's own again

    def loss(self, network: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        """Of a batch, with a head that sees positions of the response only.

        Of an exchange of 70 tokens about 15 are learnt, and with small models most of the time and
        memory goes into the logits of the vocabulary.
        """
        self.hidden = batch.pop("hidden").to(network.dtype)
        labels = batch.pop("labels")[:, 1:]
        rows, positions = (labels != IGNORED).nonzero(as_tuple=True)
        with head_at(network, positions, rows):
            output = network(**batch, use_cache=False)
        wanted = labels[rows, positions]
        return torch.nn.functional.cross_entropy(output.logits[:, 0].float(), wanted), output


def linear_layers(model: LoadedModel) -> list[str]:
    """Names of the linear layers inside a layer, as PEFT wants them."""
    from transformers.pytorch_utils import Conv1D

    return sorted(
        {
            name.rpartition(".")[2]
            for layer in model.layers
            for name, module in layer.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        }
    )


def _collate(batch: Sequence[dict[str, Any]], pad: int) -> dict[str, torch.Tensor]:
    """Pads rows on the right to the longest."""

    def padded(values: Iterable[Any], filler: int) -> torch.Tensor:
        tensors = [torch.as_tensor(value) for value in values]
        return pad_sequence(tensors, batch_first=True, padding_value=filler)

    return {
        "input_ids": padded((row["input_ids"] for row in batch), pad),
        "labels": padded((row["labels"] for row in batch), IGNORED),
        "attention_mask": padded(([1] * len(row["input_ids"]) for row in batch), 0),
        "hidden": padded((row["hidden"] for row in batch), 0),
    }
