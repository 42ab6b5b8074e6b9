"""transformers' Trainer as all training here uses it: a loss, and no checkpoints or logs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import UnavailableError
from modelassay.models.explain import is_out_of_memory
from modelassay.progress import OnProgress

Loss = Callable[[Any, dict[str, Tensor]], tuple[Tensor, Any]]
"""Called with the network and a batch, which it may change; gives the loss and the output."""


@dataclass(frozen=True)
class Schedule:
    """What decides the steps of a training."""

    batch_size: int
    epochs: float
    learning_rate: float
    """Falls to zero along a line, after the warm-up."""
    warmup_share: float
    weight_decay: float
    seed: int


def run_trainer(
    network: Any,
    rows: Sequence[dict[str, Any]],
    schedule: Schedule,
    *,
    loss: Loss,
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]],
    folder: Path,
    device: torch.device,
    on_step: OnProgress | None = None,
    is_done: Callable[[int, int], bool] | None = None,
) -> Any:
    """Trains a network in place.

    Args:
        network: What `loss` calls, on `device`.
        rows: Examples; each holds `input_ids`, by whose length batches are grouped.
        schedule: Steps, learning rate, seed.
        loss: Of a batch.
        collate: Makes a batch of examples.
        folder: For the Trainer, which writes nothing into it: its checkpoints are pickles.
        device: Where the network is.
        on_step: Told (steps done, steps in all).
        is_done: Asked the same after each step; True stops the training.

    Returns:
        transformers' `TrainOutput`.

    Raises:
        UnavailableError: the training does not fit into memory.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class OwnLoss(Trainer):
        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            value, output = loss(model, inputs)
            return (value, output) if return_outputs else value

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if on_step:
                on_step(state.global_step, state.max_steps)
            if is_done and is_done(state.global_step, state.max_steps):
                control.should_training_stop = True

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=schedule.batch_size,
        num_train_epochs=schedule.epochs,
        learning_rate=schedule.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=schedule.warmup_share,
        weight_decay=schedule.weight_decay,
        seed=schedule.seed,
        data_seed=schedule.seed,
        train_sampling_strategy="group_by_length",
        use_cpu=device.type == "cpu",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )
    trainer = OwnLoss(
        model=network,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]  # a list of dicts is a dataset to it
        data_collator=collate,
        callbacks=[Steps()],
    )
    trainer.remove_callback(PrinterCallback)  # standard output is for results
    try:
        return trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            "The training does not fit into memory; choose a smaller --batch-size."
        ) from error
