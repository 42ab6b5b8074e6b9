"""Classifiers of open-constitution: a sequence classifier beside a `classifier_config.json`.

They read prompt and response as one text, and have a band of doubt between two thresholds. What
the file says becomes a record of ours; its scores are left out, for they were taken on prompts of
the training as well.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelassay.classifier.encoding import MIN_LENGTH
from modelassay.classifier.record import (
    CONFIG_FILE,
    FULL_WEIGHTS,
    SCHEMA,
    BaseEncoder,
    ClassifierRecord,
    Text,
    TrainedOn,
)
from modelassay.data.labels import CLASSES, Scheme
from modelassay.errors import InputError, first_line
from modelassay.files.records import Share
from modelassay.hub import check_weight_files
from modelassay.models.identity import hash_file

MAX_BYTES = 1_000_000
LEAST_DOUBT = 1e-6
"""For a config that is uncertain from 0 on."""


class _Config(BaseModel):
    """The part of the file that is needed; it has more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, protected_namespaces=())

    model_id: Text = "unknown"
    max_length: int = Field(default=512, ge=MIN_LENGTH, le=8192)
    allow_threshold: Share = 0.35
    block_threshold: Share = 0.65
    label_mapping: dict[str, Text] | None = None
    text_format: Literal["user_assistant"] = "user_assistant"


def foreign_record(folder: Path) -> ClassifierRecord:
    """The record of a classifier of open-constitution.

    Raises:
        InputError: a file is missing, damaged, pickled, or its classes are none that are known.
    """
    file = folder / CONFIG_FILE
    if file.stat().st_size > MAX_BYTES:
        raise InputError(f"{file} is larger than the {MAX_BYTES} bytes it may have.")
    try:
        config = _Config.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"]) or "the file"
        raise InputError(f"{file}: {where}: {found['msg'][:120]}.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is not valid JSON ({first_line(error, 80)}).") from error
    if config.allow_threshold > config.block_threshold:
        raise InputError(f"{file}: allow_threshold must not lie above block_threshold.")
    check_weight_files(str(folder), [each.name for each in folder.iterdir()])
    if not (folder / FULL_WEIGHTS).is_file():
        raise InputError(f"{folder} lacks {FULL_WEIGHTS}.")
    scheme, labels = _labels(config, folder)
    return ClassifierRecord(
        schema=SCHEMA,
        kind="full",
        base=BaseEncoder(id=config.model_id, sha256=None),
        scheme=scheme,
        labels=labels,
        text_format=config.text_format,
        max_length=config.max_length,
        weights_sha256=hash_file(folder / FULL_WEIGHTS),
        threshold=config.block_threshold,
        uncertain=max(config.allow_threshold, LEAST_DOUBT),
        data=TrainedOn(sources=("not recorded by open-constitution",)),
        training={"from": "open-constitution"},
    )


def _labels(config: _Config, folder: Path) -> tuple[Scheme, tuple[str, ...]]:
    """The classes by column: of the mapping, else of the model's own config, else by number."""
    named = config.label_mapping
    if named is None:
        try:
            own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            named = {str(key): str(name) for key, name in dict(own["id2label"]).items()}
        except (OSError, ValueError, KeyError, TypeError):
            named = {"0": "LABEL_0", "1": "LABEL_1"}  # what transformers does not write down
    names = tuple(named[key] for key in sorted(named, key=lambda key: key.zfill(3)))
    for scheme, classes in CLASSES.items():
        if sorted(names) == sorted(classes):
            return scheme, names
        if names == tuple(f"LABEL_{i}" for i in range(len(classes))):
            return scheme, classes
    raise InputError(
        f"{folder} tells {len(names)} classes apart ({', '.join(names)[:80]}); known are"
        f" {' or '.join(', '.join(classes) for classes in CLASSES.values())}."
    )
