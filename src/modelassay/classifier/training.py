"""Fine-tunes an encoder on labelled exchanges and writes a classifier's folder.

The rows are split by prompt. Training stops when held-out prompts are judged no better; those set
the threshold, too, and others that were never looked at give the numbers in the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelassay.classifier.calibrating import calibrate_card
from modelassay.classifier.card import (
    CARD_FILE,
    SCHEMA,
    BaseEncoder,
    Card,
    CardData,
    CardMetrics,
    Lora,
    write_card,
)
from modelassay.classifier.evaluating import evaluate
from modelassay.classifier.fitting import Trainee, TrainingRecipe, fit
from modelassay.classifier.model import FULL_WEIGHTS, load_classifier, pick_device
from modelassay.classifier.network import (
    WEIGHTS_FILE,
    PairNetwork,
    adapter_tensors,
    add_lora,
    load_encoder,
)
from modelassay.classifier.splitting import Parts, split_rows
from modelassay.data.exchanges import LABELS, LabelledExchange, data_hash
from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors, locked, new_folder
from modelassay.files.provenance import installed_versions
from modelassay.hub import check_weight_files, fetch_model
from modelassay.models.encoder import ENCODER_ID, ensure_encoder
from modelassay.models.identity import hash_file
from modelassay.progress import OnProgress

DEFAULT_ENCODER = "answerdotai/ModernBERT-base"
ALPHA_PER_RANK = 2


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
        force: Replace a folder that is there.
        on_step: Told how far the training is.

    Returns:
        The folder, which appears when it is complete.

    Raises:
        InputError: a class is missing, too few prompts, the folder exists, no such encoder.
        UnavailableError: the encoder cannot be fetched, or no room on the disk or in memory.
    """
    out, recipe = Path(out).expanduser(), recipe or TrainingRecipe()
    check_free(out, force=force)
    parts = split_rows(rows, group_by)
    with explain_os_errors(f"training {out}"), locked(out), new_folder(out) as partial:
        trainee = _open_trainee(encoder, recipe, pick_device(device), token)
        learnt, watched = ([rows[i] for i in part] for part in (parts.train, parts.validation))
        outcome = fit(trainee, learnt, watched, partial, on_step)
        card = _save(trainee, partial)
        card = card.model_copy(
            update={
                "data": _data(rows, parts),
                "training": asdict(recipe) | outcome,
                "versions": installed_versions("modelassay", "torch", "transformers", "peft"),
            }
        )
        write_card(partial, card)
        write_card(partial, _measured(partial, card, rows, parts, rate, device))
    return out


def _measured(
    folder: Path,
    card: Card,
    rows: Sequence[LabelledExchange],
    parts: Parts,
    rate: float,
    device: str,
) -> Card:
    """The card with threshold, calibration and metrics, measured on the files as they are saved."""
    classifier = load_classifier(str(folder), device=device)
    validation, test = ([rows[i] for i in part] for part in (parts.validation, parts.test))
    card = calibrate_card(classifier, validation, rate, test)
    classes = {row.unsafe for row in test}
    metrics = None
    if classes == {True, False}:
        scored = evaluate(classifier, test, groups=parts.groups[parts.test])
        metrics = CardMetrics.model_validate(scored.to_dict())
    return card.model_copy(update={"metrics": metrics})


def _data(rows: Sequence[LabelledExchange], parts: Parts) -> CardData:
    named = {"train": parts.train, "validation": parts.validation, "test": parts.test}
    return CardData(
        sources=tuple(sorted({row.source[:300] for row in rows})),
        parts={
            name: {
                "n": len(part),
                "n_prompts": len(np.unique(parts.groups[part])),
                "classes": {label: sum(rows[i].label == label for i in part) for label in LABELS},
                "sha256": data_hash(rows[i] for i in part),
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
        network: Any = PairNetwork(model, int(model.config.hidden_size))  # type: ignore[union-attr]
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


def check_free(out: Path, *, force: bool) -> None:
    """Refuses a folder that is taken, before anything is trained; only a classifier is replaced.

    Raises:
        InputError: something is there.
    """
    if out.exists() and not (out / CARD_FILE).is_file():
        raise InputError(f"{out} is there and is no classifier; give a new folder.")
    if out.exists() and not force:
        raise InputError(f"{out} exists already; give a new folder for --out, or --force.")


def _save(trainee: Trainee, folder: Path) -> Card:
    """Writes weights (and what else a whole encoder needs); gives the card so far."""
    own = isinstance(trainee.network, PairNetwork)
    if own:
        from safetensors.torch import save_file

        save_file(adapter_tensors(trainee.network), folder / WEIGHTS_FILE, {"format": "pt"})
    else:
        trainee.network.config._name_or_path = trainee.encoder
        trainee.network.save_pretrained(folder, max_shard_size="100GB")
        trainee.tokenizer.save_pretrained(folder)
    rank = trainee.recipe.rank
    return Card(
        schema=SCHEMA,
        kind="adapter" if own else "full",
        base=BaseEncoder(id=trainee.encoder[:300], sha256=trainee.base_sha256),
        max_length=trainee.recipe.max_length,
        lora=Lora(rank=rank, alpha=ALPHA_PER_RANK * rank) if own else None,
        weights_sha256=hash_file(folder / (WEIGHTS_FILE if own else FULL_WEIGHTS)),
        threshold=0.5,
    )
