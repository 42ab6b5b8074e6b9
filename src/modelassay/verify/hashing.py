"""Hashes of everything that makes a model what it is, without opening its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.files.provenance import json_hash, text_hash
from modelassay.models import LoadedModel
from modelassay.models.identity import hash_chat_template, hash_file, hash_tokenizer
from modelassay.models.loading import load_config, load_tokenizer
from modelassay.models.sources import ADAPTER_CONFIG, Source, read_json
from modelassay.verify.baseline import FileHashes

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


def hash_model(model: LoadedModel) -> FileHashes:
    """Hashes of a loaded model's files."""
    # Code of its own has been run already if its configuration comes from there.
    remote_code = type(model.network.config).__module__.startswith("transformers_modules")
    return _hash(
        model.source,
        model.adapter,
        model.tokenizer,
        load_config(model.source, trust_remote_code=remote_code),
    )


def hash_sources(
    source: Source, adapter: Source | None, *, trust_remote_code: bool = False
) -> FileHashes:
    """Hashes of the files of a model that is not loaded.

    Raises:
        InputError: its tokenizer or configuration cannot be read.
    """
    return _hash(
        source,
        adapter,
        load_tokenizer(source, trust_remote_code=trust_remote_code),
        load_config(source, trust_remote_code=trust_remote_code),
    )


def _hash(source: Source, adapter: Source | None, tokenizer: Any, config: Any) -> FileHashes:
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
