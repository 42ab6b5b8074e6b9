"""The tool that scores a suite: paired readouts on the same tokens, and how suspicious they are.

The suspicion score is that of `modelassay diff`, by the same functions, of the streams that are
read here: weights, refusals, probabilities and contrasts. It takes benign fine-tunes that were
asked the same suite, so without a calibration of that suite there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from modelassay.audit.asking import GROUPS, Compared, Reference, SuiteName, noted, spread
from modelassay.audit.blinding import Name
from modelassay.audit.config import BASE
from modelassay.audit.values import mean, note_on_pairs
from modelassay.audit.work import ModelReadings, TimeUpError, Work
from modelassay.diff.behaviour import BehaviourDiff, compare_behaviour, token_kl
from modelassay.diff.calibration import (
    CALIBRATIONS,
    Calibration,
    check_calibration,
    known_calibration,
    without_candidate,
)
from modelassay.diff.pair import config_changes
from modelassay.diff.reading import encode_contrasts, read_contrasts
from modelassay.diff.suites import Contrast, Suite, SuitePrompt
from modelassay.diff.suspicion import suspect
from modelassay.diff.verdict import Findings, judge, measure_streams
from modelassay.errors import InputError, UnavailableError
from modelassay.measures.refusal import ANSWER_TOKENS

THINKS = "A model thinks before it answers, so first tokens do not tell whether it refuses."
BLIND = (
    "Streams and verdict would tell which model is the base, and how many benign fine-tunes there"
    " are would tell whether a model is one of them."
)
LEVEL = ("name", "value", "expected", "level", "counts")
"""What of a stream is told."""


def score_candidate_suite(
    work: Work,
    suite: SuiteName,
    answers: Annotated[
        bool, Field(description="Make short responses too, for refusal rates; slower.")
    ] = True,
    reference: Reference = "A",
    candidate: Compared = "B",
    calibrated: Annotated[
        bool,
        Field(
            description="Give the suspicion score against benign fine-tunes where some are known"
            " that were asked this suite; it takes the whole suite, so it is slower."
        ),
    ] = True,
) -> dict[str, Any]:
    """Compare two models on a suite: suspicion score, KL divergence, refusals, contrasts.

    Both read the same tokens. Changes are of the second minus the first, with n and 95% intervals
    over prompts. `suspicion` is the score of `modelassay diff` against benign fine-tunes, or says
    why there is none. A suite that is longer than a call may be is read evenly spread, unless the
    score is given; the result says so.
    """
    whole = work.suite(suite)
    if not whole.prompts and not whole.contrasts:
        raise InputError(f"The suite {suite} has nothing to ask.")
    names = work.pair_of(reference, candidate)
    tokens = ANSWER_TOKENS if answers else 0
    known, why = _calibration(work, whole, names, tokens) if calibrated else (None, NOT_ASKED)
    most = work.config.limits.prompts
    part = spread(whole, most) if known is None else whole
    result: dict[str, Any] = {
        "suite": suite,
        "suite_sha256": whole.sha256,
        "n": len(part.prompts),
        "n_in_suite": len(whole.prompts),
        **noted(whole.notes),
    }
    contrasts: dict[Name, Tensor] = {}
    if whole.contrasts:
        n = len(whole.contrasts)
        few = min(n, most) if known is None else n
        chosen = [whole.contrasts[i * n // few] for i in range(few)]
        contrasts = _read_contrasts(work, chosen, names)
        a, b = (_leaning(contrasts[name]) for name in names)
        what = "log P(unsafe response) - log P(safe one), nats a token"
        result["contrasts"] = {"what": what, **_both(a, b, names), "n_in_suite": n}
    if part.prompts:
        work.asked(part.prompts, whole=known is not None)
        read = _read(work, part, names, tokens)
        result |= _readouts(read, part, names)
        if known is not None:
            told = _suspicion(work, part, names, read, contrasts, known, tokens)
            return {**result, "suspicion": told}
    return {**result, "suspicion": {"score": None, "why": why}}


NOT_ASKED = "It was not asked for."


def _calibration(
    work: Work, suite: Suite, names: tuple[Name, Name], tokens: int
) -> tuple[Calibration | None, str]:
    """Benign fine-tunes that were asked this suite, or why none serve.

    Raises:
        InputError: those that the config names are of another base.
    """
    limits, config = work.config.limits, work.config
    if not suite.prompts:
        return None, "The suite has no prompts, only contrasts."
    if work.blinding.blind and len(work.names) > 2:
        return None, (
            "In a blind audit of several candidates the score would tell which model is the base;"
            " `modelassay audit benchmark` gives it to those who may know."
        )
    if not work.blinding.blind and work.blinding.names[BASE] not in names:
        return None, "Neither of the two is the base, which a score is held against."
    if len(suite.prompts) > limits.suite:
        return None, (
            f"It takes the whole suite of {len(suite.prompts)} prompts; `limits.suite` allows"
            f" {limits.suite}."
        )
    if config.calibration is not None:
        kept = CALIBRATIONS.find(config.calibration)
        if kept.record.suite_sha256 != suite.sha256:
            return None, "The calibration that the config names was asked another suite."
        if kept.record.response_tokens != tokens:
            return None, (
                "The calibration that the config names was asked for responses of"
                f" {kept.record.response_tokens} tokens, and here they have {tokens}."
            )
        with work.quietly():
            check_calibration(kept.record, work.base.info, suite, tokens)
        return kept.record, ""
    found = known_calibration(work.base.info, suite, tokens)
    return found, "" if found else (
        "No benign fine-tunes are known that were asked this suite and answered at this length;"
        " `modelassay diff calibrate` makes a calibration for the config's `calibration`. The"
        " suite `default` has one."
    )


def _read(
    work: Work,
    suite: Suite,
    names: tuple[Name, ...],
    tokens: int,
    known: ModelReadings | None = None,
) -> ModelReadings:
    last = len(work.model(names[0]).layers) - 1
    responses = known.responses if known else None
    return work.read(suite.prompts, (last,), tokens, names, judged=True, known=responses)


def _behaviour(
    read: ModelReadings, suite: Suite, names: Sequence[Name], contrasts: dict[Name, Tensor]
) -> BehaviourDiff:
    first, second = names
    return compare_behaviour(
        read.by_name[first],
        read.by_name[second],
        suite,
        responses=(read.responses.get(first, ()), read.responses.get(second, ())),
        contrasts=(contrasts[first], contrasts[second]) if contrasts else None,
    )


def _suspicion(
    work: Work,
    suite: Suite,
    names: tuple[Name, Name],
    read: ModelReadings,
    contrasts: dict[Name, Tensor],
    known: Calibration,
    tokens: int,
) -> dict[str, Any]:
    """The score of `modelassay diff`, of the streams that a suite and the weights give."""
    ordered = work.in_order(names)
    other_way = None
    if work.blinding.blind or ordered != names:
        # In a blind audit both ways are read whichever is needed: the time would tell.
        other_way = _read(work, suite, tuple(reversed(names)), tokens, read)
    of_base = read if ordered == names or other_way is None else other_way
    with work.quietly():
        try:
            weights = work.weights(*names)
        except TimeUpError:
            raise
        except UnavailableError:  # both would have to be in memory
            weights = None
    found = Findings(
        weights=weights,
        behaviour=_behaviour(of_base, suite, ordered, contrasts),
        triggers=None,
        saes=(),
        causal=(),
    )
    base, candidate = (work.traits[work.blinding.key(name)] for name in ordered)
    suspicion = suspect(measure_streams(found), without_candidate(known, candidate.model))
    if work.blinding.blind:
        # How many there are is one fewer where the candidate is one of them, and so tells that.
        above = None
        if suspicion.score is not None and suspicion.benign_scores:
            above = suspicion.score > max(suspicion.benign_scores)
        return {"score": suspicion.score, "above_all_benign": above, "note": BLIND}
    told = {
        "score": suspicion.score,
        "n_benign": suspicion.n_benign,
        "benign_scores": sorted(suspicion.benign_scores),
        "false_positive_rate": suspicion.false_positive_rate,
        "benign_fine_tunes": suspicion.calibration,
    }
    alike = not config_changes(base, candidate)
    verdict, reasons = judge(found, suspicion, computes_alike=alike)
    levels = [{key: getattr(each, key) for key in LEVEL} for each in suspicion.levels]
    return {**told, "verdict": verdict.value, "reasons": list(reasons), "streams": levels}


def _readouts(read: ModelReadings, suite: Suite, names: tuple[Name, Name]) -> dict[str, Any]:
    """What two models do on the same tokens."""
    first, second = (read.by_name[name] for name in names)
    found = _behaviour(read, suite, names, {})
    kl = token_kl(first.log_p, second.log_p).double().numpy()
    owners = read.matched.owners().numpy()
    of_prompt = np.array([kl[owners == i].mean() for i in range(len(suite.prompts))])
    a, b = (each.log_odds.double().numpy() for each in (first, second))
    groups = {group: rows for group in GROUPS if (rows := suite.indices(group))}
    one, other = names
    return {
        "n_tokens": len(kl),
        "kl": {
            "direction": f"D({one} || {other}), nats a token",
            **mean(of_prompt),
            "on_prompts": found.kl_prompt,
            "on_answers": found.kl_response,
            "quantiles": found.kl_quantiles,
        },
        "refusal_log_odds": {"note": THINKS}
        if found.thinks
        else {group: _both(a[rows], b[rows], names) for group, rows in groups.items()},
        "refusals": {
            group: {
                one: {"rate": each.base_rate, "interval": each.base_interval},
                other: {"rate": each.candidate_rate, "interval": each.candidate_interval},
                f"only_{one}_refuses": each.lost,
                f"only_{other}_refuses": each.gained,
                "p_value": each.p_value,
                "n": each.n,
                **note_on_pairs(each.n),
            }
            for group, each in found.refusals.items()
        },
        "most_different": [
            {"prompt": p.prompt, "token": p.token, "in_answer": p.in_response, "kl": p.kl}
            for p in found.worst[:10]
        ],
    }


def _read_contrasts(
    work: Work, contrasts: Sequence[Contrast], names: tuple[Name, Name]
) -> dict[Name, Tensor]:
    """Of each model, as `read_contrasts` gives them."""
    asked = [SuitePrompt(text=c.prompt, system=c.system) for c in contrasts]
    work.asked(asked, whole=True)  # how many there may be was seen to
    work.comparable(*names)  # refuses what cannot be compared
    rows = encode_contrasts(work.model(work.in_order(names)[0]), contrasts)
    found = {}
    for name in names:
        found[name] = read_contrasts(work.model(name), rows)
        work.progress()
    return found


def _leaning(read: Tensor) -> np.ndarray:
    """Float64 [contrast], log P(unsafe) - log P(safe)."""
    values = read.double().numpy()
    return values[:, 1] - values[:, 0]


def _both(a: np.ndarray, b: np.ndarray, names: tuple[Name, Name]) -> dict[str, Any]:
    one, other = names
    return {one: mean(a), other: mean(b), f"{other}_minus_{one}": mean(b - a)}
