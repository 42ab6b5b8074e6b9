"""The hashes of everything that makes a model what it is, and what they tell against a baseline's.

No weights are opened: where a model is on the Hub, the Hub states their hashes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.files.provenance import json_hash, text_hash
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.identity import hash_chat_template, hash_file, hash_tokenizer
from modelassay.models.loading import load_config, load_tokenizer
from modelassay.models.sources import ADAPTER_CONFIG, Source, read_json
from modelassay.verify.baseline import FileHashes
from modelassay.verify.report import Check, Finding, Kind

VOLATILE_SETTINGS = (
    "_name_or_path",
    "architectures",  # a GGUF file names none; model_type stays
    "transformers_version",
    "dtype",
    "torch_dtype",
)
"""Settings that differ between copies of one model; numbers are recorded by themselves."""
ADAPTER_NOTES = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Settings of an adapter that do nothing to the weights."""
MAX_SETTING = 300
"""Characters; longer ones are hashed."""
SHAPE_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers")
ALWAYS_COMPARED = ("auto_map", "quantization_config")
"""Settings that act by being there, whatever a version of transformers fills in for others."""
WRAPPING = ("tokenizer", "chat template", "generation config", "config")
"""What surrounds the weights and decides what the model does as much as they do."""
NAMED_SETTINGS = 6


def hash_model(model: LoadedModel) -> FileHashes:
    """Hashes of a loaded model's files."""
    # Code of its own has been run already if its configuration comes from there.
    remote_code = type(model.network.config).__module__.startswith("transformers_modules")
    return hash_sources(
        model.source, model.adapter, tokenizer=model.tokenizer, trust_remote_code=remote_code
    )


def hash_sources(
    source: Source,
    adapter: Source | None,
    *,
    tokenizer: Any = None,
    trust_remote_code: bool = False,
) -> FileHashes:
    """Hashes of the files of a model that need not be loaded.

    Args:
        source: The files.
        adapter: Those of an adapter over it.
        tokenizer: The model's, if it is loaded.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        InputError: its tokenizer or configuration cannot be read.
    """
    tokenizer = tokenizer or load_tokenizer(source, trust_remote_code=trust_remote_code)
    config = load_config(source, trust_remote_code=trust_remote_code)
    return FileHashes(
        weights=_weights(source, adapter),
        tokenizer=hash_tokenizer(tokenizer),
        chat_template=hash_chat_template(tokenizer),
        generation_config=_generation_config(source, config),
        config=_settings(config),
    )


def _weights(source: Source, adapter: Source | None) -> dict[str, str]:
    """sha256 of each file that decides the weights, by name."""
    hashes = {file.name: _sha256(source, file) for file in source.weight_files()}
    if adapter is not None:
        for file in adapter.weight_files():
            hashes[f"adapter/{file.name}"] = _sha256(adapter, file)
        # Rank, scale and targets decide the weights as much as the tensors do.
        values = read_json(adapter.folder / ADAPTER_CONFIG)
        hashes[f"adapter/{ADAPTER_CONFIG}"] = _hash_values(values, ADAPTER_NOTES)
    if (after := (adapter or source).after_load) is not None:
        hashes |= {f"organism/{file.name}": hash_file(file) for file in after.files}
        if after.rounding:  # as another file of its weights would have them
            hashes["organism/numerics"] = text_hash(after.rounding)
    return dict(sorted(hashes.items()))


def _sha256(source: Source, file: Path) -> str:
    return source.sha256_on_hub(file) or hash_file(file)


def _settings(config: Any) -> dict[str, str]:
    """Each setting as JSON text, long ones hashed."""
    texts = {
        key: json.dumps(value, sort_keys=True, default=str)
        for key, value in config.to_dict().items()
        if key not in VOLATILE_SETTINGS
    }
    return {
        key: text if len(text) <= MAX_SETTING else "sha256:" + text_hash(text)
        for key, text in sorted(texts.items())
    }


def _generation_config(source: Source, config: Any) -> str:
    """Hash of what acts on generation: the file's settings, or those that follow without one."""
    from transformers import GenerationConfig

    file = source.folder / "generation_config.json"
    if file.is_file():
        try:
            acting = GenerationConfig.from_dict(read_json(file))
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {first_line(error)}") from error
    else:
        acting = GenerationConfig.from_model_config(config)
    return _hash_values(acting.to_diff_dict(), (*VOLATILE_SETTINGS, "_from_model_config"))


def _hash_values(values: dict[str, Any], without: Sequence[str]) -> str:
    kept = {key: value for key, value in values.items() if key not in without}
    return json_hash(kept)


def compare_files(
    mine: FileHashes, theirs: FileHashes, *, converted: bool = False
) -> tuple[Check, ...]:
    """Compares weights, tokenizer, template and settings.

    Args:
        mine: Of the candidate.
        theirs: Of the baseline.
        converted: The candidate is a GGUF file, whose tokenizer is put together on loading and
            cannot be expected to have the same hash.
    """
    same = sorted(mine.weights.values()) == sorted(theirs.weights.values())
    files = (
        f"all {len(mine.weights)} weight files have"
        if len(mine.weights) > 1
        else "the weight file has"
    )
    return (
        Check("weights", "same", f"{files} the baseline's sha256")
        if same
        else Check("weights", "differs", "the weight files are not the baseline's"),
        _compare("tokenizer", mine.tokenizer, theirs.tokenizer, converted),
        _compare("chat template", mine.chat_template, theirs.chat_template, converted=False),
        _compare("generation config", mine.generation_config, theirs.generation_config, converted),
        _compare_settings(mine.config, theirs.config, same, converted),
    )


def judge_files(checks: tuple[Check, ...], mine: FileHashes, theirs: FileHashes) -> Finding | None:
    """The kind of difference and the reason where files decide it; None where they don't."""
    if shape := other_shape(mine.config, theirs.config):
        return Finding(Kind.OTHER_ARCHITECTURE, shape)
    if checks[0].outcome == "differs":
        return None
    if changed := wrapping_changes(checks):
        reason = f"The weights are the baseline's, file by file, but {'; '.join(changed)}."
        return Finding(Kind.REWRAPPED, reason)
    reason = "Every weight file has the baseline's sha256."
    return Finding(Kind.IDENTICAL, reason, verified=True)


def judge_shape(mine: FileHashes, theirs: ModelIdentity) -> Finding | None:
    """The same by the architecture alone, for a baseline of ams-scanner, which has no hashes."""
    stated = (f'"{theirs.architecture}"', str(theirs.hidden_size), str(theirs.n_layers))
    shape = other_shape(mine.config, dict(zip(SHAPE_SETTINGS, stated, strict=True)))
    return Finding(Kind.OTHER_ARCHITECTURE, shape) if shape else None


def other_shape(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """What to say where settings state another architecture; empty where they don't."""
    both = [key for key in SHAPE_SETTINGS if key in mine and key in theirs]
    shapes = [
        f"{key} is {mine[key]}, not {theirs[key]}" for key in both if mine[key] != theirs[key]
    ]
    return f"The architecture is another: {', '.join(shapes)}." if shapes else ""


def wrapping_changes(checks: tuple[Check, ...]) -> list[str]:
    """What differs around the weights."""
    return [c.detail for c in checks if c.name in WRAPPING and c.outcome == "differs"]


def _compare(title: str, mine: str | None, theirs: str | None, converted: bool) -> Check:
    if mine == theirs:
        return Check(title, "same", "same sha256" if mine else "neither has one")
    if converted:
        return Check(title, "unknown", f"the {title} of a GGUF file is put together again")
    if mine and theirs:
        return Check(title, "differs", f"the {title} differs")
    where = "is missing here" if theirs else "is not in the baseline"
    return Check(title, "differs", f"the {title} {where}")


def _compare_settings(
    mine: dict[str, str], theirs: dict[str, str], same_weights: bool, converted: bool
) -> Check:
    """Compares what both state; other versions of transformers fill in other defaults."""
    keys = mine.keys() & theirs.keys() | (mine.keys() | theirs.keys()) & {*ALWAYS_COMPARED}
    if not same_weights:  # then the numbers may be others, and the sketch tells of them
        keys -= {"quantization_config"}
    other = [key for key in sorted(keys) if mine.get(key) != theirs.get(key)]
    if not other:
        return Check("config", "same", "all settings that both state are the same")
    named = ", ".join(other[:NAMED_SETTINGS]) + ("…" if len(other) > NAMED_SETTINGS else "")
    return Check("config", "unknown" if converted else "differs", f"other settings: {named}")
