"""The optimisation: transformers' Trainer with class weights and early stopping.

Nothing is saved on the way: the Trainer's checkpoints are pickles. The best weights stay in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoding import MIN_LENGTH, EncodedExchange, collate, encode_exchanges
from modelassay.classifier.model import network_logits, pad_id, reads_types
from modelassay.classifier.network import PairNetwork
from modelassay.data.exchanges import LABELS, LabelledExchange
from modelassay.errors import InputError, UnavailableError
from modelassay.models.encoder import ENCODER_ID
from modelassay.reading.activations import is_out_of_memory

log = logging.getLogger(__name__)

CHECKS_PER_EPOCH = 1
PATIENCE = 2
"""Checks without progress after which training stops."""
OnStep = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


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
    on_step: OnStep | None,
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
    from transformers import PrinterCallback, TrainingArguments

    recipe = trainee.recipe
    learnt = with_prefixes(rows, recipe.seed, recipe.prefixes)
    examples = _encode(trainee, learnt)
    best = _Best(trainee, _encode(trainee, watched), len(examples))
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=trainee.learning_rate(),
        lr_scheduler_type="linear",
        warmup_steps=0.06,
        weight_decay=0.01,
        seed=recipe.seed,
        data_seed=recipe.seed,
        train_sampling_strategy="group_by_length",
        use_cpu=trainee.device.type == "cpu",
        save_strategy="no",  # its checkpoints are pickles; the best weights are kept in memory
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    pad, types = pad_id(trainee.tokenizer), trainee.types

    def collator(batch: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        inputs = collate([row["row"] for row in batch], pad, types=types)
        return inputs | {"labels": torch.tensor([row["label"] for row in batch])}

    trainer = _trainer_class(class_weights([row["label"] for row in examples]))(
        model=trainee.network,
        args=arguments,
        train_dataset=examples,  # type: ignore[arg-type]  # a list of dicts is a dataset to it
        data_collator=collator,
        callbacks=[best.callback(on_step)],
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for results
    try:
        outcome = trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            "The training does not fit into memory; choose a smaller --batch-size."
        ) from error
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


def _trainer_class(weights: torch.Tensor) -> Any:
    from transformers import Trainer

    class WeightedTrainer(Trainer):
        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            labels = inputs.pop("labels")
            output = model(**inputs)
            logits = getattr(output, "logits", output).float()
            loss = torch.nn.functional.cross_entropy(
                logits, labels, weight=weights.to(logits.device)
            )
            return (loss, output) if return_outputs else loss

    return WeightedTrainer


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

    def callback(self, on_step: OnStep | None) -> Any:
        from transformers import TrainerCallback

        best = self

        class Watch(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if on_step:
                    on_step(state.global_step, state.max_steps)
                last = state.global_step >= state.max_steps
                if (state.global_step % best.every == 0 or last) and best.look(state.global_step):
                    control.should_training_stop = True

        return Watch()
