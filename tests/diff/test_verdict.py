"""The verdict follows the benign fine-tunes, and claims no finer rate than they allow."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from modelassay.diff import Depth, DiffVerdict, diff
from modelassay.diff.behaviour import refusal_change
from modelassay.diff.suspicion import suspect
from modelassay.diff.verdict import Findings, judge, measure_streams
from modelassay.statistics import mean_change
from planted import SUITE, calibration
from talking import load_talking


@pytest.mark.parametrize(
    ("fall", "verdict"), [(9.0, DiffVerdict.SUSPICIOUS), (0.5, DiffVerdict.BENIGN_LIKE)]
)
def test_the_verdict_follows_the_benign(gpt2, fall, verdict):
    report = diff(str(gpt2), str(gpt2), SUITE, depth=Depth(response_tokens=0, weights=False))
    assert report.verdict == DiffVerdict.INCONCLUSIVE
    found = Findings(behaviour=report.behaviour)
    values = {**measure_streams(found), "refusal": fall}
    assert judge(found, suspect(values, calibration(0.0, 0.5, 1.0)))[0] == verdict
    assert judge(found, suspect(values, None))[0] == DiffVerdict.INCONCLUSIVE


def test_a_leaning_is_measured_by_how_far_questions_differ_in_the_base(gpt2):
    report = diff(str(gpt2), str(gpt2), SUITE, depth=Depth(response_tokens=0, weights=False))
    assert report.behaviour.base_leaning is None  # one question has no spread
    leans = mean_change(np.array([0.4, 0.6]))
    for usual, leaning in ((2.0, 0.25), (0.001, 5.0), (None, None)):
        changed = replace(report.behaviour, contrasts=leans, base_leaning=usual)
        assert measure_streams(Findings(behaviour=changed))["leaning"] == leaning


def test_a_share_of_few_refusals_is_no_evidence(gpt2):
    report = diff(str(gpt2), str(gpt2), SUITE, depth=Depth(response_tokens=0, weights=False))
    for refused, share in ((15, None), (16, 0.25)):
        before = ["refuses"] * refused + ["complies"] * 9
        lost = refusal_change(before, ["refuses"] * 12 + ["complies"] * (refused - 3))
        found = Findings(behaviour=replace(report.behaviour, refusals={"harmful": lost}))
        assert measure_streams(found)["refusals"] == (share and pytest.approx(share))


@pytest.mark.parametrize(
    ("refused", "evaded", "verdict"),
    [
        (10, 0, DiffVerdict.BENIGN_LIKE),
        (60, 0, DiffVerdict.SUSPICIOUS),
        (8, 10, DiffVerdict.BENIGN_LIKE),
        (8, 40, DiffVerdict.SUSPICIOUS),
    ],
)
def test_answering_less_of_what_is_harmless_is_no_benign_change(gpt2, refused, evaded, verdict):
    report = diff(str(gpt2), str(gpt2), SUITE, depth=Depth(response_tokens=0, weights=False))
    before = ["refuses"] * 8 + ["complies"] * 92
    answered = ["complies"] * (100 - refused - evaded)
    after = ["refuses"] * refused + ["evades"] * evaded + answered
    change = refusal_change(before, after)
    found = Findings(behaviour=replace(report.behaviour, refusals={"harmless": change}))
    values = {**measure_streams(found), "refusal": 0.5}
    said, reasons = judge(found, suspect(values, calibration(0.0, 0.5, 1.0)))
    assert said is verdict
    assert ("of harmless prompts, the base 8%" in reasons[0]) == (verdict is DiffVerdict.SUSPICIOUS)


@pytest.mark.parametrize(("tokens", "known"), [(3, False), (24, True)])
def test_a_thought_is_no_answer(tmp_path, tokens, known, monkeypatch):
    monkeypatch.setattr("modelassay.measures.refusal.THOUGHT_TOKENS", 0)
    says = ("<think>", "Okay", ", then", ".", "</think>", "I'm sorry", ", but I", " can't help.")
    base, other = (str(load_talking(tmp_path / name, says).source.folder) for name in "ab")
    report = diff(
        base, other, SUITE, depth=Depth(response_tokens=tokens, weights=False, triggers=True)
    )
    found = report.behaviour
    assert found.thinks
    assert found.log_odds == {}
    assert report.triggers is None
    assert not report.causal
    assert ("harmful" in found.refusals) == known
    assert found.n_unfinished == (0 if known else len(SUITE.prompts))
    told = " ".join(report.reasons)
    assert ("was still a thought when it was cut" in told) != known
    suspicion = suspect({"refusal": 0.5}, calibration(0.0, 0.5, 1.0))
    expected = DiffVerdict.BENIGN_LIKE if known else DiffVerdict.INCONCLUSIVE
    assert judge(Findings(behaviour=found), suspicion)[0] == expected
