"""The optimisation: transformers' Trainer with class weights and early stopping.

Nothing is saved on the way: the Trainer's checkpoints are pickles. The best weights stay in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoding import MIN_LENGTH, EncodedExchange, collate, encode_exchanges
from modelassay.classifier.model import network_logits, pad_id, reads_types
from modelassay.classifier.network import PairNetwork
from modelassay.data.exchanges import LABELS, LabelledExchange
from modelassay.errors import InputError
from modelassay.models.encoder import ENCODER_ID
from modelassay.models.trainer import Schedule, run_trainer
from modelassay.progress import OnProgress

log = logging.getLogger(__name__)

CHECKS_PER_EPOCH = 1
PATIENCE = 2
"""Checks without progress after which training stops."""


@dataclass(frozen=True)
class TrainingRecipe:
    """How a classifier is trained."""

    epochs: float = 3.0
    learning_rate: float | None = None
    """None: 1e-3 for the embedded encoder's adapter, 3e-5 for a whole encoder."""
    batch_size: int = 16
    max_length: int = 256
    prefixes: int = 1
    """Prefixes that are added of each training answer."""
    rank: int = 16
    """Of the adapter over the embedded encoder."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses numbers that no training can go by."""
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise InputError("Epochs must be a number above zero.")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError("The learning rate must be a number above zero.")
        if self.max_length < MIN_LENGTH:
            raise InputError(f"--max-length must be at least {MIN_LENGTH} tokens.")


@dataclass(frozen=True)
class Trainee:
    """A network that is being trained."""

    encoder: str
    network: Any
    tokenizer: Any
    base_sha256: str
    recipe: TrainingRecipe
    device: torch.device

    @property
    def types(self) -> bool:
        return isinstance(self.network, PairNetwork) or reads_types(self.network)

    def learning_rate(self) -> float:
        return self.recipe.learning_rate or (1e-3 if self.encoder == ENCODER_ID else 3e-5)


def fit(
    trainee: Trainee,
    rows: Sequence[LabelledExchange],
    watched: Sequence[LabelledExchange],
    scratch: Path,
    on_step: OnProgress | None,
) -> dict[str, Any]:
    """Trains the network; it ends with the weights that did best on held-out prompts.

    Args:
        trainee: Network, changed in place.
        rows: What is learnt; prefixes are added here.
        watched: Rows of other prompts, which tell when to stop.
        scratch: Folder for the Trainer, which writes nothing into it.
        on_step: Told how far the training is.

    Returns:
        What the card says of it.

    Raises:
        UnavailableError: it does not fit into memory.
    """
    recipe = trainee.recipe
    learnt = with_prefixes(rows, recipe.seed, recipe.prefixes)
    examples = _encode(trainee, learnt)
    best = _Best(trainee, _encode(trainee, watched), len(examples))
    pad, types = pad_id(trainee.tokenizer), trainee.types
    weights = class_weights([row["label"] for row in examples])

    def collator(batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = collate([row["row"] for row in batch], pad, types=types)
        return inputs | {"labels": torch.tensor([row["label"] for row in batch])}

    def loss(network: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Any]:
        labels = batch.pop("labels")
        output = network(**batch)
        logits = getattr(output, "logits", output).float()
        weight = weights.to(logits.device)
        return torch.nn.functional.cross_entropy(logits, labels, weight=weight), output

    def is_done(done: int, total: int) -> bool:
        return (done % best.every == 0 or done >= total) and best.look(done)

    outcome = run_trainer(
        trainee.network,
        examples,
        Schedule(
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            learning_rate=trainee.learning_rate(),
            warmup_share=0.06,
            weight_decay=0.01,
            seed=recipe.seed,
        ),
        loss=loss,
        collate=collator,
        folder=scratch,
        device=trainee.device,
        on_step=on_step,
        is_done=is_done,
    )
    best.restore()
    return {
        "loss": round(float(outcome.training_loss), 4),
        "validation_loss": round(best.loss, 4),
        "best_step": best.step,
        "steps": int(outcome.global_step),
        "rows_with_prefixes": len(learnt),
        "learning_rate": trainee.learning_rate(),
    }


def _encode(trainee: Trainee, rows: Sequence[LabelledExchange]) -> list[dict[str, Any]]:
    encoded = encode_exchanges(
        trainee.tokenizer,
        [(row.prompt, row.response) for row in rows],
        trainee.recipe.max_length,
    )
    return [
        {
            "row": each,
            "label": LABELS.index(row.label or "safe_compliance"),
            "input_ids": each.ids,
        }
        for row, each in zip(rows, encoded, strict=True)
    ]


def class_weights(labels: Sequence[int]) -> torch.Tensor:
    """Weights float32 [class] that make classes count alike; their mean over rows is one."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=len(LABELS)).float()
    present = counts > 0
    weights = torch.zeros(len(LABELS))
    weights[present] = len(labels) / (present.sum() * counts[present])
    return weights


class _Best:
    """The weights that judged held-out prompts best so far, in memory."""

    def __init__(
        self, trainee: Trainee, watched: Sequence[dict[str, Any]], n_examples: int
    ) -> None:
        self.trainee = trainee
        self.rows: list[EncodedExchange] = [example["row"] for example in watched]
        self.labels = torch.tensor([example["label"] for example in watched])
        self.weights = class_weights(self.labels.tolist())
        steps = math.ceil(n_examples / trainee.recipe.batch_size)
        self.every = max(1, steps // CHECKS_PER_EPOCH)
        self.loss, self.step, self.worse = math.inf, 0, 0
        self.kept: dict[str, torch.Tensor] = {}

    def look(self, step: int) -> bool:
        """Scores the network as it is; returns whether to stop."""
        network = self.trainee.network
        network.eval()
        logits = network_logits(
            network, self.rows, pad_id(self.trainee.tokenizer), self.trainee.types,
            self.trainee.device, 16,
        )  # fmt: skip
        network.train()
        loss = float(torch.nn.functional.cross_entropy(logits, self.labels, weight=self.weights))
        log.info("step %d: validation loss %.4f", step, loss)
        if loss < self.loss:
            self.loss, self.step, self.worse = loss, step, 0
            self.kept = {
                name: parameter.detach().cpu().clone()
                for name, parameter in network.named_parameters()
                if parameter.requires_grad
            }
            return False
        self.worse += 1
        return self.worse >= PATIENCE

    def restore(self) -> None:
        network = self.trainee.network
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in self.kept:
                    parameter.copy_(self.kept[name])
        network.eval()
