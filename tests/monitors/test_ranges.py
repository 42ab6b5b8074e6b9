"""The rate of false alarms is the promised one, whatever the numbers are like."""

from __future__ import annotations

import numpy as np
import pytest

from modelassay.monitors.ranges import MOST, distances, fit_ranges, promised_rate

SEEDS, NEW = 120, 15


def draw(rng, n, kind):
    """Exchanges of a few tokens, with readings that hang together."""
    shared = rng.standard_normal((12, 8))
    found = []
    for _ in range(n):
        size = (rng.integers(2, 9), 12)
        noise = {
            "normal": rng.standard_normal(size),
            "heavy": rng.standard_t(2, size),
            "one-sided": rng.exponential(size=size) ** 2,
        }[kind]
        values = noise @ shared
        found.append({"prompt": values, "start": values[-1:], "response": -values[:2]})
    return found


@pytest.mark.parametrize("kind", ["heavy", "one-sided"])
def test_new_exchanges_leave_the_ranges_as_seldom_as_promised(kind):
    n, left = 19, {"prompt": 0, "response": 0}
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        rows = draw(rng, 2 * n + NEW, kind)
        bounds = fit_ranges(rows[:n], rows[n : 2 * n]).bounds
        for each in rows[2 * n :]:
            outside = [d.max() > 1 for d in distances(bounds, each)]
            left["prompt"] += outside[0] or outside[1]
            left["response"] += outside[2]
    for part in left.values():
        assert 0.2 * promised_rate(n) < part / (SEEDS * NEW) < 1.2 * promised_rate(n)


def test_all_that_set_the_ranges_is_inside():
    rows = draw(np.random.default_rng(0), 60, "heavy")
    found = fit_ranges(rows[:30], rows[30:])
    assert all(d.max() <= 1 + 1e-9 for each in rows for d in distances(found.bounds, each))
    assert set(found.widened) == {"prompt", "response"}
    assert (found.n_first, found.n_second) == (30, 30)


def test_what_is_no_number_is_outside():
    rows = draw(np.random.default_rng(0), 20, "normal")
    bounds = fit_ranges(rows[:10], rows[10:]).bounds
    for bad in (np.nan, np.inf, -np.inf, 1e300):
        values = np.full((1, 8), bad)
        assert distances(bounds, {"start": values})[0].max() == MOST


def test_a_reading_that_never_changes_has_a_range():
    rows = [{"start": np.array([[3.0, 0.0]])}] * 8
    bounds = fit_ranges(rows[:4], rows[4:]).bounds
    assert (bounds["start"][0] < bounds["start"][1]).all()
    assert distances(bounds, rows[0])[0].max() == 0
    assert distances(bounds, {"start": np.array([[3.0, 0.1]])})[0].max() > 1
