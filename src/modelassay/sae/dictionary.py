"""A dictionary on disk: sae-lens's own files, and a record of its model and of how good it is.

`cfg.json` and `sae_weights.safetensors` open in sae-lens as they are; `dictionary.json` is ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from modelassay import untrusted
from modelassay.activations import OnProgress
from modelassay.cache import new_folder, write_text_atomically
from modelassay.errors import InputError, first_line
from modelassay.models import LoadedModel
from modelassay.models.identity import hash_file
from modelassay.sae.evaluating import evaluate_sae
from modelassay.sae.training import Kind, Settings
from modelassay.untrusted import Block, Count, Line, Name, Record, Sha256, Share

SAE_SCHEMA = "modelassay.sae/1"
RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE = "dictionary.json", "sae_weights.safetensors", "cfg.json"
FILES = (RECORD_FILE, WEIGHTS_FILE, CONFIG_FILE)
MAX_RECORD_BYTES, MAX_CONFIG_BYTES = 500_000, 100_000
MAX_WEIGHTS_BYTES = 20_000_000_000
ARCHITECTURES = ("jumprelu", "topk", "standard")
"""What training writes; others come with sae-lens's releases."""


class DictionaryModel(Record):
    """The model that a dictionary belongs to."""

    id: Line
    architecture: Line
    n_layers: int = Field(gt=0, lt=2000)
    hidden_size: int = Field(gt=0, lt=200_000)
    weights_sha256: Sha256


class DictionaryMetrics(Record):
    """As `SaeMetrics`; a poor dictionary explains less than nothing."""

    explained_variance: float = Field(le=1)
    l0: float = Field(ge=0)
    dead_share: Share
    loss: float
    loss_spliced: float
    loss_mean: float
    loss_added: float
    loss_recovered: float
    n_tokens: Count


class DictionaryRecord(Record):
    """What a dictionary is."""

    schema_: Literal["modelassay.sae/1"] = Field(default=SAE_SCHEMA, alias="schema")
    name: Name
    created: Line
    model: DictionaryModel
    layer: Block
    kind: Kind
    width: int = Field(gt=0, lt=10**7)
    k: int = Field(gt=0, lt=10**6)
    dtype: Literal["float32", "bfloat16"]
    tokens: Count
    """Activations it was trained on."""
    passes: Count
    data: tuple[Line, ...] = Field(max_length=100)
    metrics: DictionaryMetrics
    versions: dict[Line, Line]
    weights_sha256: Sha256


@dataclass(frozen=True)
class Dictionary:
    """A trained dictionary."""

    record: DictionaryRecord
    sae: Any
    """A sae-lens SAE in float32."""

    def check_belongs_to(self, model: LoadedModel) -> None:
        """Refuses a model whose activations it cannot read.

        A fine-tune of its model can be read, so only the shape has to fit.

        Raises:
            InputError: says how they differ.
        """
        own, info = self.record.model, model.info
        if (own.n_layers, own.hidden_size) != (info.n_layers, info.hidden_size):
            raise InputError(
                f"The dictionary {self.record.name} belongs to {own.id}, which has {own.n_layers}"
                f" blocks of width {own.hidden_size}; {info.id} has {info.n_layers} of"
                f" {info.hidden_size}."
            )


def save_dictionary(
    sae: Any,
    model: LoadedModel,
    settings: Settings,
    held_out: Sequence[str],
    folder: Path,
    *,
    name: str,
    data: Sequence[str],
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    on_progress: OnProgress | None = None,
) -> Dictionary:
    """Writes a trained dictionary as a new folder, whole or not at all.

    It is scored as it lies there, in the dtype that is kept.

    Args:
        sae: As `train_sae` gives it.
        model: The model it was trained on.
        settings: How it was trained.
        held_out: Texts to score it on.
        folder: Where to; one that is there is replaced.
        name: What it is called.
        data: What it was trained on.
        dtype: Of the weights on disk.
        on_progress: Told (contexts scored, contexts in all).
    """
    from safetensors.torch import load_file, save_file

    with new_folder(folder) as partial:
        sae.save_inference_model(partial)
        weights = partial / WEIGHTS_FILE
        tensors = {name: value.clone() for name, value in load_file(weights).items()}
        save_file({n: v.to(getattr(torch, dtype)) for n, v in tensors.items()}, weights)
        config = json.loads((partial / CONFIG_FILE).read_text(encoding="utf-8"))
        config["device"] = "cpu"
        config["metadata"] = {
            **{k: v for k, v in config.get("metadata", {}).items() if _is_plain(v)},
            "model_name": model.info.id,
            "hook_name": f"blocks.{settings.layer}.hook_resid_post",
        }
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        served = read_sae(partial, str(model.device))
        metrics = evaluate_sae(
            model,
            served,
            settings.layer,
            held_out,
            context=settings.context,
            on_progress=on_progress,
        )
        info = model.info
        record = DictionaryRecord(
            name=name,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            model=DictionaryModel(
                id=info.id,
                architecture=info.architecture,
                n_layers=info.n_layers,
                hidden_size=info.hidden_size,
                weights_sha256=info.weights_sha256,
            ),
            layer=settings.layer,
            kind=settings.kind,
            width=settings.width,
            k=settings.k,
            dtype=dtype,
            tokens=settings.tokens,
            passes=settings.passes,
            data=tuple(data),
            metrics=DictionaryMetrics(**metrics.to_dict()),
            versions={name: version(name) for name in ("torch", "transformers", "sae-lens")},
            weights_sha256=hash_file(weights),
        )
        text = record.model_dump_json(by_alias=True, indent=1)
        write_text_atomically(partial / RECORD_FILE, text + "\n")
    return Dictionary(record, served)


def load_dictionary(folder: Path, device: str = "cpu") -> Dictionary:
    """Reads and checks a dictionary that `save_dictionary` wrote.

    Raises:
        InputError: a file is missing, damaged, too large, or does not fit the others.
    """
    record = read_record(folder)
    weights, config_file = folder / WEIGHTS_FILE, folder / CONFIG_FILE
    try:
        if weights.stat().st_size > MAX_WEIGHTS_BYTES:
            raise InputError(f"{weights} is larger than a dictionary can be.")
        if config_file.stat().st_size > MAX_CONFIG_BYTES:
            raise InputError(f"{config_file} is larger than a dictionary's config can be.")
        config = json.loads(config_file.read_text(encoding="utf-8"))
        fits = (config["d_in"], config["d_sae"]) == (record.model.hidden_size, record.width)
        if config["architecture"] not in ARCHITECTURES or not fits:
            raise InputError(f"{config_file} does not fit {RECORD_FILE}; fetch both anew.")
    except OSError as error:
        raise InputError(f"{folder} is no whole dictionary: {first_line(error)}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config_file} is no config of a dictionary.") from error
    if hash_file(weights) != record.weights_sha256:
        raise InputError(f"{weights} is not the file that {RECORD_FILE} speaks of; fetch it anew.")
    return Dictionary(record, read_sae(folder, device))


def read_sae(folder: Path, device: str = "cpu") -> Any:
    """The sae-lens SAE in a folder, in float32.

    Raises:
        InputError: sae-lens cannot read it, or its weights are no numbers.
    """
    import sae_lens

    try:
        sae = sae_lens.SAE.load_from_disk(folder, device=device, dtype="float32")
    except Exception as error:  # whatever sae-lens makes of files of a stranger
        raise InputError(f"{folder} holds no dictionary: {first_line(error)}.") from error
    if not all(bool(value.isfinite().all()) for value in sae.state_dict().values()):
        raise InputError(f"The dictionary in {folder} has weights that are no numbers.")
    sae.eval()
    return sae


def read_record(folder: Path) -> DictionaryRecord:
    """The record of a dictionary.

    Raises:
        InputError: it is not there, or damaged.
    """
    return untrusted.read_record(
        folder / RECORD_FILE, DictionaryRecord, "dictionary", MAX_RECORD_BYTES
    )


def _is_plain(value: Any) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, str | int | float | bool) and finite
