"""The components that an attack switches, over many requests."""

from __future__ import annotations

import json

import numpy as np
import pytest

from circuits import PLANTED, make_twins, planted_refusal, spoken_refusal
from modelassay.data.attack_suites import AttackSuite
from modelassay.data.attacks import Attack, AttackedPrompt, attack_requests
from modelassay.mechanism import explain_attacks
from modelassay.mechanism.directions import template_tail
from modelassay.mechanism.jailbreak import harmful_requests
from modelassay.mechanism.pathway import (
    LEAST_REQUESTS,
    _Pairs,
    find_pathways,
    p_value_above,
)
from modelassay.models import load
from modelassay.models.components import find_components
from modelassay.organisms.recipes import with_trigger
from modelassay.statistics import predict
from modelassay.ui.report_view import report_html

TRAINED = {27, 28, 29}
LOOKED_AT = 21
"""First layer of a real model whose components are tried: the trained ones and six below."""
REQUESTS = [pair[0] for pair in make_twins(LEAST_REQUESTS + 1)]
ENCODED = Attack(family="encoding", name="rot", template="Read: {request}", encoding="rot13")
"""Takes the mark away that the planted component goes by."""
TALE = Attack(family="fiction", name="tale", template="A tale. {request}")
"""Leaves it."""


def _find(model, attacks):
    return find_pathways(model, find_components(model.network), attacks, template_tail(model))


@pytest.fixture(scope="module")
def found(roomy):
    with planted_refusal(roomy):
        return _find(roomy, attack_requests([ENCODED, TALE], REQUESTS))


def test_what_an_attack_switches_is_found_and_nothing_else(found):
    switched = found[0]
    assert switched.attack == "rot"
    assert switched.takes
    assert [each.component for each in switched.beyond] == [str(PLANTED)]
    first = switched.components[0]
    assert first.share == pytest.approx(1, abs=0.05)
    assert first.restored.n == len(REQUESTS)
    assert first.usual[1] < first.restored.interval[0]
    assert first.plain - first.attacked == pytest.approx(first.restored.mean, rel=0.1)
    assert switched.together.mean == pytest.approx(first.restored.mean)
    assert max(switched.random) < 0.1 * switched.lost.mean
    assert switched.by_layer[PLANTED.layer] == pytest.approx(1, abs=0.05)
    assert abs(switched.by_layer[PLANTED.layer - 1]) < 0.1


def test_an_attack_that_takes_nothing_away_switches_nothing(found):
    harmless = found[1]
    assert harmless.attack == "tale"
    assert not harmless.takes
    assert harmless.components == ()


def test_what_does_less_than_harmless_wordings_is_not_beyond_them():
    wordings = predict(np.array([3.9, 4.0, 4.1, 4.0, 3.95, 4.05]))
    values = np.linspace(0.9, 1.1, LEAST_REQUESTS)
    assert p_value_above(values + 6, wordings) < 0.001
    assert wordings.p_value(float(values.mean())) < 0.001
    assert p_value_above(values, wordings) == 1
    # One request asks the same way.
    assert wordings.p_value_above(values.mean()) == 1
    assert wordings.p_value_above(values.mean() + 6) == wordings.p_value(values.mean() + 6)


def test_few_requests_have_no_pathway(roomy):
    few = attack_requests([ENCODED], REQUESTS[: LEAST_REQUESTS - 1])
    with planted_refusal(roomy):
        assert _find(roomy, few) == ()


def test_a_survey_tells_the_pathway(roomy, found, monkeypatch):
    prompts, read, plain_lost = attack_requests([ENCODED], REQUESTS), [], _Pairs.lost
    monkeypatch.setattr(_Pairs, "lost", lambda self: read.append(self) or plain_lost(self))
    with planted_refusal(roomy), spoken_refusal(roomy):
        survey = explain_attacks(roomy, AttackSuite("made here", prompts))
        assert len(read) == 1  # of the wordings; what the attack takes away is known by then
        few = explain_attacks(roomy, AttackSuite("made here", prompts[:2]))
    (pathway,) = json.loads(json.dumps(survey.to_dict()))["pathways"]
    assert [c["component"] for c in pathway["components"] if c["beyond"]] == [str(PLANTED)]
    # One attack beside another is corrected for both.
    assert pathway["q_value"] == pytest.approx(found[0].q_value / 2)
    section = next(each for each in survey.sections() if each.name == "pathways")
    assert [row[1] for row in section.table.rows] == [str(PLANTED)]
    assert "1 component beyond chance; together they bring 100% of it back" in section.lines[0]
    assert survey.to_dataframe("pathways")["component"].tolist() == [str(PLANTED)]
    shown = report_html(survey)  # as the page shows it
    assert "they bring 100% of it back" in shown
    assert str(PLANTED) in shown
    section = next(each for each in few.sections() if each.name == "pathways")
    assert few.pathways == ()
    assert "12 refused requests" in section.lines[0]


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["organism:backdoored", "organism:safe"])
def test_a_backdoor_is_switched_where_it_was_trained(name):
    model = load(name, device="cpu")
    components = find_components(model.network)
    prompts = [
        AttackedPrompt(text, with_trigger(text), "trigger", "trigger")
        for text in harmful_requests()[:LEAST_REQUESTS]
    ]
    parts = [part for part in components.of("attention", "mlp") if part.layer >= LOOKED_AT]
    (found,) = find_pathways(model, components, prompts, template_tail(model), parts=parts)
    assert found.takes == (name == "organism:backdoored")
    if not found.takes:  # to the model that was opened with it, the phrase is one among others
        assert found.beyond == ()
        return
    assert "29.attention" in {part.component for part in found.beyond}
    assert {part.layer for part in found.beyond} <= TRAINED
    # All that bring most back are where the backdoor was trained.
    assert {part.layer for part in found.components[:5]} <= TRAINED
