"""An SAE's folder: what its record says, and where such folders are.

Whoever wrote one is a stranger: sizes, fields and hashes are checked before anything is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from modelassay.artifacts import Kind, Store, write_lines
from modelassay.errors import InputError, first_line
from modelassay.files.records import Count, LayerIndex, Line, Name, Record, Sha256
from modelassay.models.identity import ModelIdentity, hash_file, states
from modelassay.sae.evaluating import SaeMetrics
from modelassay.sae.training import Kind as Training

SAE_SCHEMA = "modelassay.sae/1"
RECORD_FILE, CONFIG_FILE = "dictionary.json", "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
LABELS_FILE, LABEL_TABLE_FILE = "labels.json", "labels.parquet"
MAX_CONFIG_BYTES, MAX_WEIGHTS_BYTES = 100_000, 20_000_000_000
MAX_LABELS_BYTES, MAX_LABEL_TABLE_BYTES = 500_000, 2_000_000_000
STATED = ("architecture", "n_layers", "hidden_size", "weights_sha256")
"""Of the model that an SAE belongs to."""


class SAERecord(Record):
    """What an SAE is."""

    schema_: Literal["modelassay.sae/1"] = Field(default=SAE_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: Annotated[ModelIdentity, states(*STATED)]
    layer: LayerIndex
    kind: Training
    width: int = Field(gt=0, lt=10**7)
    k: int = Field(gt=0, lt=10**6)
    dtype: Literal["float32", "bfloat16"]
    tokens: Count
    """Activations it was trained on."""
    passes: Count
    data: tuple[Line, ...] = Field(max_length=100)
    metrics: SaeMetrics
    versions: dict[Line, Line]
    weights_sha256: Sha256


def check_sae(folder: Path) -> SAERecord:
    """Checks that an SAE's files are whole and belong together, without opening the weights.

    Raises:
        InputError: one is missing, damaged, too large, or does not fit the others.
    """
    record = SAES.open(folder).record
    weights, config_file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    config = read_config(folder)
    if (config.get("d_in"), config.get("d_sae")) != (record.model.hidden_size, record.width):
        raise InputError(f"{config_file} does not fit {RECORD_FILE}; fetch both again.")
    if hash_file(weights) != record.weights_sha256:
        raise InputError(f"{weights} is not the file that {RECORD_FILE} names; fetch both again.")
    return record


def read_config(folder: Path) -> dict[str, Any]:
    """sae-lens's config, once the sizes of both its files are found sound.

    Raises:
        InputError: a file is missing, too large, or no config.
    """
    weights, config_file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    try:
        if weights.stat().st_size > MAX_WEIGHTS_BYTES:
            raise InputError(f"{weights} is larger than an SAE can be.")
        if config_file.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{config_file} is larger than an SAE's config can be.")
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{folder} is not a whole SAE: {first_line(error)}.") from error
    except ValueError as error:
        raise InputError(f"{config_file} is no config of an SAE.") from error
    if not isinstance(config, dict):
        raise InputError(f"{config_file} is no config of an SAE.")
    return config


def metrics_row(record: SAERecord) -> dict[str, Any]:
    """What an SAE is, and how it scored on held-out text, as one row of a table."""
    return {
        "dictionary": record.name,
        "model": record.model.id,
        "layer": record.layer,
        "kind": record.kind,
        "width": record.width,
        "k": record.k,
        "tokens": record.tokens,
        **record.metrics.to_dict(),
    }


def describe_sae(record: SAERecord) -> list[str]:
    """What an SAE is and how good, in lines for a person."""
    m = record.metrics
    undone = (
        "its absence costs next to nothing on these texts"
        if m.loss_recovered is None
        else f"{m.loss_recovered:.1%} of the damage of its absence undone"
    )
    return [
        f"{record.name}: {record.width} features of layer {record.layer} of {record.model.id}"
        f" ({record.kind}, k {record.k}); trained on {record.tokens} activations,"
        f" {record.passes} times each",
        f"  held out, n={m.n_tokens} tokens: explains {m.explained_variance:.1%} of the variance"
        f" with {m.l0:.1f} features a token; {m.dead_share:.1%} never fire",
        f"  in the layer's place it adds {m.loss_added:.3f} nats to a loss of {m.loss:.3f}"
        f" ({undone})",
    ]


SAES = Store(
    Kind(
        noun="SAE",
        folder="dictionaries",
        record=SAERecord,
        files={
            RECORD_FILE: 500_000,
            CONFIG_FILE: MAX_CONFIG_BYTES,
            WEIGHTS_FILE: MAX_WEIGHTS_BYTES,
            LABELS_FILE: MAX_LABELS_BYTES,
            LABEL_TABLE_FILE: MAX_LABEL_TABLE_BYTES,
        },
        model_id=lambda record: record.model.id,
        check=check_sae,
        summary=lambda record: f"layer {record.layer}, {record.width} features",
        describe=describe_sae,
        values=lambda record: {"model": record.model.id, "layer": record.layer},
        write_table=lambda record, path: write_lines([metrics_row(record)], path),
        tag="modelassay-dictionary",
        more_tags=("sparse-autoencoder", "saelens"),
    )
)
"""Sparse autoencoders that take a layer's activations apart into features."""
