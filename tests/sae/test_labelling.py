"""What labels of features say."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("sae_lens")
from labelled import AFTER_O, DEAD, HELD_OUT, ON_X, TEXTS
from modelassay.errors import InputError
from modelassay.sae import label_features


def test_a_planted_feature_gets_the_right_tokens_and_is_believed(labels):
    found = labels.of(ON_X)
    assert set(found.tokens) == {"x"}
    assert found.fires == "on"
    assert "“x”" in found.text
    assert found.reliability.value > 0.97
    assert found.reliability.interval[0] > 0.9
    assert found.reliability.n_fired > 20
    assert all("«x»" in context for context in found.contexts)


def test_a_feature_of_the_token_before_is_labelled_by_it(labels):
    found = labels.of(AFTER_O)  # in these words x, v and g come after nothing but o
    assert found.fires == "after"
    assert found.named == ("o",)
    assert found.text.startswith("after “o”; promotes ")
    assert set(found.tokens) <= set("xvg")
    assert 0.95 < found.reliability.value < 1  # w comes after o as well


def test_a_feature_that_never_fires_has_no_label_and_no_score(labels):
    found = labels.of(DEAD)
    assert found.text == ""
    assert found.reliability is None
    assert found.tokens == ()
    assert len(found.promoted) == 8


def test_without_contexts_no_text_of_the_data_is_kept(tiny, planted):
    found = label_features(tiny(), planted, TEXTS, HELD_OUT, contexts=False)
    assert not found.record.contexts
    for row in found.table.to_pylist():
        assert row["contexts"] == []
        assert all(len(token) <= 6 for token in row["tokens"])  # a token is a byte here


def test_bad_texts_are_said(tiny, planted):
    with pytest.raises(InputError, match="to label features with are empty"):
        label_features(tiny(), planted, ["", ""], HELD_OUT)
    with pytest.raises(InputError, match="to score the labels on are empty"):
        label_features(tiny(), planted, TEXTS, [""])
    with pytest.raises(InputError, match="at least one token"):
        label_features(tiny(), planted, TEXTS, HELD_OUT, tokens=0)
    with pytest.raises(InputError, match="width"):
        label_features(tiny(), replace(planted, hidden_size=7), TEXTS, HELD_OUT)
