"""`verify()`: is this the model it claims to be?

Evidence in the order of its cost, and as soon as it suffices the rest is not looked at:

1. the architecture, from the config;
2. sha256 of the weight files, the tokenizer, the chat template and the settings; for a model on the
   Hub the Hub states them, and its weights are not even fetched;
3. only where the weights are other files: the weights and activations themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from typing_extensions import Unpack

from modelassay.artifacts import Origin
from modelassay.data.concepts import concepts_for
from modelassay.measures.examination import Evidence, examine
from modelassay.models import LoadedModel, ModelIdentity, ModelOptions, ModelRef, open_model
from modelassay.models.finding import check_named, find_sources
from modelassay.models.refs import fetch_options, require_template, take_ref
from modelassay.progress import OnPhase, silent
from modelassay.reading.device import OnDevice, here
from modelassay.threads import sharing
from modelassay.verify.baseline import BASELINES, Baseline, FileHashes, load_baseline
from modelassay.verify.differences import compare, judge, measured_checks
from modelassay.verify.files import (
    compare_files,
    hash_sources,
    judge_files,
    judge_shape,
    other_storage,
    wrapping_changes,
)
from modelassay.verify.report import (
    Check,
    Differences,
    Finding,
    Kind,
    VerificationReport,
)


@sharing
def verify(
    model: str | ModelRef,
    against: str | Baseline | None = None,
    *,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> VerificationReport:
    """Compares a model with a baseline.

    Args:
        model: An id (see `modelassay.load`) or a reference.
        against: A baseline, its name, its folder, or its Hub data set; None takes the one that was
            made from a model of this id.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: the model or the baseline cannot be read.
        UnavailableError: something needed is not there now.
    """
    started = time.perf_counter()
    require_template(load_options, "A baseline")
    ref, options = take_ref(model, load_options)
    decided = verify_files(ref, against, on_progress=on_progress, **options)
    if isinstance(decided, VerificationReport):
        report = decided
    else:
        if decided.commit is not None:  # what was hashed, not what a branch holds by now
            ref = replace(ref, revision=decided.commit)
        loaded = open_model(ref, on_progress=on_progress, **options)
        report = verify_loaded(loaded, decided, on_progress=on_progress)
    report.provenance["seconds"] = round(time.perf_counter() - started, 2)
    return report


@dataclass(frozen=True)
class Undecided:
    """Files do not decide; weights and activations have to be looked at."""

    files: FileHashes
    baseline: Baseline
    origin: Origin
    commit: str | None
    """Of the model's repository on the Hub."""


@sharing
def verify_loaded(
    loaded: LoadedModel,
    undecided: Undecided,
    *,
    on_device: OnDevice = here,
    on_progress: OnPhase = silent,
) -> VerificationReport:
    """The other part of `verify`: weights and activations decide.

    Args:
        loaded: The model whose files decided nothing.
        undecided: What `verify_files` gave of it.
        on_device: Where the model runs, for those who lend a GPU for as long as it does.
        on_progress: Told (phase, done, total).
    """
    baseline = undecided.baseline
    examined = examine(
        loaded,
        mode="quick",
        concepts=concepts_for("quick"),
        chat_template=baseline.index.chat_template_used,
        identity=True,
        n_swaps=1,  # separations are held against the baseline's intervals
        search=baseline.sketch is None,
        on_device=on_device,
        on_progress=on_progress,
    )
    return conclude(loaded.info, undecided.files, examined, baseline, undecided.origin)


def verify_files(
    model: str | ModelRef,
    against: str | Baseline | None = None,
    *,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> VerificationReport | Undecided:
    """The part of `verify` that opens no weights, nor fetches them if the Hub states their hashes.

    Arguments and errors are those of `verify`.
    """
    ref, options = take_ref(model, load_options)
    found = find_baseline(
        against if against is not None else ref.id,
        required=against is not None,
        token=options.get("token"),
    )
    if found is None:
        check_named(ref)
        return VerificationReport(
            model=ref.id,
            reasons=(
                f"There is no baseline of {ref.id} on this machine; name one with --against, or"
                " make one from a copy that you trust with `modelassay baseline create`.",
            ),
        )
    baseline, origin = found
    on_progress("files", 0, 1)
    source, adapter = find_sources(ref, weights=False, **fetch_options(options))
    files = hash_sources(source, adapter, trust_remote_code=bool(options.get("trust_remote_code")))
    on_progress("files", 1, 1)
    report = decide_by_files(ref.id, source.commit, files, baseline, origin)
    # A revision is of what MODEL names, be it an adapter.
    named = adapter if adapter is not None and ref.adapter is None else source
    return report or Undecided(files, baseline, origin, named.commit)


def decide_by_files(
    model_id: str, commit: str | None, files: FileHashes, baseline: Baseline, origin: Origin
) -> VerificationReport | None:
    """The report where files decide, None where weights and activations have to be looked at."""
    theirs = baseline.index.files
    checks = compare_files(files, theirs) if theirs else ()
    if theirs is None:
        judgement = judge_shape(files, baseline.index.model)
    else:
        shape = baseline.index.model
        stated = {"hidden_size": shape.hidden_size, "num_hidden_layers": shape.n_layers}
        judgement = judge_files(checks, files, theirs, stated)
    if judgement is None:
        return None
    return _report(model_id, commit, judgement, checks, None, baseline, origin)


def conclude(
    info: ModelIdentity, files: FileHashes, examined: Evidence, baseline: Baseline, origin: Origin
) -> VerificationReport:
    """The report on a model that has been read.

    Args:
        info: Whose files and activations these are.
        files: Hashes of its files.
        examined: What was found in it, with a signature.
        baseline: What it is compared with.
        origin: Where that is from.
    """
    decided = decide_by_files(info.id, info.revision, files, baseline, origin)
    if decided is not None and decided.kind is Kind.OTHER_ARCHITECTURE:
        return decided
    differences = compare(examined, baseline)
    if decided is not None:
        return replace(decided, differences=differences)
    if baseline.index.instrument != "modelassay":
        judgement, checks = _of_imported(baseline.index.instrument, differences)
    else:
        judgement, checks = _of_measured(info, files, baseline, differences)
    return _report(info.id, info.revision, judgement, checks, differences, baseline, origin)


def _of_measured(
    info: ModelIdentity, files: FileHashes, baseline: Baseline, differences: Differences
) -> tuple[Finding, tuple[Check, ...]]:
    """What hashes, weights and activations tell together."""
    theirs = baseline.index.files
    converted = "gguf" in (info.quantization, baseline.index.model.quantization)
    checks = compare_files(files, theirs, converted=converted) if theirs else ()
    judgement = judge(differences)
    same = judgement.kind in (Kind.RECAST, Kind.REWRAPPED)
    if same and (changed := wrapping_changes(checks)):
        # Settings move activations too: where the weights are the same, they are the reason.
        reason = judgement.reason.partition(", yet")[0].rstrip(".")
        judgement = Finding(Kind.REWRAPPED, f"{reason}, but {'; '.join(changed)}.")
    elif same and theirs and (notes := other_storage(files, theirs)):
        reason = f"{judgement.reason.rstrip('.')} ({'; '.join(notes)})."
        judgement = replace(judgement, reason=reason)
    return judgement, (*checks, *measured_checks(differences))


def _of_imported(instrument: str, differences: Differences) -> tuple[Finding, tuple[Check, ...]]:
    """What a baseline of another tool can tell beside the architecture: no identity."""
    reason = (
        f"The baseline was made by {instrument}: it has no hashes of files, does not say which"
        " prompts it read, and read padding where prompts of a batch differ in length. It can show"
        " another architecture and cannot prove an identity; make a baseline with `modelassay"
        " baseline create`."
    )
    checks = (
        Check(f"direction of {name}", "unknown", f"cosine {value:.2f} with ours at layer {layer}")
        for name, values in differences.cosines.items()
        for layer, value in values.items()
    )
    return Finding(None, reason, verified=None), tuple(checks)


def _report(
    model_id: str,
    commit: str | None,
    judgement: Finding,
    checks: tuple[Check, ...],
    differences: Differences | None,
    baseline: Baseline,
    origin: Origin,
) -> VerificationReport:
    return VerificationReport(
        model=model_id,
        revision=commit,
        verified=judgement.verified,
        kind=judgement.kind,
        checks=checks,
        baseline=origin,
        baseline_model=baseline.index.model.id,
        reasons=(judgement.reason, *origin.remarks("baseline", baseline.index.model.id)),
        differences=differences,
    )


def find_baseline(
    reference: str | Baseline,
    *,
    required: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
) -> tuple[Baseline, Origin] | None:
    """A baseline by value, name, folder, the id of the model it was made from, or Hub data set.

    Args:
        reference: What names it.
        required: False looks only for one that was made from a model of this id.
        revision: Of a Hub data set, in place of the reference's own.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        InputError: there is none and it is required, or it is damaged.
        UnavailableError: it is on the Hub and that cannot be reached.
    """
    if isinstance(reference, Baseline):
        return reference, Origin(reference.name, "folder")
    if required:
        found = BASELINES.find(reference, revision=revision, token=token)
    else:
        found = BASELINES.of_model(reference)
    return None if found is None else (load_baseline(found.folder), found.origin)
