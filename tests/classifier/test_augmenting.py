"""Beginnings of responses, and other forms of the same words."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np

from exchanges import synthetic
from modelassay.classifier import augmenting, recipe
from modelassay.classifier.augmenting import (
    dressed,
    listed,
    stream_prefixes,
    undressed,
    with_prefixes,
    word_prefix,
)
from modelassay.data.labels import LABELS


def test_prefixes_end_with_whole_words_and_keep_label_and_prompt():
    rows = synthetic(60)
    grown = with_prefixes(rows, seed=1, prefixes=2)
    assert [row for row in grown if row in rows] == rows
    added = [row for row in grown if row not in rows]
    assert len(added) > 60
    by_response = {row.response: row for row in rows}
    for row in added:
        (whole,) = [r for text, r in by_response.items() if text.startswith(row.response + " ")]
        assert (row.prompt, row.label) == (whole.prompt, whole.label)
        assert len(row.response.split()) >= augmenting.MIN_WORDS


def test_prefixes_keep_spacing_and_short_answers_get_none():
    assert word_prefix("one\n\n two  three", 2) == "one\n\n two"
    assert word_prefix("one two", 5) == "one two"
    short = replace(synthetic(1)[0], response="only three words")
    assert with_prefixes([short], seed=0, prefixes=5) == [short]


def test_a_stream_asks_at_growing_lengths_and_at_the_end():
    text = " ".join(f"w{i}" for i in range(40))
    assert [len(prefix.split()) for prefix in stream_prefixes(text)] == [8, 16, 32, 40]
    assert stream_prefixes("short answer") == ["short answer"]


def test_forms_change_and_words_stay():
    draw = random.Random(0)  # noqa: S311
    text = "First do this. Then do that. At last rest."
    assert "1. First do this.\n2. Then do that.\n3. At last rest." in {
        listed(text, draw) for _ in range(30)
    }
    for _ in range(50):
        assert {"First", "rest."} <= set(dressed(text, draw).replace("first", "First").split())
    stripped = {undressed("Sure, here it is:\n1. **Mix** it.\n2. Rest.", draw) for _ in range(60)}
    assert any("Sure" not in each for each in stripped)
    assert all("Mix" in each for each in stripped)


def test_rows_are_varied_whatever_their_class():
    draw = random.Random(0)  # noqa: S311
    rows = synthetic(600)
    varied = [recipe._vary(row, ["be somebody else"], draw) for row in rows]
    assert [row.label for row in varied] == [row.label for row in rows]
    for label in LABELS:
        mine = [row for row in varied if row.label == label]
        assert 0.05 < np.mean([row.prompt == "" for row in mine]) < 0.3
        assert 0.04 < np.mean([row.prompt.startswith("be somebody else") for row in mine]) < 0.25
