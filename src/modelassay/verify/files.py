"""The hashes of everything that makes a model what it is, and what they tell against a baseline's.

No weights are opened: where a model is on the Hub, the Hub states their hashes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.files.provenance import json_hash, text_hash
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.identity import (
    hash_chat_template,
    hash_file,
    hash_template_lines,
    hash_tokenizer,
    tokenizer_parts,
)
from modelassay.models.loading import load_config, load_tokenizer
from modelassay.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Source, read_json
from modelassay.verify.baseline import FileHashes
from modelassay.verify.report import Check, Finding, Kind
from modelassay.verify.settings import (
    VOLATILE,
    as_texts,
    differing,
    language_type,
    named,
    settings_of,
)

ADAPTER_NOTES = ("base_model_name_or_path", "inference_mode", "peft_version", "revision")
"""Settings of an adapter that do nothing to the weights."""
SHAPE_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers")
WRAPPING = ("tokenizer", "chat template", "generation config", "config")
"""What surrounds the weights and decides what the model does as much as they do."""
IDLE_PARTS = ("model_max_length",)
"""Of a tokenizer: nothing is cut unless it is asked for."""


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
    tokenizer = tokenizer or load_tokenizer(source, adapter, trust_remote_code=trust_remote_code)
    config = load_config(source, trust_remote_code=trust_remote_code)
    generation = _generation(source, config)
    return FileHashes(
        weights=_weights(source, adapter),
        tokenizer=hash_tokenizer(tokenizer),
        tokenizer_parts=tokenizer_parts(tokenizer),
        chat_template=hash_chat_template(tokenizer),
        template_lines=hash_template_lines(tokenizer),
        generation_config=json_hash(generation),
        generation=as_texts(generation),
        config=settings_of(config),
    )


def _weights(source: Source, adapter: Source | None) -> dict[str, str]:
    """sha256 of each file that decides the weights, by name."""
    hashes = {file.name: _sha256(source, file) for file in source.weight_files()}
    if adapter is not None:
        for file in adapter.weight_files():
            hashes[f"adapter/{file.name}"] = _sha256(adapter, file)
        # Rank, scale and targets decide the weights as much as the tensors do.
        values = read_json(adapter.folder / ADAPTER_CONFIG)
        hashes[f"adapter/{ADAPTER_CONFIG}"] = json_hash(_without(values, ADAPTER_NOTES))
    if (after := (adapter or source).after_load) is not None:
        for file in after.files:  # adapters that are added have one name in folders of their own
            own = file.name != ADAPTER_WEIGHTS
            name = file.name if own else f"{file.parent.name}/{file.name}"
            hashes[f"organism/{name}"] = hash_file(file)
        if after.how:  # as another file of its weights would have them
            hashes["organism/numerics"] = text_hash(after.how)
    return dict(sorted(hashes.items()))


def _sha256(source: Source, file: Path) -> str:
    return source.sha256_on_hub(file) or hash_file(file)


def _generation(source: Source, config: Any) -> dict[str, Any]:
    """What acts on generation: the file's settings, or those that follow without one."""
    from transformers import GenerationConfig

    file = source.folder / "generation_config.json"
    if file.is_file():
        try:
            acting = GenerationConfig.from_dict(read_json(file))
        except (TypeError, ValueError) as error:
            raise InputError(f"{file} cannot be read: {first_line(error)}") from error
    else:
        acting = GenerationConfig.from_model_config(config)
    return _without(acting.to_diff_dict(), (*VOLATILE, "_from_model_config"))


def _without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in names}


def compare_files(
    mine: FileHashes, theirs: FileHashes, *, converted: bool = False
) -> tuple[Check, ...]:
    """Compares weights, tokenizer, template and settings.

    Args:
        mine: Of the candidate.
        theirs: Of the baseline.
        converted: One of the two is a GGUF file, whose tokenizer is put together on loading and
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
        _compare_tokenizers(mine, theirs, converted),
        _compare_templates(mine, theirs),
        _compare(
            "generation config",
            mine.generation_config,
            theirs.generation_config,
            converted,
            _other_keys(mine.generation, theirs.generation),
        ),
        _compare_settings(mine.config, theirs.config, same, converted),
    )


def judge_files(
    checks: tuple[Check, ...],
    mine: FileHashes,
    theirs: FileHashes,
    shape: Mapping[str, int] | None = None,
) -> Finding | None:
    """The kind of difference and the reason where files decide it; None where they don't.

    Args:
        checks: What was compared.
        mine: Of the candidate.
        theirs: Of the baseline.
        shape: What the baseline says of its language model, where its settings are of several.
    """
    stated = {key: str(value) for key, value in (shape or {}).items()}
    if other := other_shape(mine.config, stated | theirs.config):
        return Finding(Kind.OTHER_ARCHITECTURE, other)
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
    other = [key for key in both if mine[key] != theirs[key]]
    if "model_type" in other and language_type(mine) == language_type(theirs):
        other.remove("model_type")  # the same language model, in another tower or by another name
    shapes = [f"{key} is {mine[key]}, not {theirs[key]}" for key in other]
    return f"The architecture is another: {', '.join(shapes)}." if shapes else ""


def other_storage(mine: FileHashes, theirs: FileHashes) -> list[str]:
    """In what other form the same weights are kept, as far as settings and names of files tell."""
    gguf, was_gguf = (any(n.endswith(".gguf") for n in m.weights) for m in (mine, theirs))
    notes = [f"{'a' if gguf else 'not a'} GGUF file"] if gguf != was_gguf else []
    for key in ("model_type", "tie_word_embeddings"):
        here, there = mine.config.get(key), theirs.config.get(key)
        if None not in (here, there) and here != there:
            notes.append(f"{key} is {here}, not {there}")
    if len(mine.weights) != len(theirs.weights):
        notes.append(f"{len(mine.weights)} weight files, not {len(theirs.weights)}")
    return notes


def wrapping_changes(checks: tuple[Check, ...]) -> list[str]:
    """What differs around the weights."""
    return [c.detail for c in checks if c.name in WRAPPING and c.outcome == "differs"]


def _compare(
    title: str, mine: str | None, theirs: str | None, converted: bool, which: Sequence[str] = ()
) -> Check:
    """Compares two hashes; `which` are the parts in which the two differ, if that is known."""
    if mine == theirs:
        return Check(title, "same", "same sha256" if mine else "neither has one")
    parts = f" ({named(list(which))})" if which else ""
    if converted:
        return Check(title, "unknown", f"the {title} of a GGUF file is put together again{parts}")
    if mine and theirs:
        return Check(title, "differs", f"the {title} differs{parts}")
    where = "is missing here" if theirs else "is not in the baseline"
    return Check(title, "differs", f"the {title} {where}")


def _compare_tokenizers(mine: FileHashes, theirs: FileHashes, converted: bool) -> Check:
    parts = _other_keys(mine.tokenizer_parts, theirs.tokenizer_parts)
    if mine.tokenizer != theirs.tokenizer and parts and not {*parts} - {*IDLE_PARTS}:
        return Check(
            "tokenizer", "same", f"the same but for {', '.join(parts)}, which cuts nothing"
        )
    return _compare("tokenizer", mine.tokenizer, theirs.tokenizer, converted, parts)


def _compare_templates(mine: FileHashes, theirs: FileHashes) -> Check:
    hashes, lines = (mine.chat_template, theirs.chat_template), mine.template_lines
    if hashes[0] != hashes[1] and lines is not None and lines == theirs.template_lines:
        return Check("chat template", "same", "the same text with other line ends")
    return _compare("chat template", mine.chat_template, theirs.chat_template, converted=False)


def _other_keys(mine: Mapping[str, str] | None, theirs: Mapping[str, str] | None) -> list[str]:
    """Keys whose values differ; none where one of the two was not recorded."""
    if mine is None or theirs is None:
        return []
    return [k for k in sorted(mine.keys() | theirs.keys()) if mine.get(k) != theirs.get(k)]


def _compare_settings(
    mine: dict[str, str], theirs: dict[str, str], same_files: bool, converted: bool
) -> Check:
    """Compares what both state; other versions of transformers fill in other defaults."""
    found = differing(mine, theirs, converted=converted, same_files=same_files)
    acting, unknown, idle = found
    if acting:
        return Check("config", "differs", f"other settings: {named(acting)}")
    if unknown:
        return Check("config", "unknown", f"other settings: {named(unknown)}")
    if idle:
        return Check("config", "same", f"the same but for settings that do nothing: {named(idle)}")
    return Check("config", "same", "all settings that both state are the same")
