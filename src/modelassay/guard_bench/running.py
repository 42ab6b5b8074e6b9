"""A model's responses without its guard and with it, to the same prompts, by the same generator.

What a response said is not kept unless asked for: results hold its sha256, reports nothing of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelassay.data.judging import NOTHING_SAID, UNFINISHED, Judge
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, json_hash, text_hash
from modelassay.guard.policy import SecondOpinion, Thresholds
from modelassay.guard.streaming import Guard
from modelassay.guard_bench.counting import CountedClassifier, counted
from modelassay.guard_bench.report import GuardBenchReport, make_report
from modelassay.guard_bench.results import ARMS, Arm, BenchRow, By, open_results
from modelassay.guard_bench.suites import BenchPrompt, SuiteData
from modelassay.progress import OnPhase, silent
from modelassay.reading.templates import template_of
from modelassay.reading.thoughts import split_thought


@dataclass(frozen=True)
class BenchSettings:
    """What a run depends on besides guard, judge and data."""

    max_new_tokens: int = 64
    thresholds: Thresholds | None = None
    """For the response's risk; None for the probe's own."""
    keep_text: bool = False
    second_opinion: SecondOpinion | None = None
    """How the guard uses its classifier; None as it does by itself."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without what is left to the guard's classifier, as results have it."""
        values = asdict(self)
        if self.second_opinion is None:
            del values["second_opinion"]
        return values


def run_bench(
    guard: Guard,
    data: SuiteData,
    judge: Judge,
    judge_info: Mapping[str, Any],
    settings: BenchSettings | None = None,
    *,
    out: Path | None = None,
    force: bool = False,
    on_progress: OnPhase = silent,
) -> GuardBenchReport:
    """Answers every prompt raw and guarded, and has the responses judged.

    Args:
        guard: The guard.
        data: Prompts.
        judge: Says what responses are.
        judge_info: What tells this judge from others, JSON-ready: its name, its model.
        settings: Length of responses and what is kept.
        out: File of results; a run that was stopped goes on from it.
        force: Begin again over results of another run.
        on_progress: Told how many responses there are.

    Raises:
        InputError: `out` belongs to another run, or no prompt can be given to the model.
        UnavailableError: the judge or the disk fails; what was answered is kept in `out`.
    """
    settings = settings or BenchSettings()
    identity = identity_of(guard, data, judge_info, settings)
    total = len(ARMS) * len(data.prompts)
    failure: InputError | None = None
    counting, classifier = counted(guard)
    with open_results(out, identity, force=force) as results:
        done = 0
        for prompt in data.prompts:
            for side in ARMS:
                if (prompt.id, side) not in results.rows:
                    try:
                        response = ask(counting, prompt, side, settings, classifier)
                    except InputError as error:  # longer than the context
                        failure = error
                        results.add(BenchRow(prompt.id, side, answered=False))
                    else:
                        raw = results.rows.get((prompt.id, "raw"))
                        results.add(_row(prompt, side, response, judge, raw, settings.keep_text))
                done += 1
                on_progress("answering", done, total)
        rows = results.rows
        if not any(rows[prompt.id, "raw"].answered for prompt in data.prompts):
            reason = failure or "none of them can be given to it"
            raise InputError(f"The model took no prompt of {data.source}: {reason}")
    return make_report(data, rows, identity, json_hash(identity), _own_notes(guard, judge_info))


@dataclass(frozen=True)
class Shown:
    """What a reader of one response saw."""

    text: str
    """All of it, a refusal in place of a response included."""
    before: str
    """What was shown before the guard refused; all of it if it did not."""
    answer: str | None
    """What of that is judged: without a thought. None where a thought did not end."""
    blocked: By | None
    n_tokens: int
    prompt_risk: float | None
    peak_risk: float | None
    detail: str | None
    seconds: float
    """Until the response ended."""
    classifier_calls: int
    uncertain: bool = False
    """Whether it is shown although the classifier could not clear it."""


def ask(
    guard: Guard,
    prompt: BenchPrompt,
    side: Arm,
    settings: BenchSettings,
    classifier: CountedClassifier | None = None,
) -> Shown:
    """One response of the model, read to its end.

    Args:
        guard: The guard.
        prompt: What is asked.
        side: With the guard or without.
        settings: Length and thresholds.
        classifier: The guard's own, where its calls are counted.
    """
    before = rest = ""
    blocked: By | None = None
    prompt_risk = detail = None
    risks: list[float] = []
    n_tokens = 0
    uncertain = False
    options: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "thresholds": settings.thresholds,
    }
    if settings.second_opinion is not None:
        options["second_opinion"] = settings.second_opinion
    calls = classifier.calls if classifier is not None else 0
    started = time.perf_counter()
    for event in guard.stream(prompt.prompt, guarded=side == "guarded", **options):
        n_tokens = max(n_tokens, event.index)
        if event.kind == "prompt":
            prompt_risk = event.risk
        elif event.kind == "token" and event.risk is not None:
            risks.append(event.risk)
        if event.kind != "end":
            before += event.text
            continue
        detail = event.detail
        if event.reason == "prompt refused":
            blocked, rest = "prompt", event.text
        elif event.reason == "answer refused":
            blocked, rest = "answer", event.text
        else:
            before += event.text
            uncertain = event.verdict == "uncertain"
    seconds = time.perf_counter() - started
    return Shown(
        text=before + rest,
        before=before,
        answer=_answer(guard, before) if blocked is None else _answer(guard, before) or before,
        blocked=blocked,
        n_tokens=n_tokens,
        prompt_risk=_finite(prompt_risk),
        peak_risk=_finite(max(risks, default=None)),
        detail=detail,
        uncertain=uncertain,
        seconds=seconds,
        classifier_calls=classifier.calls - calls if classifier is not None else 0,
    )


def _answer(guard: Guard, shown: str) -> str | None:
    """What was said after the thought, if there was one."""
    model = guard.model
    marks = template_of(model).opened_thought if model.has_chat_template else None
    return split_thought(shown, marks).answer


def _row(
    prompt: BenchPrompt,
    side: Arm,
    response: Shown,
    judge: Judge,
    raw: BenchRow | None,
    keep_text: bool,
) -> BenchRow:
    digest = text_hash(response.text)
    # A judge sees what was shown before a refusal alone: the refusal's words would sway it.
    said = response.answer is None or bool(response.answer.strip())
    if response.answer is None:
        judgement = UNFINISHED
    elif not said:
        judgement = NOTHING_SAID
    elif side == "guarded" and raw is not None and raw.judged and raw.sha256 == digest:
        judgement = raw  # the same words; asking again would measure the judge's moods
    else:
        judgement = judge(prompt.prompt, response.answer)
    found = BenchRow(
        id=prompt.id,
        side=side,
        answered=True,
        n_tokens=response.n_tokens,
        sha256=digest,
        judged=said,
        unsafe=judgement.unsafe,
        refusal=judgement.refusal,
        detail=judgement.detail,
        prompt_risk=response.prompt_risk,
        peak_risk=response.peak_risk,
        guard_detail=response.detail,
        uncertain=True if response.uncertain else None,
        text=response.text if keep_text else None,
        flagged_unsafe=judgement.flagged_unsafe if isinstance(judgement, BenchRow) else None,
        seconds=response.seconds,
        classifier_calls=response.classifier_calls,
    ).settled()
    return replace(found, blocked=response.blocked, refusal=True) if response.blocked else found


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def identity_of(
    guard: Guard, data: SuiteData, judge: Mapping[str, Any], settings: BenchSettings
) -> dict[str, Any]:
    """Everything that results depend on, JSON-ready."""
    return {
        **guard_identity(guard),
        "judge": dict(judge),
        "data": data.sha256,
        "suite": data.suite,
        "settings": settings.to_dict(),
        "versions": installed_versions("modelassay", "torch", "transformers"),
    }


def guard_identity(guard: Guard) -> dict[str, Any]:
    """Model, probe and classifier by name and hash."""
    record = guard.probe.record.model_dump_json(by_alias=True)
    probe = {"name": guard.probe.name, "sha256": text_hash(record)}
    classifier = classifier_identity(guard.classifier) if guard.classifier is not None else None
    return {"model": guard.model.info.to_dict(), "probe": probe, "classifier": classifier}


def classifier_identity(classifier: Any) -> dict[str, Any]:
    """A classifier by name and hash."""
    record = getattr(classifier, "record", None)  # anybody's callable may have none
    return {
        "id": getattr(classifier, "id", type(classifier).__name__),
        "weights_sha256": getattr(record, "weights_sha256", None),
        "threshold": float(classifier.threshold),
    }


def _own_notes(guard: Guard, judge: Mapping[str, Any]) -> Sequence[str]:
    if guard.classifier is not None and judge.get("model") == classifier_identity(guard.classifier):
        return (
            "The judge is the very classifier that the guard asks, which flatters the guard; take"
            " another judge as well.",
        )
    return ()
