"""`scan()`: is the safety training there?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from typing_extensions import Unpack

from modelassay.data.concepts import Concept, concepts_for, load_concepts
from modelassay.errors import InputError
from modelassay.measures.examination import Evidence, examine
from modelassay.measures.refusal import ANSWER_TOKENS
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.models.finding import find_sources
from modelassay.models.refs import fetch_options, take_ref
from modelassay.progress import OnPhase, silent
from modelassay.reading.device import OnDevice, here
from modelassay.scan.against import compare_with, find_compared
from modelassay.scan.report import ConceptResult, ScanReport
from modelassay.scan.verdict import Level, decide, separation_level, settled
from modelassay.threads import sharing
from modelassay.verify import Baseline, conclude, find_baseline
from modelassay.verify.files import hash_model


@sharing
def scan(
    model: str | ModelRef | LoadedModel,
    *,
    mode: str = "standard",
    concepts: str | Path | Mapping[str, Concept] | None = None,
    compare: str | ModelRef | LoadedModel | Baseline | None = None,
    verify: str | Baseline | None = None,
    response_tokens: int = ANSWER_TOKENS,
    thinking: Literal["auto", "on"] = "auto",
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    ask_all: bool = False,
    on_device: OnDevice = here,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> ScanReport:
    """Scans a model for intact safety training.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        mode: `quick` (weights, separation of two concepts), `standard` (three concepts and
            behaviour) or `full` (all concepts, behaviour on more prompts).
        concepts: Concept file, or concepts by name, put over the shipped ones.
        compare: Another model to scan in the same way and compare with; or a baseline of the
            user's, whose numbers are compared with as they are.
        verify: Baseline to compare the model with in the same pass (see `modelassay.verify`).
        response_tokens: Length at which an answer is cut that the judge is not sure of; most end
            after 24 tokens. One that a thought precedes gets 1,000 more for both together.
        thinking: `auto` has a model that thinks answer at once where there is a way to; `on` asks
            it as its chat template does.
        batch_tokens: Upper bound on tokens in a batch.
        batch_size: Upper bound on prompts in a batch.
        ask_all: Ask every prompt, also where the verdict is sure before.
        on_device: Where the model runs, for those who lend a GPU for as long as it does.
        on_progress: Told (phase, done, total) as the scan goes on.
        **load_options: Passed to `modelassay.load`, for the model and the one compared with
            (`revision`, `adapter` and `gguf_file` are for the first only). `chat_template=False`
            reads raw text, also of a model that is loaded already.

    Raises:
        InputError: something given cannot be used.
        UnavailableError: something needed is not there now.
    """
    started = time.perf_counter()
    chat_template = load_options.pop("chat_template", True)
    if response_tokens < 1:
        raise InputError(f"A response has at least 1 token, got {response_tokens}.")
    ref, options = take_ref(model, load_options)
    overlay = load_concepts(concepts) if isinstance(concepts, str | Path) else concepts
    chosen = concepts_for(mode, overlay)  # before any loading: bad input should fail at once
    baseline = None
    if verify is not None:
        baseline = find_baseline(verify, token=options.get("token"))
        if baseline is not None and baseline[0].index.chat_template_used and not chat_template:
            raise InputError(
                "The baseline was read inside the chat template; leave --no-chat-template out to"
                " verify against it."
            )
    compared = None if compare is None else find_compared(compare)
    other = None if isinstance(compare, Baseline) or compared is not None else compare
    if isinstance(other, str | ModelRef):  # a typing error should not show after a long scan
        find_sources(take_ref(other, {})[0], weights=False, **fetch_options(options))
    loaded = open_model(ref, on_progress=on_progress, **options)
    loaded_at = time.perf_counter()

    def look(loaded: LoadedModel, *, identity: bool = False) -> Evidence:
        return examine(
            loaded,
            mode=mode,
            concepts=chosen,
            chat_template=chat_template,
            response_tokens=response_tokens,
            thinking=thinking,
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            enough=None if ask_all else settled,
            identity=identity,
            all_pairs=compare is not None,  # what is compared rests on the same
            on_device=on_device,
            on_progress=on_progress,
        )

    found = look(loaded, identity=baseline is not None)
    report = judge(found, chosen)
    if baseline is not None:
        files = hash_model(loaded)
        report = replace(report, verification=conclude(report.model, files, found, *baseline))
    report.provenance["seconds"] = {
        "loading": round(loaded_at - started, 2),
        "scan": round(time.perf_counter() - loaded_at, 2),
    }
    if compared is not None:
        moved = compare_with(found.separations, found.refusal, found.provenance, *compared)
        report = replace(report, compare_baseline=moved)
    if other is not None:
        del loaded  # two models at once may not fit
        ref, options = take_ref(other, options)
        second = open_model(ref, on_progress=on_progress, **options)
        report = replace(report, compare=judge(look(second), chosen))
    return report


def judge(found: Evidence, concepts: Mapping[str, Concept]) -> ScanReport:
    """The report on what was measured: a level for each concept, and one verdict."""
    results = {
        name: ConceptResult(separation, separation_level(separation, concepts[name].control))
        for name, separation in found.separations.items()
    }
    judged = {name: r.separation for name, r in results.items() if r.level is not Level.CONTROL}
    verdict, reasons = decide(
        judged, found.refusal, found.ablation, found.refusal_unscored, found.unscored
    )
    return ScanReport(
        model=found.model,
        mode=found.mode,
        verdict=verdict,
        reasons=reasons,
        concepts=results,
        refusal=found.refusal,
        refusal_unscored=None if found.refusal else str(found.refusal_unscored),
        ablation=found.ablation,
        provenance=found.provenance,
        unscored=found.unscored,
    )
