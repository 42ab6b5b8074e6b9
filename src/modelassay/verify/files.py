"""What the hashes of a model's files tell against a baseline's."""

from __future__ import annotations

from modelassay.models import ModelIdentity
from modelassay.verify.baseline import FileHashes
from modelassay.verify.report import Check, Kind

SHAPE_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers")
ALWAYS_COMPARED = ("auto_map", "quantization_config")
"""Settings that act by being there, whatever a version of transformers fills in for others."""
WRAPPING = ("tokenizer", "chat template", "generation config", "config")
"""What surrounds the weights and decides what the model does as much as they do."""
NAMED_SETTINGS = 6


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


def judge_files(
    checks: tuple[Check, ...], mine: FileHashes, theirs: FileHashes
) -> tuple[Kind | None, str]:
    """The kind of difference and the reason where files decide it; None where they don't."""
    outcome = {check.name: check.outcome for check in checks}
    shapes = [
        f"{key} is {mine.config[key]}, not {theirs.config[key]}"
        for key in SHAPE_SETTINGS
        if key in mine.config and key in theirs.config and mine.config[key] != theirs.config[key]
    ]
    if shapes:
        return Kind.OTHER_ARCHITECTURE, f"The architecture is another: {', '.join(shapes)}."
    if outcome["weights"] == "differs":
        return None, ""
    if changed := wrapping_changes(checks):
        return (
            Kind.REWRAPPED,
            f"The weights are the baseline's, file by file, but {'; '.join(changed)}.",
        )
    return Kind.IDENTICAL, "Every weight file has the baseline's sha256."


def judge_shape(mine: FileHashes, theirs: ModelIdentity) -> tuple[Kind | None, str]:
    """The same by the architecture alone, for a baseline of ams-scanner, which has no hashes."""
    shapes = [
        f"{key} is {mine.config[key]}, not {value}"
        for key, value in (
            ("model_type", f'"{theirs.architecture}"'),
            ("num_hidden_layers", str(theirs.n_layers)),
            ("hidden_size", str(theirs.hidden_size)),
        )
        if key in mine.config and mine.config[key] != value
    ]
    if shapes:
        return Kind.OTHER_ARCHITECTURE, f"The architecture is another: {', '.join(shapes)}."
    return None, ""


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
