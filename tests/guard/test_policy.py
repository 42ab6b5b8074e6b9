"""When text is shown, held back and refused."""

from __future__ import annotations

import random

import pytest

from modelassay.errors import InputError
from modelassay.guard import Policy, Thresholds


@pytest.mark.parametrize("seed", range(300))
def test_nothing_is_shown_that_no_verdict_covers(seed):
    """Over random risks and classifiers: a refused answer has shown no token from the first that
    reached the block threshold on, nor any that was held when the classifier condemned it."""
    draw = random.Random(seed)  # noqa: S311
    pause = draw.uniform(0.05, 0.9)
    thresholds = Thresholds(pause, draw.uniform(pause, 1.0))
    can_escalate = draw.random() < 0.6
    policy = Policy(thresholds, can_escalate=can_escalate)
    policy.paused = draw.random() < 0.3
    covered = 0
    may_show = 0
    for n in range(1, draw.randint(2, 80)):
        risk = (
            draw.choice([draw.random(), draw.random() * pause, float("nan")])
            if draw.random() < 0.97
            else 1.0
        )
        ruling = policy.judge(risk)
        if not risk < thresholds.block:
            assert ruling.action == "refuse"  # no smoothing delays a jump
        if ruling.action == "refuse":
            assert ruling.covered == covered < n
            break
        if ruling.action == "continue":
            assert risk < thresholds.pause
            may_show = n
        else:
            assert ruling.covered == covered
        if ruling.action == "escalate":
            assert can_escalate
            if draw.random() < 0.3:
                ruling = policy.condemned()
                assert ruling.covered == covered
                assert policy.judge(0.0).action == "refuse"
                break
            ruling = policy.cleared()
            may_show = n
        covered = ruling.covered
        assert covered == may_show  # what a low risk or the classifier let through, no token more
    final = policy.finish()
    if final.action == "escalate":
        assert can_escalate
    elif final.action == "stop":
        assert final.covered == policy.scored
    assert final.covered == covered


def test_a_pause_holds_and_resumes():
    policy = Policy(Thresholds(0.5, 0.9))
    rulings = [policy.judge(risk) for risk in (0.1, 0.6, 0.1, 0.1, 0.1)]
    assert [r.action for r in rulings] == ["continue", "pause", "continue", "continue", "continue"]
    assert [r.covered for r in rulings] == [1, 1, 3, 4, 5]
    high = Policy(Thresholds(0.5, 0.9))
    actions = [high.judge(risk).action for risk in (0.85, 0.45, 0.45, 0.1, 0.1, 0.1, 0.1, 0.1)]
    assert actions[:3] == ["pause"] * 3  # between resume and pause it stays as it was
    assert actions[-1] == "continue"


@pytest.mark.parametrize(
    "pair", [(0.9, 0.5), (0.0, 0.5), (0.5, 1.1), (float("nan"), 0.5), (-1, 0.2)]
)
def test_thresholds_out_of_order(pair):
    with pytest.raises(InputError, match="pause <= block"):
        Thresholds(*pair)
