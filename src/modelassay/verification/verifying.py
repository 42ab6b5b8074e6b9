"""`verify()`: is this the model it claims to be?

Evidence in the order of its cost, and as soon as it suffices the rest is not looked at:

1. the architecture, from the config;
2. sha256 of the weight files, the tokenizer, the chat template and the settings;
3. only where the weights are other files: the weights and activations themselves.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from modelassay.baselines.creating import settings, weight_hashes
from modelassay.baselines.hub_store import REFERENCE, pull_baseline
from modelassay.baselines.record import Baseline, FileHashes
from modelassay.baselines.stores import find_local, list_baselines
from modelassay.concepts import concepts_for
from modelassay.errors import InputError
from modelassay.examination import Examination, OnPhase, examine, silent
from modelassay.models import ModelInfo, load
from modelassay.models.identity import hash_chat_template, hash_tokenizer
from modelassay.models.loading import find_sources, load_tokenizer
from modelassay.models.sources import Source
from modelassay.verification.differences import (
    ROUNDING_DISTANCE,
    ROUNDING_LOG_ODDS,
    compare,
    judge,
)
from modelassay.verification_report import (
    Check,
    Differences,
    Kind,
    Origin,
    VerificationReport,
)

TRUSTED = "MODELASSAY_TRUSTED"
"""Environment variable: namespaces on the Hub whose baselines are trusted, with commas between."""
SHAPE_SETTINGS = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")
SOURCE_OPTIONS = ("revision", "adapter", "gguf_file", "token", "trust_remote_code", "max_bytes")


def verify(
    model: str,
    against: str | Baseline | None = None,
    *,
    on_progress: OnPhase = silent,
    **load_options: Any,
) -> VerificationReport:
    """Compares a model with a baseline.

    Args:
        model: A model id (see `modelassay.load`).
        against: A baseline, its name, its folder, or its Hub data set; None takes the one that was
            made from a model of this id.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: the model or the baseline cannot be read.
        UnavailableError: something needed is not there now.
    """
    started = time.perf_counter()
    found = find_baseline(
        against if against is not None else model,
        required=against is not None,
        token=load_options.get("token"),
    )
    if found is None:
        return VerificationReport(
            model=model,
            revision=None,
            verified=None,
            kind=None,
            checks=(),
            baseline=None,
            baseline_model=None,
            reasons=(
                f"There is no baseline of {model} on this machine; name one with --against, or make"
                " one from a copy that you trust with `modelassay baseline create`.",
            ),
        )
    baseline, origin = found
    on_progress("files", 0, 1)
    options = {key: value for key, value in load_options.items() if key in SOURCE_OPTIONS}
    source, adapter = find_sources(model, **options)
    trust = bool(load_options.get("trust_remote_code"))
    files = hash_source(model, source, adapter, trust_remote_code=trust)
    on_progress("files", 1, 1)
    report = judge_files(model, source.commit, files, baseline, origin)
    if report is None:
        on_progress("loading", 0, 1)
        loaded = load(model, **load_options)
        examined = examine(
            loaded,
            mode="quick",
            concepts=concepts_for("quick"),
            chat_template=baseline.index.chat_template_used,
            signature=True,
            on_progress=on_progress,
        )
        report = conclude(loaded.info, files, examined, baseline, origin)
    report.provenance["seconds"] = round(time.perf_counter() - started, 2)
    return report


def judge_files(
    model_id: str, commit: str | None, files: FileHashes, baseline: Baseline, origin: Origin
) -> VerificationReport | None:
    """The report where files decide, None where activations have to be looked at."""
    checks = compare_files(files, baseline.index.files)
    kind, reason = _kind_by_files(checks, files, baseline.index.files)
    if kind is None:
        return None
    return _report(model_id, commit, kind, (reason,), checks, None, baseline, origin)


def conclude(
    info: ModelInfo, files: FileHashes, examined: Examination, baseline: Baseline, origin: Origin
) -> VerificationReport:
    """The report on a model that has been read.

    Args:
        info: Whose files and activations these are.
        files: Hashes of its files.
        examined: What was found in it, with a signature.
        baseline: What it is compared with.
        origin: Where that is from.
    """
    if (decided := judge_files(info.id, info.revision, files, baseline, origin)) is not None:
        if decided.kind is Kind.OTHER_ARCHITECTURE:
            return decided
        return replace(decided, differences=compare(examined, baseline))
    differences = compare(examined, baseline)
    kind = judge(differences)
    checks = (*compare_files(files, baseline.index.files), *_activation_checks(differences))
    reasons = _explain(kind, differences)
    return _report(info.id, info.revision, kind, reasons, checks, differences, baseline, origin)


def _report(
    model_id: str,
    commit: str | None,
    kind: Kind | None,
    reasons: tuple[str, ...],
    checks: tuple[Check, ...],
    differences: Differences | None,
    baseline: Baseline,
    origin: Origin,
) -> VerificationReport:
    return VerificationReport(
        model=model_id,
        revision=commit,
        verified=None if kind is None else kind in (Kind.IDENTICAL, Kind.RECAST),
        kind=kind,
        checks=checks,
        baseline=origin,
        baseline_model=baseline.index.model.id,
        reasons=(*reasons, *trust_remarks(baseline, origin)),
        differences=differences,
    )


def trust_remarks(baseline: Baseline, origin: Origin) -> tuple[str, ...]:
    """What to know of who published a baseline from the Hub before one relies on it."""
    if origin.author is None:
        return ()
    publisher = baseline.index.model.id.partition("/")[0]
    trusted = {name.strip() for name in os.environ.get(TRUSTED, "").split(",")}
    if origin.author in trusted:
        return (f"The baseline is by {origin.author}, whom you trust ({TRUSTED}).",)
    if origin.author == publisher:
        return (f"The baseline is by {origin.author}, who publishes the model.",)
    return (
        f"Careful: the baseline is by {origin.author}, the model by {publisher}; anybody can"
        f" publish a baseline. Add {origin.author} to {TRUSTED} if you trust it.",
    )


def find_baseline(
    reference: str | Baseline, *, required: bool = True, token: str | bool | None = None
) -> tuple[Baseline, Origin] | None:
    """A baseline by value, name, folder, the id of the model it was made from, or Hub data set.

    Raises:
        InputError: there is none and it is required, or it is damaged.
        UnavailableError: it is on the Hub and that cannot be reached.
    """
    if isinstance(reference, Baseline):
        return reference, Origin(reference.name, "folder")
    if (found := find_local(reference) if required else None) is not None:
        return found
    for index, origin in list_baselines():
        if index.model.id == reference:
            return find_local(origin.id)
    if not required:
        return None
    if REFERENCE.fullmatch(reference):
        return pull_baseline(reference, token=token)
    raise InputError(
        f"No baseline {reference[:120]!r}: give a name from `modelassay baseline list`, a folder, a"
        " Hub data set, or the id of a model that a baseline was made from."
    )


def hash_source(
    model_id: str, source: Source, adapter: Source | None, *, trust_remote_code: bool
) -> FileHashes:
    """Hashes of a model's files without opening the weights."""
    tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
    return FileHashes(
        weights=weight_hashes(source, adapter, model_id),
        tokenizer=hash_tokenizer(tokenizer),
        chat_template=hash_chat_template(tokenizer),
        generation_config=None,
        config=settings(source),
    )


def compare_files(mine: FileHashes, theirs: FileHashes) -> tuple[Check, ...]:
    """What hashes alone tell."""
    checks = []
    same = sorted(mine.weights.values()) == sorted(theirs.weights.values())
    detail = (
        f"all {len(mine.weights)} weight files have the baseline's sha256"
        if same
        else "the weight files are not the baseline's"
    )
    checks.append(Check("weights", "same" if same else "differs", detail))
    for name, title in (("tokenizer", "tokenizer"), ("chat_template", "chat template")):
        a, b = getattr(mine, name), getattr(theirs, name)
        if a == b:
            checks.append(Check(title, "same", "same sha256" if a else "neither has one"))
        else:
            which = "differs" if a and b else "is missing here" if b else "is not in the baseline"
            checks.append(Check(title, "differs", f"the {title} {which}"))
    if mine.config:
        keys = sorted({*mine.config, *theirs.config})
        other = [key for key in keys if mine.config.get(key) != theirs.config.get(key)]
        named = ", ".join(other[:6]) + ("…" if len(other) > 6 else "")
        checks.append(
            Check("config", "differs", f"other settings: {named}")
            if other
            else Check("config", "same", "all settings are the same")
        )
    else:
        checks.append(Check("config", "unknown", "a GGUF file has no config.json"))
    return tuple(checks)


def _kind_by_files(
    checks: tuple[Check, ...], mine: FileHashes, theirs: FileHashes
) -> tuple[Kind | None, str]:
    outcome = {check.name: check for check in checks}
    shapes = [
        f"{key} is {mine.config[key]}, not {theirs.config[key]}"
        for key in SHAPE_SETTINGS
        if key in mine.config and key in theirs.config and mine.config[key] != theirs.config[key]
    ]
    if shapes:
        return Kind.OTHER_ARCHITECTURE, f"The architecture is another: {', '.join(shapes)}."
    if outcome["weights"].outcome == "differs":
        return None, ""
    changed = [check.detail for check in checks if check.outcome == "differs"]
    if changed:
        return (
            Kind.REWRAPPED,
            f"The weights are the baseline's, file by file, but {'; '.join(changed)}.",
        )
    return Kind.IDENTICAL, "Every weight file has the baseline's sha256."


def _activation_checks(found: Differences) -> tuple[Check, ...]:
    if not found.same_tokens:
        return (Check("activations", "unknown", "the two read other tokens for the same prompts"),)
    far = max(found.distances, key=lambda block: found.distances[block])
    lowest = {name: min(values.values()) for name, values in found.cosines.items()}
    harmful, harmless = found.log_odds_shift
    rows = [
        Check(
            "signature",
            "same" if found.distances[far] <= ROUNDING_DISTANCE else "differs",
            f"relative distance {found.distances[far]:.3f} at block {far}, the farthest",
        ),
        Check(
            "refusal",
            "same" if found.log_odds_rms <= ROUNDING_LOG_ODDS else "differs",
            f"log-odds change by {found.log_odds_rms:.2f} nats (root mean square),"
            f" {harmful:+.2f} on harmful and {harmless:+.2f} on harmless probes",
        ),
    ]
    if lowest:
        worst = min(lowest, key=lambda name: lowest[name])
        rows.append(
            Check(
                "directions",
                "same" if lowest[worst] > 0.95 else "differs",
                f"lowest cosine with the baseline's directions {lowest[worst]:.3f} ({worst})",
            )
        )
    for name, (here, there, (low, high)) in found.separation.items():
        inside = low <= here <= high
        rows.append(
            Check(
                f"separation of {name}",
                "same" if inside else "differs",
                f"{here:.2f}σ, baseline {there:.2f}σ ({low:.2f} to {high:.2f})",
            )
        )
    return tuple(rows)


def _explain(kind: Kind | None, found: Differences) -> tuple[str, ...]:
    if kind is None:
        return (
            "The tokenizer or chat template makes other tokens of the same prompts, so activations"
            " cannot be compared; the files are not the baseline's.",
        )
    far = max(found.distances.values())
    texts = {
        Kind.RECAST: "The weight files are others, but the model computes what the baseline's does"
        f" up to rounding (relative distance {far:.3f}).",
        Kind.FINE_TUNE: "The weights were changed: activations lie farther from the baseline's"
        f" than rounding brings them (relative distance {far:.2f}), yet it is the same model"
        " underneath.",
        Kind.ABLATED: "A direction has been erased from the weights that the baseline's model has:"
        " the mark of abliteration.",
        Kind.OTHER_MODEL: "Activations are unrelated to the baseline's (relative distance"
        f" {far:.2f}): another model of the same architecture.",
    }
    return (texts[kind],)
