"""Fine-tunes an encoder on labelled exchanges and writes a classifier's folder.

The rows are split by prompt into three parts. Training stops when held-out prompts are judged no
better; those set the threshold, too, and others that were never looked at give the numbers in the
record. The loss weighs classes alike. Rows that say only safe or unsafe train a classifier of these
two classes, whose record says so.

A state is kept on the way where the caller asks for it: network, optimizer, best weights. A run
that was stopped goes on from it and, on a CPU, ends with the weights of one that was not.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoders import open_encoder
from modelassay.classifier.encoding import MIN_LENGTH, EncodedExchange, collate, encode_pairs
from modelassay.classifier.evaluating import ThresholdChoice, calibrated, evaluate
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
from modelassay.data.labels import CLASSES, LABELS, Scheme
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, json_hash
from modelassay.models.embedded import ENCODER_ID, ensure_encoder
from modelassay.models.explain import quiet_transformers
from modelassay.models.identity import hash_file, hash_files
from modelassay.models.loading import pick_device
from modelassay.models.trainer import Kept, Schedule, run_trainer
from modelassay.progress import OnProgress

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15
"""Of what is not for testing."""
SAVE_EVERY = 500
"""Steps between two states, beside those at the end of each epoch."""
MIN_GROUPS = 6
log = logging.getLogger(__name__)

CHECKS_PER_EPOCH = 1
PATIENCE = 2
"""Checks without progress after which training stops."""
DEFAULT_ENCODER = "answerdotai/ModernBERT-base"
ALPHA_PER_RANK = 2
BEST = "best."


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


def scheme_of_rows(rows: Sequence[LabelledExchange]) -> Scheme:
    """What can be learnt of rows: two classes if some of them say only safe or unsafe."""
    bare = sum(row.label is None for row in rows)
    if 0 < bare < len(rows):
        log.warning(
            "%d of %d rows say only whether they are unsafe, so refusals are not told apart from"
            " other safe responses.",
            bare,
            len(rows),
        )
    return "binary" if bare else "three-class"


def split_rows(
    rows: Sequence[LabelledExchange],
    group_by: Sequence[str] | None = None,
    validation_share: float = VALIDATION_SHARE,
) -> Parts:
    """Splits by prompt; prompts that nearly repeat each other stay together.

    Args:
        rows: Rows with a class each, or safe or unsafe.
        group_by: Text that stands for each row's prompt, where that is not the prompt itself.
        validation_share: Of the prompts that are not for testing, those that tell when to stop.

    Raises:
        InputError: a class is missing, no safe row is left to choose the threshold on, or too few
            different prompts to split.
    """
    wanted = LABELS if all(row.label for row in rows) else (True, False)
    require_classes(rows, wanted, "Training a classifier")
    groups = prompt_groups(list(group_by) if group_by else [row.prompt for row in rows])
    if len(np.unique(groups)) < MIN_GROUPS:
        raise InputError(
            f"A classifier is stopped and scored on held-out prompts; the data have"
            f" fewer than {MIN_GROUPS} different ones."
        )
    everything = np.arange(len(rows))
    test = hold_out(groups, TEST_SHARE)
    rest = everything[~test]
    chosen = hold_out(groups[rest], validation_share)
    parts = Parts(rest[~chosen], rest[chosen], everything[test], groups)
    require_classes(
        [rows[i] for i in parts.train], wanted, "Training (after some prompts were held out)"
    )
    if all(rows[i].unsafe for i in parts.validation):  # else known when all is trained
        raise InputError(
            f"The threshold is chosen on safe exchanges, and the {len(parts.validation)} that are"
            " held out for it are all unsafe; give a larger --validation-share, or more rows."
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
    weight_decay: float = 0.01
    warmup: float = 0.06
    """Share of all steps in which the learning rate rises."""
    validation_share: float = VALIDATION_SHARE

    def __post_init__(self) -> None:
        """Refuses numbers that no training can go by."""
        if not (math.isfinite(self.epochs) and self.epochs > 0):
            raise InputError("Epochs must be a number above zero.")
        rate = self.learning_rate
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            raise InputError("The learning rate must be a number above zero.")
        if not 0 <= self.weight_decay < 1:
            raise InputError("--weight-decay must be at least 0 and less than 1, e.g. 0.01.")
        if not 0 <= self.warmup < 1:
            raise InputError("--warmup must be at least 0 and less than 1, e.g. 0.06.")
        if not 0 < self.validation_share <= 0.5:
            raise InputError("--validation-share must lie above 0 and not above 0.5, e.g. 0.15.")
        if self.max_length < MIN_LENGTH:
            raise InputError(f"--max-length must be at least {MIN_LENGTH} tokens.")


def _class_of(row: LabelledExchange, scheme: Scheme) -> str:
    """The row's class, which under three classes it has."""
    return CLASSES["binary"][row.unsafe] if scheme == "binary" else str(row.label)


@dataclass(frozen=True)
class Trainee:
    """A network that is being trained."""

    encoder: str
    network: Any
    tokenizer: Any
    base_sha256: str
    recipe: TrainingRecipe
    device: torch.device
    scheme: Scheme

    @property
    def labels(self) -> tuple[str, ...]:
        return CLASSES[self.scheme]

    def label_of(self, row: LabelledExchange) -> int:
        return self.labels.index(_class_of(row, self.scheme))

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
    *,
    state: Path | None = None,
    save_every: int = SAVE_EVERY,
) -> dict[str, Any]:
    """Trains the network; it ends with the weights that did best on held-out prompts.

    Args:
        trainee: Network, changed in place.
        rows: What is learnt; prefixes are added here.
        watched: Rows of other prompts, which tell when to stop.
        scratch: Folder for the Trainer, which writes nothing into it.
        on_step: Told how far the training is.
        state: Folder in which the state is kept, and of which a run that was stopped goes on.
        save_every: Steps between two states.

    Returns:
        What the record says of it.

    Raises:
        UnavailableError: it does not fit into memory.
        InputError: the state is damaged, or of another run.
    """
    recipe = trainee.recipe
    learnt = with_prefixes(rows, recipe.seed, recipe.prefixes)
    examples = _encode(trainee, learnt)
    best = _Best(trainee, _encode(trainee, watched), len(examples))
    pad, types = pad_id(trainee.tokenizer), trainee.types
    weights = class_weights([row["label"] for row in examples], len(trainee.labels))

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
            warmup_share=recipe.warmup,
            weight_decay=recipe.weight_decay,
            seed=recipe.seed,
        ),
        loss=loss,
        collate=collator,
        folder=scratch,
        device=trainee.device,
        on_step=on_step,
        is_done=is_done,
        kept=None
        if state is None
        else Kept(
            folder=state,
            identity=_identity(trainee, rows, watched),
            is_due=lambda done: done % save_every == 0 or done % best.every == 0,
            more=best.state,
            restore=best.take,
        ),
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


def _identity(
    trainee: Trainee, rows: Sequence[LabelledExchange], watched: Sequence[LabelledExchange]
) -> str:
    """What the weights that a run ends with depend on."""
    data = [[[r.prompt, r.response, trainee.label_of(r)] for r in part] for part in (rows, watched)]
    return json_hash(
        {
            "base": trainee.base_sha256,
            "scheme": trainee.scheme,
            "recipe": asdict(trainee.recipe),
            "data": data,
            "versions": installed_versions("torch", "transformers", "peft"),
        }
    )


def _encode(trainee: Trainee, rows: Sequence[LabelledExchange]) -> list[dict[str, Any]]:
    encoded = encode_pairs(
        trainee.tokenizer,
        [(row.prompt, row.response) for row in rows],
        trainee.recipe.max_length,
    )
    return [
        {
            "row": each,
            "label": trainee.label_of(row),
            "input_ids": each.ids,
        }
        for row, each in zip(rows, encoded, strict=True)
    ]


def class_weights(labels: Sequence[int], n_classes: int = len(LABELS)) -> torch.Tensor:
    """Weights float32 [class] that make classes count alike; their mean over rows is one."""
    counts = torch.bincount(torch.tensor(list(labels)), minlength=n_classes).float()
    present = counts > 0
    weights = torch.zeros(n_classes)
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
        self.weights = class_weights(self.labels.tolist(), len(trainee.labels))
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

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What a run needs of it to go on."""
        loss = self.loss if math.isfinite(self.loss) else None
        counts = {"best_loss": loss, "best_step": self.step, "worse": self.worse}
        return {f"{BEST}{name}": value for name, value in self.kept.items()}, counts

    def take(self, tensors: Mapping[str, torch.Tensor], progress: Mapping[str, Any]) -> None:
        """Takes up what `state` gave."""
        loss = progress["best_loss"]
        self.loss = math.inf if loss is None else float(loss)
        self.step, self.worse = int(progress["best_step"]), int(progress["worse"])
        self.kept = {
            name.removeprefix(BEST): value
            for name, value in tensors.items()
            if name.startswith(BEST)
        }

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
    block: float | None = None,
    uncertain: float | None = None,
    device: str = "auto",
    token: str | None = None,
    force: bool = False,
    state: Path | None = None,
    save_every: int = SAVE_EVERY,
    max_examples: int | None = None,
    on_step: OnProgress | None = None,
) -> Path:
    """Trains, calibrates and scores a classifier.

    Args:
        rows: Labelled with three classes; if some say only safe or unsafe, these two are learnt.
        encoder: `embedded`, a folder, or a Hub id of an encoder.
        out: New folder for the classifier.
        recipe: Epochs, learning rate, lengths, seed.
        group_by: Text that stands for each row's prompt in splitting, where that is not the prompt.
        rate: Share of benign exchanges that the threshold may block.
        block: P(unsafe) from which a response counts as unsafe, in place of one chosen by the rate.
        uncertain: P(unsafe) from which the classifier is uncertain; None for no such band.
        device: auto, cpu, cuda or cuda:N.
        token: Hub token.
        force: Replace a classifier that is there.
        state: Folder in which the training's state is kept; a run of the same encoder, data and
            settings goes on from it. The caller deletes it when all is done.
        save_every: Steps between two states, beside those at the end of each epoch.
        max_examples: Most rows to use, drawn evenly over labels and sources; None for all.
        on_step: Told how far the training is.

    Returns:
        The folder, which appears when it is complete.

    Raises:
        InputError: a class is missing, too few prompts, the folder exists, no such encoder, or the
            state is of another run.
        UnavailableError: the encoder cannot be fetched, or no room on the disk or in memory.
    """
    out, recipe = Path(out).expanduser(), recipe or TrainingRecipe()
    choice = ThresholdChoice(rate, block, uncertain)
    if save_every < 1:
        raise InputError("--save-every must be at least 1 step.")
    CLASSIFIERS.check_free(out=out, force=force)
    drawn_from, chosen = len(rows), draw(rows, max_examples, of=class_of)
    rows = [rows[i] for i in chosen]
    group_by = [group_by[i] for i in chosen] if group_by else None
    scheme = scheme_of_rows(rows)
    parts = split_rows(rows, group_by, recipe.validation_share)
    with CLASSIFIERS.new(out=out, force=force) as partial:
        trainee = _open_trainee(encoder, recipe, pick_device(device), token, scheme)
        learnt, watched = ([rows[i] for i in part] for part in (parts.train, parts.validation))
        outcome = fit(
            trainee, learnt, watched, partial, on_step, state=state, save_every=save_every
        )
        record = _save(trainee, partial).model_copy(
            update={
                "data": _trained_on(rows, parts, group_by, scheme).model_copy(
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
        record = calibrated(classifier, watched, choice, test)
        if {row.unsafe for row in test} == {True, False}:
            metrics = evaluate(classifier, test, groups=parts.groups[parts.test])
            record = record.model_copy(update={"metrics": metrics})
        write_record(partial, record)
    return out


def _trained_on(
    rows: Sequence[LabelledExchange], parts: Parts, group_by: Sequence[str] | None, scheme: Scheme
) -> TrainedOn:
    prompts = list(group_by) if group_by else [row.prompt for row in rows]
    classes = [_class_of(row, scheme) for row in rows]
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return TrainedOn(
        sources=tuple(sorted({row.source[:300] for row in rows})),
        parts={
            name: {
                "n": len(part),
                "n_prompts": len(np.unique(parts.groups[part])),
                "classes": {c: sum(classes[i] == c for i in part) for c in CLASSES[scheme]},
                "sha256": data_hash(rows[i] for i in part),
                "prompts": fingerprints(prompts[i] for i in part),
            }
            for name, part in named.items()
        },
    )


def _open_trainee(
    encoder: str, recipe: TrainingRecipe, device: torch.device, token: str | None, scheme: Scheme
) -> Trainee:
    from transformers import set_seed

    set_seed(recipe.seed)
    classes = CLASSES[scheme]
    name, max_length = encoder, recipe.max_length
    if encoder == ENCODER_ID:
        folder = ensure_encoder()
        model, tokenizer = load_encoder(folder)
        network: Any = PairNetwork(model, len(classes))
        limit = int(model.config.max_position_embeddings)  # type: ignore[union-attr,arg-type]
        if max_length > limit:
            raise InputError(f"{name} reads {limit} tokens at most; choose a smaller --max-length.")
        add_lora(network, recipe.rank, ALPHA_PER_RANK * recipe.rank)
    else:
        network, tokenizer, folder = open_encoder(encoder, classes, max_length, token)
        if Path(encoder).expanduser().is_dir():
            name = folder.resolve().name  # no path of this machine
        set_seed(recipe.seed)
    digest = hash_files(sorted(folder.glob("*.safetensors")))
    return Trainee(name, network, tokenizer, digest, recipe, device, scheme)


def _save(trainee: Trainee, folder: Path) -> ClassifierRecord:
    """Writes weights (and what else a whole encoder needs); gives the record so far."""
    own = isinstance(trainee.network, PairNetwork)
    if own:
        from safetensors.torch import save_file

        save_file(adapter_tensors(trainee.network), folder / WEIGHTS_FILE, {"format": "pt"})
    else:
        trainee.network.config._name_or_path = trainee.encoder
        with quiet_transformers():
            trainee.network.save_pretrained(folder, max_shard_size="100GB")
            trainee.tokenizer.save_pretrained(folder)
        for stray in {file.name for file in folder.iterdir()} - CLASSIFIERS.kind.own_files:
            (folder / stray).unlink()  # such as a chat template, which no classifier needs
    rank = trainee.recipe.rank
    return ClassifierRecord(
        schema=SCHEMA,
        kind="adapter" if own else "full",
        base=BaseEncoder(id=trainee.encoder[:300], sha256=trainee.base_sha256),
        scheme=trainee.scheme,
        labels=trainee.labels,
        max_length=trainee.recipe.max_length,
        lora=Lora(rank=rank, alpha=ALPHA_PER_RANK * rank) if own else None,
        weights_sha256=hash_file(folder / (WEIGHTS_FILE if own else FULL_WEIGHTS)),
        threshold=0.5,
    )
