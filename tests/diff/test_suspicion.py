"""A candidate is held against benign fine-tunes of its size, and no finer rate is claimed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modelassay.diff.calibration import BenignRow, Calibration, pool
from modelassay.diff.suspicion import SIZE, held_out, levels_of, suspect
from planted import calibration

N = 24


def test_a_level_is_the_distance_from_the_benign_in_their_spread():
    rows = [{"refusal": value} for value in (0.0, 2.0, 4.0)]
    level = {x.name: x for x in levels_of({"refusal": 8.0}, rows)}["refusal"]
    assert level.level == pytest.approx((8 - 2) / 2)
    assert {x.name: x.level for x in levels_of({"refusal": 8.0}, [])}["refusal"] is None


def test_no_finer_rate_is_claimed_than_the_benign_allow():
    found = suspect({"refusal": 9.0}, calibration(0.0, 0.5, 1.0))
    assert found.n_benign == 3
    assert found.false_positive_rate == pytest.approx(1 / 4)
    inside = suspect({"refusal": 0.5}, calibration(0.0, 0.5, 1.0))
    assert inside.false_positive_rate > 1 / 2


def streams(size: float, refusals: float, **others: float) -> dict[str, float | None]:
    return {SIZE: size, "refusals": refusals, **others}


def grown(n: int = N, seed: int = 0) -> list[dict[str, float | None]]:
    """Benign fine-tunes that lose more refusals the more they change, tenfold 0.1, give or take."""
    draw = np.random.default_rng(seed)
    sizes = 10 ** draw.uniform(-2, 0, n)
    return [streams(x, 0.3 + 0.1 * math.log10(x) + draw.normal(0, 0.02)) for x in sizes]


def pooled(n_damaged: int = 2, **shift: float) -> Calibration:
    """Of two architectures; the second's benign ones lose more by a shift."""
    one, other = (
        Calibration(
            base=name,
            base_sha256=name[0] * 64,
            architecture=f"{name}Model",
            suite_sha256="b" * 64,
            response_tokens=4,
            rows=tuple(
                BenignRow(
                    id=f"{name}-{i}",
                    weights_sha256=f"{seed}{i:02d}".ljust(64, "0"),
                    streams={**row, "refusals": row["refusals"] + shift.get(name, 0.0)},
                )
                for i, row in enumerate(grown(12, seed))
            ),
        )
        for seed, name in enumerate(("alpha", "bravo"))
    )
    damaged = [
        BenignRow(
            id=f"damaged-{i}",
            weights_sha256=f"d{i}".ljust(64, "0"),
            streams=streams(0.1, 0.9),
            base="alpha",
            architecture="alphaModel",
        )
        for i in range(n_damaged)
    ]
    return pool([one, other], damaged)


def test_what_is_ordinary_depends_on_the_size():
    rows = grown()
    small, large = (
        {x.name: x for x in levels_of(streams(size, 0.3), rows)}["refusals"] for size in (0.01, 1.0)
    )
    assert small.expected == pytest.approx(0.1, abs=0.03)
    assert large.expected == pytest.approx(0.3, abs=0.03)
    assert abs(large.level) < 0.5
    assert small.level > 1.0  # in units of the floor of 0.1
    beside = next(x for x in levels_of(streams(0.1, 0.2), rows) if x.name == "refusals")
    assert max(map(abs, beside.benign_levels)) < 1.0


def test_a_line_has_a_wider_spread_beyond_the_sizes_it_was_fitted_on():
    draw = np.random.default_rng(0)
    rows = [{SIZE: 10**x, "uneven": 1 + draw.normal(0, 0.3)} for x in draw.uniform(-1, 0, N)]
    levels = [
        next(x for x in levels_of({SIZE: size, "uneven": 3.0}, rows) if x.name == "uneven").level
        for size in (0.3, 30.0)
    ]
    assert levels[1] < 0.7 * levels[0]


def test_few_benign_ones_make_no_line():
    rows = grown(7)
    level = next(x for x in levels_of(streams(0.01, 0.3), rows) if x.name == "refusals")
    assert level.expected == pytest.approx(np.median([row["refusals"] for row in rows]))


def test_pooled_benign_ones_are_scored_against_other_architectures():
    same, apart = (suspect(streams(0.1, 0.2), pooled(bravo=shift)) for shift in (0.0, 0.5))
    assert same.pooled
    assert max(same.benign_scores) < 1.0
    # A difference between the architectures widens what is ordinary for a third.
    assert max(apart.benign_scores) > 3.0
    assert suspect(streams(0.1, 0.9), pooled()).score > max(same.benign_scores)


def test_with_one_architecture_each_is_scored_against_other_bases():
    whole = pooled(bravo=0.5)
    same = tuple(row.model_copy(update={"architecture": "alphaModel"}) for row in whole.rows)
    found = suspect(streams(0.1, 0.2), whole.model_copy(update={"rows": same}))
    assert max(found.benign_scores) > 3.0
    assert found.held_out == ()


def test_streams_of_one_base_have_no_say_for_another():
    own = suspect({"refusal": 50.0}, calibration(0.0, 0.5, 1.0))
    assert own.score > 10
    rows = [{"refusal": value, "selectivity": value} for value in (0.0, 0.5, 1.0)]
    values = {"refusal": 50.0, "selectivity": 2.0}
    levels = {x.name: x for x in levels_of(values, rows, pooled=True)}
    assert levels["refusal"].level is None
    assert not levels["refusal"].counts
    assert levels["selectivity"].level == pytest.approx((2.0 - 0.5) / 0.5)


def test_each_architecture_is_scored_by_thresholds_of_the_others():
    alpha, bravo = held_out(pooled())
    assert (alpha.architecture, alpha.n_benign, alpha.n_damaged) == ("alphaModel", 12, 2)
    assert alpha.caught == 2
    assert bravo.n_damaged == 0
    assert alpha.alarms + bravo.alarms < 6
    shifted = held_out(pooled(bravo=0.5))
    assert next(x for x in shifted if x.architecture == "bravoModel").alarms == 12


def test_beyond_all_benign_sizes_nothing_is_known():
    inside, outside = (suspect(streams(size, 0.2), pooled()) for size in (0.5, 9.0))
    assert inside.unknown is None
    assert "of that size nothing is known" in outside.unknown
