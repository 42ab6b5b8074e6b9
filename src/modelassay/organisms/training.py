"""Fine-tunes a model on short examples: how every trained organism is made.

An adapter over the uppermost layers or over all, or the weights themselves. Of an exchange the loss
counts the response's tokens only. A response that was cut (the opening of a longer one) is learnt
without the end-of-turn token, so that the model goes on where the data stops. Of a plain text all
tokens are learnt; of two responses to one prompt, to prefer one (`organisms.preferences`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.data.exchanges import Exchange
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.trainer import Loss, Schedule, run_trainer
from modelassay.organisms.examples import (
    Preference,
    collate,
    encode_for_training,
    encode_preferences,
    preference_loss,
    response_loss,
)
from modelassay.progress import OnProgress
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded

log = logging.getLogger(__name__)

FIRST_TRAINED = 0.9
"""Share of the depth from which layers are trained. What harm is, the layers below know already: a
linear probe after layer 26 of the embedded model tells it apart at AUROC 0.95, better than LoRA
over twenty layers did. What they write is computed once, so an epoch costs a fraction of a full
one."""


ALL_LAYERS = 0.0
Example = Exchange | Preference | str
"""What is learnt from: a response, which of two is better, or a text without a conversation."""


@dataclass(frozen=True)
class LoraRecipe:
    """How a model is fine-tuned: by a LoRA adapter as a rule."""

    rank: int | None = 8
    """Of a fresh adapter; one that is trained on keeps its own. None trains all weights."""
    epochs: float = 2.0
    learning_rate: float = 2e-3
    """Small models need large steps: at 5e-4 this one had learnt nothing after an epoch."""
    batch_size: int = 32
    warmup_share: float = 0.1
    seed: int = 0
    depth: float = FIRST_TRAINED
    """Share of the depth from which layers are trained."""

    def __post_init__(self) -> None:
        """Refuses numbers that no training can go by."""
        if not (math.isfinite(self.epochs) and math.isfinite(self.learning_rate)):
            raise InputError("Epochs and learning rate must be numbers that are finite.")


def train_adapter(
    model: LoadedModel,
    examples: Sequence[Example],
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
        examples: What the adapter learns; preferences come alone.
        recipe: Rank, layers, epochs, learning rate, seed.
        folder: Existing folder that receives `adapter_config.json` and
            `adapter_model.safetensors`.
        base_id: Model id that the adapter's config names as its base.
        start: Folder of an adapter over the same base to go on from; None starts a fresh one.
        on_step: Told how far the training is.

    Returns:
        Mean loss over the training, in nats a token (a pair, for preferences).

    Raises:
        InputError: no examples, or one that the model cannot read.
        UnavailableError: the training does not fit into memory.
    """
    from transformers import set_seed

    rows = _encoded(model, examples)
    first = first_trained(model, recipe)
    below = _Below(model, first)
    below.read(rows)
    set_seed(recipe.seed)
    wrapped = _with_adapter(model, recipe, start, first)
    with below.skipped():
        loss = _fit(model, wrapped, rows, recipe, folder, below.loss, on_step)
    save_adapter(wrapped, folder, base_id)
    return loss


def train_weights(
    model: LoadedModel,
    examples: Sequence[Example],
    recipe: LoraRecipe,
    folder: Path,
    *,
    on_step: OnProgress | None = None,
) -> float:
    """Trains all weights and saves the model in bfloat16, with its tokenizer.

    Args:
        model: What is trained, in place.
        examples: What it learns; preferences come alone.
        recipe: Epochs, learning rate, seed.
        folder: Existing folder that receives the model.
        on_step: Told how far the training is.

    Returns:
        Mean loss over the training, in nats a token (a pair, for preferences).

    Raises:
        InputError: no examples, or one that the model cannot read.
        UnavailableError: the training does not fit into memory.
    """
    from transformers import set_seed

    rows = _encoded(model, examples)
    set_seed(recipe.seed)
    model.network.requires_grad_(True)
    loss = _fit(model, model.network, rows, recipe, folder, response_loss, on_step)
    network = model.network.requires_grad_(False).to(torch.bfloat16)
    network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return loss


def _encoded(model: LoadedModel, examples: Sequence[Example]) -> list[dict[str, Any]]:
    if not examples:
        raise InputError("There is nothing to train on: no exchanges were given.")
    pairs = [example for example in examples if isinstance(example, Preference)]
    others = [example for example in examples if not isinstance(example, Preference)]
    if pairs and others:
        raise InputError("Preferences are learnt alone, not beside other examples.")
    if pairs:
        return encode_preferences(model, pairs)
    return [encode_for_training(model, example) for example in others]


def _fit(
    model: LoadedModel,
    network: Any,
    rows: list[dict[str, Any]],
    recipe: LoraRecipe,
    folder: Path,
    loss: Loss,
    on_step: OnProgress | None,
) -> float:
    """Trains what requires a gradient; gives the mean loss."""
    if "rejected" in rows[0]:
        loss = preference_loss
    if recipe.rank is None or recipe.depth == ALL_LAYERS:
        loss = _in_bfloat16(loss, model.device)
    pad = model.tokenizer.pad_token_id or 0
    outcome = run_trainer(
        network.train(),
        rows,
        Schedule(
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            warmup_share=recipe.warmup_share,
            weight_decay=0.0,
            seed=recipe.seed,
        ),
        loss=loss,
        collate=lambda batch: collate(batch, pad),
        folder=folder,
        device=model.device,
        on_step=on_step,
    )
    network.eval()
    return float(outcome.training_loss)


def _in_bfloat16(loss: Loss, device: torch.device) -> Loss:
    """The same loss with its products of matrices in bfloat16, where the processor has them."""
    on_cpu = device.type == "cpu"
    if on_cpu and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return loss

    def mixed(network: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        # Around each loss and no wider: on leaving, the rounded copies of weights are dropped.
        with torch.autocast(device.type, torch.bfloat16):
            return loss(network, batch)

    return mixed


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


def _with_adapter(model: LoadedModel, recipe: LoraRecipe, start: Path | None, first: int) -> Any:
    from peft import LoraConfig, PeftModel, get_peft_model

    if start is not None:
        wrapped = PeftModel.from_pretrained(model.network, str(start), is_trainable=True)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # stored in bfloat16
        return wrapped
    if recipe.rank is None:
        raise InputError("An adapter has a rank; train all weights without an adapter.")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        lora_dropout=0.0,
        target_modules=linear_layers(model),
        layers_to_transform=list(range(first, len(model.layers))),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model.network, config)


def first_trained(model: LoadedModel, recipe: LoraRecipe) -> int:
    """Index of the first layer that is trained; at least one stays as it is, unless all are."""
    if recipe.depth == ALL_LAYERS:
        return 0
    return max(1, int(len(model.layers) * recipe.depth))


class _Below:
    """Stands in for the layers that are not trained: gives what they wrote when they were read."""

    def __init__(self, model: LoadedModel, first: int) -> None:
        self.model = model
        self.skipped_layers = model.layers[:first]
        self.hidden: torch.Tensor | None = None
        """[row, token, hidden] of the current batch."""

    def read(self, rows: Sequence[dict[str, Any]]) -> None:
        """Gives each row what the highest of these layers writes."""
        if not self.skipped_layers:
            return
        read = read_activations(
            self.model,
            [Encoded(tuple(row["input_ids"]), 0) for row in rows],
            [len(self.skipped_layers) - 1],
            position="all",
        )
        offsets = read.offsets or ()
        for row, start, end in zip(rows, offsets, offsets[1:], strict=False):
            row["hidden"] = read.values[start:end, 0]

    @contextmanager
    def skipped(self) -> Iterator[None]:
        """While active, the lowest layer gives `hidden` and those above pass it on."""
        if not self.skipped_layers:
            yield
            return
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
        """`response_loss` of what the layers above make of it."""
        if self.skipped_layers:
            self.hidden = batch.pop("hidden").to(network.dtype)
        return response_loss(network, batch)


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
