"""Classifier folders of open-constitution as classifiers of this tool.

Such a folder is what transformers saves of a sequence classifier, beside `classifier_config.json`:
its classes (two, or the three of this tool), its thresholds and the length that it reads. It reads
prompt and response as one text; the record says so, and exchanges are written that way for it.
Weights in `pytorch_model.bin` are read without running that pickle, and kept as safetensors.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field
from torch import Tensor

from modelassay.artifacts import ImportedFrom
from modelassay.classifier.encoding import MIN_LENGTH, special_ids
from modelassay.classifier.model import load_classifier
from modelassay.classifier.record import (
    CLASSIFIERS,
    FULL_WEIGHTS,
    SCHEMA,
    TOKENIZER_FILES,
    BaseEncoder,
    ClassifierRecord,
    write_record,
)
from modelassay.data.labels import CLASSES, LABELS, SCHEMES, Scheme
from modelassay.errors import InputError, first_line
from modelassay.files.provenance import installed_versions
from modelassay.files.records import Line, Record, read_record
from modelassay.foreign.reading import left_out, plain_file, refuse_newer, shown
from modelassay.foreign.torch_file import MAX_NUMBERS, Limits, read_torch_file
from modelassay.hub import check_weight_files
from modelassay.models.identity import hash_file

TOOL = "open-constitution"
CONFIG, MODEL_CONFIG = "classifier_config.json", "config.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
MAX_TENSORS = 4_000
MAX_CONFIG_BYTES = 1_000_000
LEAST_DOUBT = 1e-6
"""For settings that are uncertain from 0 on."""
NO_COUNTERPART = {
    "data_path": "a file of the machine that trained it",
    "seed": "of its training, which was not seen",
    "metrics": "on rows that may share prompts with those that it learnt from; `classifier eval`"
    " scores it",
}


class _Config(Record):
    """`classifier_config.json`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    model_id: Line = "unknown"
    max_length: int = Field(ge=MIN_LENGTH, le=8192)
    block_threshold: float = Field(gt=0, le=1)
    allow_threshold: float | None = Field(default=None, ge=0, le=1)
    label_mapping: dict[Line, Line] = Field(min_length=2, max_length=8)
    text_format: Line = "user_assistant"


@dataclass(frozen=True)
class ForeignClassifier:
    """A classifier folder of another tool whose settings were checked."""

    folder: Path
    record: ClassifierRecord
    weights: Path


def read_classifier(folder: Path) -> ForeignClassifier:
    """Checks a folder's settings, and that its weights can be read without running a pickle.

    Raises:
        InputError: a file is missing, damaged, too large, a link to elsewhere, or of a layout that
            is not known.
    """
    config = plain_file(folder / CONFIG)
    settings = read_record(config, _Config, f"config of a classifier of {TOOL}", MAX_CONFIG_BYTES)
    extra = dict(settings.model_extra or {})
    refuse_newer(extra, config)
    names = [settings.label_mapping.get(str(i)) for i in range(len(settings.label_mapping))]
    labels = tuple(str(name) for name in names)
    schemes: list[Scheme] = [each for each in SCHEMES if CLASSES[each] == labels]
    scheme = next(iter(schemes), None)
    if scheme is None:
        raise InputError(
            f"{config} has the classes {shown(list(settings.label_mapping.values()))}; known are"
            f" safe and unsafe, or {', '.join(LABELS)}, in this order."
        )
    if settings.text_format != "user_assistant":
        raise InputError(
            f"{config}: the text format {shown(settings.text_format)} is not known;"
            " `user_assistant` is."
        )
    weights = _weights_of(folder)
    limit = CLASSIFIERS.kind.files[FULL_WEIGHTS]
    if weights.stat().st_size > limit:
        raise InputError(f"{weights} is larger than the {limit // 10**9} GB of a classifier.")
    doubt, limit = settings.allow_threshold, settings.block_threshold
    if doubt is not None and doubt > limit:
        raise InputError(f"{config}: allow_threshold must not lie above block_threshold.")
    binary = scheme == "binary"
    two = ("it does not tell refusals from other safe responses",) if binary else ()
    sha256 = hash_file(weights)
    record = ClassifierRecord(
        schema=SCHEMA,
        kind="full",
        base=BaseEncoder(id=settings.model_id, sha256=None),
        scheme=scheme,
        labels=labels,
        text_format="user_assistant",
        max_length=settings.max_length,
        weights_sha256=sha256,
        threshold=limit,
        uncertain=None if doubt is None else max(doubt, LEAST_DOUBT),
        versions=installed_versions("modelassay", "torch", "transformers"),
        imported=ImportedFrom(
            tool=TOOL,
            files={CONFIG: hash_file(config), weights.name: sha256},
            unknown=(
                f"the weights of {settings.model_id[:100]} before it was trained",
                "which prompts it was trained on, so no row can be left out of a score",
                "how often its threshold blocks harmless responses; `classifier calibrate` sets"
                " one that is measured",
                "how well it does",
                *two,
            ),
            otherwise=(
                f"block_threshold {limit:g}: `threshold`",
                *(() if doubt is None else (f"allow_threshold {doubt:g}: `uncertain`",)),
                f"of an exchange above {settings.max_length} tokens the start of the prompt and"
                " the end of the response are read; there its beginning",
            ),
            left_out=tuple(left_out(extra, NO_COUNTERPART)),
        ),
    )
    return ForeignClassifier(folder, record, weights)


def _weights_of(folder: Path) -> Path:
    """The file of weights: safetensors, else what `torch.save` wrote, whole."""
    names = [file.name for file in folder.iterdir()]
    has_safetensors = any(name.endswith(".safetensors") for name in names)
    if PICKLED_WEIGHTS in names and not has_safetensors:
        return plain_file(folder / PICKLED_WEIGHTS)
    check_weight_files(str(folder), names)
    return plain_file(folder / FULL_WEIGHTS)


def write_classifier(found: ForeignClassifier, partial: Path) -> None:
    """Copies what belongs to a classifier, writes its record, and opens it once.

    Raises:
        InputError: it cannot be opened without code of its own, or its files do not fit together.
    """
    kinds = CLASSIFIERS.kind.files
    record = found.record
    is_pickled = found.weights.name == PICKLED_WEIGHTS
    for name in (MODEL_CONFIG, FULL_WEIGHTS, *TOKENIZER_FILES):
        path = found.folder / name
        if name == FULL_WEIGHTS and is_pickled:
            _unpickle(found.weights, partial / name, kinds[name])
            record = record.model_copy(update={"weights_sha256": hash_file(partial / name)})
            continue
        if not path.exists() and not path.is_symlink() and name in TOKENIZER_FILES:
            continue
        if plain_file(path).stat().st_size > kinds[name]:
            raise InputError(f"{path} is larger than such a file can be.")
        shutil.copyfile(path, partial / name)
    write_record(partial, record)
    check_opens(partial, found)


def _unpickle(weights: Path, target: Path, limit: int) -> None:
    """Writes the tensors of a `torch.save` file as safetensors; nothing in it is run."""
    from safetensors.torch import save_file

    most = max(MAX_NUMBERS, weights.stat().st_size)
    held = read_torch_file(weights, Limits("a classifier", limit, MAX_TENSORS, most))
    other = next((name for name, value in held.items() if not isinstance(value, Tensor)), None)
    if other is not None or not held:
        raise InputError(
            f"{weights} is not the state_dict of a model: {shown(other) if held else 'nothing'} in"
            " it is no tensor."
        )
    save_file(held, target, {"format": "pt"})


def check_opens(partial: Path, found: ForeignClassifier) -> None:
    """Opens the copy as it will be used, and asks it once.

    Raises:
        InputError: see `write_classifier`.
    """
    try:
        classifier = load_classifier(str(partial), device="cpu")
    except InputError as error:
        text = str(error).replace(str(partial), str(found.folder))
        raise InputError(text) from error
    tokenizer: Any = classifier.tokenizer
    opening, separator = special_ids(tokenizer)
    plain = {"truncation": False, "padding": False}
    ids = tokenizer("User:\na", add_special_tokens=False, **plain)["input_ids"]
    if tokenizer("User:\na", **plain)["input_ids"] != [opening, *ids, separator]:
        raise InputError(
            f"The tokenizer of {found.folder} puts other special tokens around a text than is known"
            " here."
        )
    try:
        finite = bool((classifier.predict([("a", "b")]) >= 0).all())
    except Exception as error:  # anybody's weights
        raise InputError(f"{found.folder} cannot be asked: {first_line(error, 80)}.") from error
    weights = all(bool(each.isfinite().all()) for each in classifier.network.parameters())
    if not finite or not weights:
        raise InputError(f"{found.weights} holds numbers that are not finite (NaN or infinity).")
