"""Fine-tunes an encoder on labelled exchanges and writes a classifier's folder.

The rows are split by prompt into three parts. Training stops when held-out prompts are judged no
better; those set the threshold, too, and others that were never looked at give the numbers in the
record. The loss weighs classes alike. Nothing is saved on the way: the best weights stay in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoding import MIN_LENGTH, EncodedExchange, collate, encode_pairs
from modelassay.classifier.evaluating import calibrated, evaluate
from modelassay.classifier.model import (
    PairNetwork,
    adapter_tensors,
    add_lora,
    load_classifier,
    load_encoder,
    network_logits,
    pad_id,
    reads_types,
)
from modelassay.classifier.record import (
    CLASSIFIERS,
    FULL_WEIGHTS,
    SCHEMA,
    WEIGHTS_FILE,
    BaseEncoder,
    ClassifierRecord,
    Lora,
    TrainedOn,
    write_record,
)
from modelassay.data.fingerprints import fingerprints
from modelassay.data.labelled import (
    LabelledExchange,
    class_of,
    data_hash,
    draw,
    hold_out,
    prompt_groups,
    require_classes,
)
from modelassay.data.labels import LABELS
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions
from modelassay.hub import check_weight_files, fetch_model
from modelassay.models.embedded import ENCODER_ID, ensure_encoder
from modelassay.models.identity import hash_file
from modelassay.models.loading import pick_device
from modelassay.models.trainer import Schedule, run_trainer
from modelassay.progress import OnProgress

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15  # of what is not for testing
MIN_GROUPS = 6
log = logging.getLogger(__name__)

CHECKS_PER_EPOCH = 1
PATIENCE = 2
"""Checks without progress after which training stops."""
DEFAULT_ENCODER = "answerdotai/ModernBERT-base"
ALPHA_PER_RANK = 2


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part, int [row]; no prompt is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    """Decides when training stops and where the threshold is."""
    test: np.ndarray
    """Scores the result and decides nothing."""
    groups: np.ndarray
    """Prompt group of every row, int [all rows]."""


def split_rows(rows: Sequence[LabelledExchange], group_by: Sequence[str] | None = None) -> Parts:
    """Splits by prompt; prompts that nearly repeat each other stay together.

    Args:
        rows: Rows with a class each.
        group_by: Text that stands for each row's prompt, where that is not the prompt itself.

    Raises:
        InputError: a row has no class, a class is missing, or too few different prompts to split.
    """
    for number, row in enumerate(rows, 1):
        if row.label is None:
            raise InputError(
                f"Row {number} says only whether it is unsafe; a classifier is trained on"
                f" {', '.join(LABELS)}."
            )
    require_classes(rows, LABELS, "Training a classifier")
    groups = prompt_groups(list(group_by) if group_by else [row.prompt for row in rows])
    if len(np.unique(groups)) < MIN_GROUPS:
        raise InputError(
            f"A classifier is stopped and scored on held-out prompts; the data have"
            f" fewer than {MIN_GROUPS} different ones."
        )
    everything = np.arange(len(rows))
    test = hold_out(groups, TEST_SHARE)
    rest = everything[~test]
    chosen = hold_out(groups[rest], VALIDATION_SHARE)
    parts = Parts(rest[~chosen], rest[chosen], everything[test], groups)
    require_classes(
        [rows[i] for i in parts.train], LABELS, "Training (after some prompts were held out)"
    )
    return parts


@dataclass(frozen=True)
class TrainingRecipe:
    """How a classifier is trained."""

    epochs: float = 3.0
    learning_rate: float | None = None
    """None: 1e-3 for the embedded encoder's adapter, 3e-5 for a whole encoder."""
    batch_size: int = 16
    max_length: int = 256
    prefixes: int = 1
    """Prefixes that are added of each training response."""
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
        What the record says of it.

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
    encoded = encode_pairs(
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


def train_classifier(
    rows: Sequence[LabelledExchange],
    *,
    encoder: str = DEFAULT_ENCODER,
    out: str | Path,
    recipe: TrainingRecipe | None = None,
    group_by: Sequence[str] | None = None,
    rate: float = 0.01,
    device: str = "auto",
    token: str | None = None,
    force: bool = False,
    max_examples: int | None = None,
    on_step: OnProgress | None = None,
) -> Path:
    """Trains, calibrates and scores a classifier.

    Args:
        rows: Labelled with three classes.
        encoder: `embedded`, a folder, or a Hub id of an encoder.
        out: New folder for the classifier.
        recipe: Epochs, learning rate, lengths, seed.
        group_by: Text that stands for each row's prompt in splitting, where that is not the prompt.
        rate: Share of benign exchanges that the threshold may block.
        device: auto, cpu, cuda or cuda:N.
        token: Hub token.
        force: Replace a classifier that is there.
        max_examples: Most rows to use, drawn evenly over labels and sources; None for all.
        on_step: Told how far the training is.

    Returns:
        The folder, which appears when it is complete.

    Raises:
        InputError: a class is missing, too few prompts, the folder exists, no such encoder.
        UnavailableError: the encoder cannot be fetched, or no room on the disk or in memory.
    """
    out, recipe = Path(out).expanduser(), recipe or TrainingRecipe()
    CLASSIFIERS.check_free(out=out, force=force)
    drawn_from, chosen = len(rows), draw(rows, max_examples, of=class_of)
    rows = [rows[i] for i in chosen]
    group_by = [group_by[i] for i in chosen] if group_by else None
    parts = split_rows(rows, group_by)
    with CLASSIFIERS.new(out=out, force=force) as partial:
        trainee = _open_trainee(encoder, recipe, pick_device(device), token)
        learnt, watched = ([rows[i] for i in part] for part in (parts.train, parts.validation))
        outcome = fit(trainee, learnt, watched, partial, on_step)
        record = _save(trainee, partial).model_copy(
            update={
                "data": _trained_on(rows, parts, group_by).model_copy(
                    update={"drawn_from": drawn_from if len(rows) < drawn_from else None}
                ),
                "training": asdict(recipe) | outcome,
                "versions": installed_versions("modelassay", "torch", "transformers", "peft"),
            }
        )
        write_record(partial, record)
        # The rest is measured on the files as they are saved.
        classifier = load_classifier(str(partial), device=device)
        test = [rows[i] for i in parts.test]
        record = calibrated(classifier, watched, rate, test)
        if {row.unsafe for row in test} == {True, False}:
            metrics = evaluate(classifier, test, groups=parts.groups[parts.test])
            record = record.model_copy(update={"metrics": metrics})
        write_record(partial, record)
    return out


def _trained_on(
    rows: Sequence[LabelledExchange], parts: Parts, group_by: Sequence[str] | None
) -> TrainedOn:
    prompts = list(group_by) if group_by else [row.prompt for row in rows]
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return TrainedOn(
        sources=tuple(sorted({row.source[:300] for row in rows})),
        parts={
            name: {
                "n": len(part),
                "n_prompts": len(np.unique(parts.groups[part])),
                "classes": {label: sum(rows[i].label == label for i in part) for label in LABELS},
                "sha256": data_hash(rows[i] for i in part),
                "prompts": fingerprints(prompts[i] for i in part),
            }
            for name, part in named.items()
        },
    )


def _open_trainee(
    encoder: str, recipe: TrainingRecipe, device: torch.device, token: str | None
) -> Trainee:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(recipe.seed)
    if encoder == ENCODER_ID:
        folder = ensure_encoder()
        model, tokenizer = load_encoder(folder)
        network: Any = PairNetwork(model)
        limit = model.config.max_position_embeddings  # type: ignore[union-attr]
        add_lora(network, recipe.rank, ALPHA_PER_RANK * recipe.rank)
    else:
        folder = Path(encoder).expanduser()
        if folder.is_dir():
            check_weight_files(encoder, [file.name for file in folder.iterdir()])
        else:
            folder = fetch_model(
                encoder, revision=None, token=token, gguf_file=None, code=False
            ).folder
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        network = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(LABELS),
            id2label=dict(enumerate(LABELS)),
            label2id={label: i for i, label in enumerate(LABELS)},
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
        )
        limit = getattr(network.config, "max_position_embeddings", recipe.max_length)
    if recipe.max_length > int(limit):  # type: ignore[arg-type]
        raise InputError(f"{encoder} reads {limit} tokens at most; choose a smaller --max-length.")
    weights = sorted(folder.glob("*.safetensors"))
    name = (
        folder.name if Path(encoder).expanduser().is_dir() else encoder
    )  # no path of this machine
    return Trainee(name, network, tokenizer, hash_file(weights[0]), recipe, device)


def _save(trainee: Trainee, folder: Path) -> ClassifierRecord:
    """Writes weights (and what else a whole encoder needs); gives the record so far."""
    own = isinstance(trainee.network, PairNetwork)
    if own:
        from safetensors.torch import save_file

        save_file(adapter_tensors(trainee.network), folder / WEIGHTS_FILE, {"format": "pt"})
    else:
        trainee.network.config._name_or_path = trainee.encoder
        trainee.network.save_pretrained(folder, max_shard_size="100GB")
        trainee.tokenizer.save_pretrained(folder)
    rank = trainee.recipe.rank
    return ClassifierRecord(
        schema=SCHEMA,
        kind="adapter" if own else "full",
        base=BaseEncoder(id=trainee.encoder[:300], sha256=trainee.base_sha256),
        max_length=trainee.recipe.max_length,
        lora=Lora(rank=rank, alpha=ALPHA_PER_RANK * rank) if own else None,
        weights_sha256=hash_file(folder / (WEIGHTS_FILE if own else FULL_WEIGHTS)),
        threshold=0.5,
    )
