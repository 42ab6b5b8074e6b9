"""A planted feature is found, and nothing is where nothing is."""

from __future__ import annotations

import math

import pytest
import torch

from modelassay.diff import diff
from modelassay.diff.features import Q_LEVEL, compare_features
from modelassay.diff.reading import encode_suite, match_tokens, read_model
from modelassay.errors import InputError
from modelassay.models import load
from planted import LAYER, PLANTED, SUITE, planted, sae


def readings(base, candidate, layers=(LAYER,)):
    matched = match_tokens(base, encode_suite(base, SUITE.prompts), None)
    before = read_model(base, matched, layers)
    after = read_model(candidate, matched, layers, base=before)
    return before, after


def test_a_planted_feature_is_at_rank_one(gpt2):
    base, words = load(str(gpt2)), sae(32)
    candidate = planted(gpt2, words.module.W_dec[PLANTED].detach())
    before, after = readings(base, candidate)
    found = compare_features(before, after, words)
    assert found.features[0].feature == PLANTED
    assert found.features[0].q_value < Q_LEVEL
    assert found.features[0].difference > 0
    assert found.features[0].interval[0] > 0
    assert found.features[0].tokens


def test_nothing_is_found_between_two_dtypes_of_one_model(gpt2):
    base, words = load(str(gpt2), dtype="float32"), sae(32)
    rounded = load(str(gpt2), dtype="bfloat16")
    before, after = readings(base, rounded)
    assert not torch.equal(before.activations, after.activations)
    found = compare_features(before, after, words)
    assert found.n_significant == 0


def test_nothing_is_tested_where_nothing_differs(gpt2):
    base = load(str(gpt2))
    before, after = readings(base, base)
    found = compare_features(before, after, sae(32))
    assert (found.n_tested, found.features) == (0, ())


def test_a_dictionary_of_another_width_is_refused(gpt2):
    with pytest.raises(InputError, match="width 48"):
        diff(load(str(gpt2)), load(str(gpt2)), SUITE, saes=[sae(48)])


def some_prompts(base, candidate, n):
    matched = match_tokens(base, encode_suite(base, SUITE.prompts[:n]), None)
    before = read_model(base, matched, (LAYER,))
    return before, read_model(candidate, matched, (LAYER,), base=before)


def test_too_few_prompts_give_differences_without_a_test_and_say_so(gpt2):
    base, words = load(str(gpt2)), sae(32)
    candidate = planted(gpt2, words.module.W_dec[PLANTED].detach())
    found = compare_features(*some_prompts(base, candidate, 3), words)
    assert (found.n_tested, found.features, found.finest_q) == (0, (), None)
    first = found.untested[0]
    assert (first.feature, first.n_differ, first.tokens != ()) == (PLANTED, 3, True)
    assert math.isnan(first.p_value)
    assert first.difference > 0
    assert found.n_untested >= len(found.untested) > 0
    assert "No feature was tested" in found.to_dict()["too_few"]
    assert len(compare_features(*some_prompts(base, candidate, 3), words, reported=1).untested) == 1


def test_prompts_that_cannot_reach_significance_are_said_to_be_too_few(gpt2):
    base, words = load(str(gpt2)), sae(32)
    candidate = planted(gpt2, words.module.W_dec[PLANTED].detach())
    found = compare_features(*some_prompts(base, candidate, 6), words)
    assert found.n_tested > 0
    assert found.finest_q is not None
    assert all(found.finest_q < 2 * c.q_value for c in found.features)  # random flips
    assert (found.too_few is not None) == (found.finest_q >= Q_LEVEL)
    assert compare_features(*readings(base, candidate), words).too_few is None
    assert compare_features(*some_prompts(base, base, 3), words).too_few is None
