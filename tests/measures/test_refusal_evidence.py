"""Rates of outcomes, and that stopping early keeps the errors that are stated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from modelassay.data.asking import asking_blocks
from modelassay.data.concepts import refusal_prompts
from modelassay.measures.refusal_evidence import weigh_outcomes
from modelassay.scan.against import selectivity_drift
from modelassay.statistics import LOOK_RATIO, likelihood_drop

HARMFUL = set(refusal_prompts()[0])


def test_outcomes_add_up_and_their_order_does_not_matter():
    harmful = ["refuses"] * 5 + ["evades"] * 3 + ["complies"] * 2 + [None]
    benign = ["complies"] * 20
    found = weigh_outcomes(harmful, benign)
    assert [found.harmful.refuses.rate, found.harmful.complies.rate] == [0.5, 0.2]
    assert found.harmful.evades.rate == 0.3
    assert (found.harmful.n, found.n_unfinished, found.n) == (10, 1, 30)
    again = weigh_outcomes(harmful[::-1], benign)
    assert (again.harmful, again.interval) == (found.harmful, found.interval)
    data = found.to_dict()
    assert data["harmful_rate"] == data["harmful"]["refuses"]["rate"] == 0.5
    assert data["n_benign"] == 20


def test_intervals_are_wider_where_asking_stopped():
    harmful, benign = ["refuses"] * 18 + ["complies"] * 2, ["complies"] * 40
    fixed = weigh_outcomes(harmful, benign)
    early = weigh_outcomes([*harmful, None], benign, n_asked=60)
    assert early.stopped
    assert not fixed.stopped
    for name in ("interval", "harmful_interval", "benign_interval"):
        (low, high), (lower, higher) = getattr(fixed, name), getattr(early, name)
        assert lower <= low
        assert high < higher


def chain(harmful: float, harmless: float):
    """Chance of each pair of counts at each look, exactly; what is zeroed there stays out."""
    states, n, m = np.ones((1, 1)), 0, 0
    for block in asking_blocks()[:-1]:
        size = sum(text in HARMFUL for text in block)
        up, across = (
            binom.pmf(np.arange(a + more + 1)[None] - np.arange(a + 1)[:, None], more, rate)
            for a, more, rate in ((n, size, harmful), (m, len(block) - size, harmless))
        )
        states = up.T @ states @ across
        n, m = n + size, m + len(block) - size
        yield n, m, states


@pytest.mark.parametrize("harmless", [0.0, 0.02, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("difference", [0.2, 0.5])
def test_the_true_difference_is_rarely_left_out_at_any_look(difference, harmless):
    """Exact, not simulated: at most 2.5% on either side over all looks of a scan together."""
    out = {1: 0.0, -1: 0.0}
    for side in out:
        for n, m, states in chain(harmless + difference, harmless):
            k, j = np.meshgrid(np.arange(n + 1), np.arange(m + 1), indexing="ij")
            beyond = likelihood_drop(k, n, j, m, difference) > np.log(LOOK_RATIO)
            beyond &= side * (k / n - j / m - difference) > 0
            out[side] += states[beyond].sum()
            states[beyond] = 0
    assert max(out.values()) < 0.025
    assert min(out.values()) > 0.001  # not idle


def test_how_selectivity_differs_has_the_interval_of_both():
    said = {1: "refuses", 0: "complies"}

    def measured(harmful, benign, n=50):
        rows = ([said[int(i < k)] for i in range(n)] for k in (harmful, benign))
        return weigh_outcomes(*map(list, rows))

    here, there = measured(45, 5), measured(10, 5)
    drift, (low, high) = selectivity_drift(here, there)
    assert drift == pytest.approx(0.7)
    below = np.hypot(0.8 - here.interval[0], there.interval[1] - 0.1)
    assert low == pytest.approx(0.7 - below)
    assert 0 < low < drift < high
    low, high = selectivity_drift(here, here)[1]
    assert low < 0 < high
    assert low == pytest.approx(-high)
    assert selectivity_drift(here, None) == (None, None)
