"""transformers' Trainer as all training here uses it: a loss, and no checkpoints or logs.

Its checkpoints are pickles. A training that may be stopped keeps a state of its own (`Kept`); taken
up again it passes over the batches that were learnt, in the same order, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import UnavailableError
from modelassay.models.explain import is_out_of_memory
from modelassay.models.training_state import (
    damaged_state,
    load_state,
    moments_of,
    restore_moments,
    save_state,
)
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


@dataclass(frozen=True)
class Kept:
    """Where a training keeps its state, and what belongs to it besides network and optimizer."""

    folder: Path
    identity: str
    """What the run depends on, as a hash."""
    is_due: Callable[[int], bool]
    """Whether it is kept after that many steps; at the end it always is."""
    more: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]]
    """Tensors by name and JSON-ready values of the caller's own."""
    restore: Callable[[Mapping[str, Tensor], Mapping[str, Any]], None]
    """Takes what `more` gave, among other things."""


class _Keeper:
    """The kept state of a run, and what its loss adds up to."""

    def __init__(self, network: Any, kept: Kept) -> None:
        self.network = network
        self.kept = kept
        self.tensors, self.progress = load_state(kept.folder, kept.identity) or ({}, {})
        self.before = int(self.progress.get("steps", 0))
        """Steps that were done when the state was kept."""
        self.loss = float(self.progress.get("loss", 0.0))
        self.epochs = 0

    def parameters(self) -> dict[str, Tensor]:
        named = self.network.named_parameters()
        return {f"network.{name}": value for name, value in named if value.requires_grad}

    def save(self, steps: int, optimizer: Any, *, is_over: bool) -> None:
        tensors, values = self.kept.more()
        tensors |= self.parameters() | moments_of(optimizer) | {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        progress = {"steps": steps, "loss": self.loss, "is_over": is_over, **values}
        save_state(self.kept.folder, self.kept.identity, tensors, progress)

    def restore(self, optimizer: Any) -> bool:
        """Goes on from the state; returns whether the training was over."""
        try:
            with torch.no_grad():
                for name, parameter in self.parameters().items():
                    parameter.copy_(self.tensors[name])
            restore_moments(optimizer, self.tensors)
            self.kept.restore(self.tensors, self.progress)
            torch.set_rng_state(self.tensors["random"])
            if torch.cuda.is_available() and "random.cuda" in self.tensors:
                torch.cuda.set_rng_state(self.tensors["random.cuda"])
            is_over = bool(self.progress["is_over"])
        except (KeyError, ValueError, RuntimeError, TypeError) as error:
            raise damaged_state(self.kept.folder) from error
        self.tensors = {}
        return is_over


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
    kept: Kept | None = None,
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
        kept: Where the state is kept, for a run that goes on when it is given again; on a CPU it
            then ends with the very weights of one that was not stopped.

    Returns:
        transformers' `TrainOutput`.

    Raises:
        UnavailableError: the training does not fit into memory.
        InputError: the state is damaged, or of another run.
    """
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    keeper = None if kept is None else _Keeper(network, kept)

    class OwnLoss(Trainer):
        def training_step(self, *given: Any, **named: Any) -> Tensor:
            if keeper and self.state.global_step < keeper.before:
                return torch.zeros((), device=self.args.device)  # learnt by a run before
            return super().training_step(*given, **named)

        def compute_loss(  # type: ignore[override]
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            value, output = loss(model, inputs)
            if keeper:
                keeper.loss += float(value.detach())
            return (value, output) if return_outputs else value

    class Steps(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            if keeper:  # the order of an epoch's batches must not depend on what was learnt before
                torch.manual_seed(schedule.seed + 1_000_003 * keeper.epochs)
                keeper.epochs += 1

        def on_step_end(
            self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any
        ) -> None:
            done, total = state.global_step, state.max_steps
            if keeper and done < keeper.before:
                return
            if on_step:
                on_step(done, total)
            if keeper and done == keeper.before:
                control.should_training_stop = keeper.restore(optimizer)
                return
            is_over = bool(is_done and is_done(done, total))
            control.should_training_stop = control.should_training_stop or is_over
            if keeper and (keeper.kept.is_due(done) or is_over or done >= total):
                keeper.save(done, optimizer, is_over=is_over or done >= total)

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
        outcome = trainer.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UnavailableError(
            "The training does not fit into memory; choose a smaller --batch-size."
        ) from error
    if keeper is None:
        return outcome
    return outcome._replace(training_loss=keeper.loss / max(outcome.global_step, 1))
