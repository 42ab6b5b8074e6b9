"""Attacks that change the same components are grouped, and noise makes no stable groups."""

from __future__ import annotations

import numpy as np
import pytest

from modelassay.mechanism.clusters import group_attacks

NAMES = [f"{i}.mlp" for i in range(12)]


def test_shared_profiles_are_grouped():
    rng = np.random.default_rng(0)
    kinds = rng.standard_normal((2, 12)) * 3
    profiles = {f"attack {i}": kinds[i % 2] + 0.5 * rng.standard_normal((4, 12)) for i in range(8)}
    found = group_attacks(profiles, NAMES)
    assert found is not None
    assert sorted(sorted(group.attacks) for group in found.groups) == [
        [f"attack {i}" for i in range(start, 8, 2)] for start in range(2)
    ]
    assert found.stability == 1
    strongest = NAMES[int(np.argmax(kinds[0]))]
    assert strongest in next(g for g in found.groups if "attack 0" in g.attacks).components
    assert found.to_dict()["groups"][0]["attacks"]


def test_noise_makes_no_stable_groups():
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        profiles = {f"attack {i}": rng.standard_normal((4, 12)) for i in range(10)}
        found = group_attacks(profiles, NAMES)
        assert found is not None
        assert found.stability is not None
        values.append(found.stability)
    assert np.mean(values) == pytest.approx(0, abs=0.1)


def test_few_attacks_and_flat_profiles_are_no_error():
    assert group_attacks({"a": np.zeros((1, 3)), "b": np.ones((1, 3))}, NAMES[:3]) is None
    flat = group_attacks({name: np.zeros((1, 3)) for name in "abc"}, NAMES[:3])
    assert flat is not None
    assert flat.stability is None
    assert all(not group.components for group in flat.groups)
