"""Which attacks work is foretold on families that were not seen."""

from __future__ import annotations

import numpy as np
import pytest

from modelassay.mechanism.attacked import InsideReading
from modelassay.mechanism.prediction import predict_attacks


def _data(seed: int, tells: bool, n: int = 96, families: int = 6):
    rng = np.random.default_rng(seed)
    refusal = rng.standard_normal(n)
    worked = (refusal if tells else rng.standard_normal(n)) + 0.3 * rng.standard_normal(n) < 0
    readings = [
        InsideReading(*rng.standard_normal(3), float(r), float(rng.standard_normal()), "refuses")
        for r in refusal
    ]
    names = [f"family {i % families}" for i in range(n)]
    attacks = [f"attack {i % (2 * families)}" for i in range(n)]
    return readings, worked.tolist(), names, attacks


def test_what_readings_tell_is_found_and_nothing_else_is():
    told = predict_attacks(*_data(0, tells=True))
    assert not isinstance(told, str)
    assert told.auroc > 0.9
    assert told.interval[0] > 0.8
    assert told.log_odds_auroc < 0.7
    assert set(told.by_family) == {f"family {i}" for i in range(6)}
    nothing = [predict_attacks(*_data(seed, tells=False)) for seed in range(6)]
    values = [each.auroc for each in nothing if not isinstance(each, str)]
    assert len(values) == 6
    assert np.mean(values) == pytest.approx(0.5, abs=0.1)


def test_too_little_is_not_foretold():
    readings, worked, names, attacks = _data(0, tells=True)
    assert "families" in predict_attacks(readings, worked, ["one"] * len(names), attacks)
    assert "0 of 96" in predict_attacks(readings, [False] * len(worked), names, attacks)
    alone = [name == "family 0" for name in names]
    assert "nothing can be fitted" in predict_attacks(readings, alone, names, attacks)
