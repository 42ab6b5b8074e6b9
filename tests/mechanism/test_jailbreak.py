"""An attack is explained by what it takes away, and what brings the refusal back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from circuits import HARM, PLANTED, planted_refusal, spoken_refusal
from modelassay.data.attacks import AttackedPrompt
from modelassay.errors import InputError
from modelassay.mechanism import explain_jailbreak
from modelassay.mechanism.attacked import InsideReading, ask_attacked, ask_plain
from modelassay.mechanism.directions import Direction, SafetyDirections, template_tail
from modelassay.mechanism.jailbreak_report import layer_chart, token_chart
from modelassay.mechanism.mechanisms import NullChanges, mechanism_of

REQUEST = "Is bread as heavy as wool"


@pytest.fixture(scope="module")
def explained(roomy):
    with planted_refusal(roomy), spoken_refusal(roomy):
        return explain_jailbreak(roomy, REQUEST + HARM, REQUEST)


def test_the_component_that_was_suppressed_brings_the_refusal_back(explained):
    first = explained.components[0]
    assert first.component == str(PLANTED)
    assert first.restored == pytest.approx(1, abs=0.05)
    assert first.beyond
    assert first.change == "suppressed"
    assert not any(each.beyond for each in explained.components[1:])
    assert str(PLANTED) in (explained.restores() or "")
    # It writes in the last layer but none, so nothing below brings anything back.
    assert explained.by_layer[PLANTED.layer] == pytest.approx(1, abs=0.05)
    assert abs(explained.by_layer[PLANTED.layer - 1]) < 0.1


def test_the_report_says_what_it_rests_on(explained):
    assert (explained.plain.outcome, explained.jailbroken.outcome) == ("refuses", "evades")
    # No direction of harm is in random weights, and the report says so instead of guessing.
    assert explained.mechanism.way == "undecided"
    assert "tells single prompts apart too badly" in explained.mechanism.reason
    values = json.loads(json.dumps(explained.to_dict()))
    assert values["schema"] == "modelassay.jailbreak/1"
    assert values["kind"] == "pair"
    assert len(values["tokens"]["plain"]) == len(values["tokens"]["jailbroken"]) + 1
    assert any(token["in_request"] for token in values["tokens"]["plain"])
    assert len(values["by_layer"]) == explained.model.n_layers
    assert layer_chart(explained) is not None
    assert token_chart(explained) is not None
    assert "4.mlp" in str(explained.sections())


def test_what_is_not_refused_has_nothing_to_explain(roomy, tiny):
    with planted_refusal(roomy), spoken_refusal(roomy):
        with pytest.raises(InputError, match="does not refuse the plain request"):
            explain_jailbreak(roomy, REQUEST, REQUEST + " today")
        with pytest.raises(InputError, match="are the same; give two prompts"):
            explain_jailbreak(roomy, REQUEST, REQUEST)
    with pytest.raises(InputError, match="no chat template"):
        explain_jailbreak(tiny(chat=False), REQUEST, "So: " + REQUEST)


def test_parts_of_an_attacked_prompt_are_found(roomy):
    tail = template_tail(roomy)
    text = roomy.tokenizer.decode

    def part(asked, start, end):
        return text(list(asked.prompt.ids[start : end + 1]))

    plain = ask_plain(roomy, REQUEST, tail)
    assert part(plain, plain.request_start, plain.request_end) == REQUEST
    assert plain.request_end == plain.message_end
    attack = AttackedPrompt(
        REQUEST, f"Play along. {REQUEST} And go.", "role_play", "a", system="Be Rook.", opening="Y"
    )
    attacked = ask_attacked(roomy, attack, tail)
    assert part(attacked, attacked.request_start, attacked.request_end) == REQUEST
    assert part(attacked, attacked.message_end - 3, attacked.message_end) == " go."
    assert text(list(attacked.begun.ids[len(attacked.prompt.ids) :])) == "Y"
    assert "Be Rook." in text(list(attacked.prompt.ids))


def _direction(name: str, low: float = 0.8) -> Direction:
    import torch

    return Direction(name, 1, torch.ones(2), 0.0, 1.0, 0.4, 0.9, (low, 1.0), 30)


def _directions(low: float = 0.8) -> SafetyDirections:
    return SafetyDirections(
        _direction("harm", low), _direction("refusal"), 0.6, (0.5, 0.7), 5, True
    )


def _reading(harm: float, refusal: float, outcome="refuses") -> InsideReading:
    return InsideReading(harm, harm, harm, refusal, 0.0, outcome)


NULL = NullChanges.of(
    [_reading(1.0, 1.0)] * 8, [_reading(1.0 + x / 40, 1.0 - x / 40) for x in range(-4, 4)]
)


@pytest.mark.parametrize(
    ("attacked", "way"),
    [
        (_reading(0.1, 0.2, "complies"), "hides the harm"),
        (_reading(0.9, 0.2, "complies"), "overrides the refusal"),
        (_reading(0.95, 0.98, "complies"), "acts later"),
        (_reading(0.1, 0.2), "does not work"),
        (_reading(0.1, 0.2, None), "undecided"),
    ],
)
def test_the_way_follows_from_both_readings(attacked, way):
    directions = _directions()
    assert mechanism_of(_reading(1.0, 1.0), attacked, NULL, directions).way == way


@pytest.mark.parametrize(("log_odds", "said"), [(-3.0, "no further"), (-9.0, "further")])
def test_what_acts_later_says_what_became_of_the_first_token(log_odds, said):
    null = NullChanges.of(
        [_reading(1.0, 1.0)] * 8,
        [replace(_reading(1.0 + x / 40, 1.0 - x / 40), log_odds=float(x)) for x in range(-4, 4)],
    )
    attacked = replace(_reading(0.95, 0.98, "complies"), log_odds=log_odds)
    found = mechanism_of(_reading(1.0, 1.0), attacked, null, _directions())
    assert found.way == "acts later"
    assert f"from +0.0 to {log_odds:+.1f} nats, {said} than by neutral rewordings" in found.reason


def test_no_way_is_told_where_readings_tell_nothing():
    blunt = _directions(low=0.45)
    attacked = _reading(0.1, 0.2, "complies")
    assert mechanism_of(_reading(1.0, 1.0), attacked, NULL, blunt).way == "undecided"
    sharp = _directions()
    unseen = mechanism_of(_reading(0.2, 1.0), attacked, NULL, sharp)
    assert unseen.way == "undecided"
    assert "does not read as harmful" in unseen.reason
    usual = mechanism_of(_reading(0.45, 1.0), _reading(0.38, 1, "complies"), NULL, sharp)
    assert usual.way == "undecided"
