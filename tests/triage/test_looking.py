"""Counts, samples and searches of rows."""

from __future__ import annotations

import time

import pytest

from modelassay.errors import InputError
from modelassay.triage import (
    sample,
    search,
    summarize,
)
from modelassay.triage.rows import to_row
from tiny import make_tokenizer
from training_rows import numbered, row


def test_summary_counts():
    rows = numbered([("a b", "c"), ("a b", "c"), ("d", "I'm sorry, but I can't help with that.")])
    rows.append(to_row({"text": "plain"}, 4, "x"))
    rows.append(to_row({"user": "e", "assistant": "", "system": "s"}, 5, "x"))
    found = summarize(rows, make_tokenizer())
    assert (found.n_rows, found.n_duplicates, found.duplicate_share) == (5, 1, 0.2)
    assert found.n_judged == 3
    assert (found.n_refusals, found.n_plain, found.n_empty_responses) == (1, 1, 1)
    assert (found.n_system_prompts, found.n_with_system) == (1, 1)
    assert found.prompt_characters.quantiles["1.0"] == 3
    assert found.tokens is not None
    assert found.tokens.total == sum(len(each.text.encode()) for each in rows)


def test_a_sample_is_repeatable_and_in_order():
    rows = numbered([(str(i), "x") for i in range(100)])
    drawn = sample(rows, 10, seed=3)
    assert drawn == sample(rows, 10, seed=3) != sample(rows, 10, seed=4)
    assert [each.number for each in drawn] == sorted({each.number for each in drawn})
    assert len(sample(rows, 1000)) == 100
    with pytest.raises(InputError, match="at least one"):
        sample(rows, 0)


def test_search_finds_rows_and_places():
    rows = numbered([("née Dupont", "ok"), ("NÉE", "born"), ("other", "née")])
    found = search(rows, "née?")
    assert [match.row.number for match in found.matches] == [1, 3]
    assert (found.matches[1].start, found.matches[1].end) == (7, 10)  # characters, not bytes
    assert search(rows, "née", "prompt", ignore_case=True).n_matches == 2
    capped = search(rows, ".", limit=1)
    assert (len(capped.matches), capped.n_matches, capped.n_searched) == (1, 3, 3)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)+$", "(a|aa)*c", "(.*)*(.*)*(.*)*Z"])
def test_no_pattern_can_hang(pattern):
    rows = [row("a" * 100_000 + "!", "word " * 20_000 + "!")]
    start = time.monotonic()
    search(rows, pattern)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "pattern", ["", "[", "(?=a)", "((a{500}){500}){500}", r"(a)\1", "a" * 1001, "\ud800"]
)
def test_patterns_that_are_refused(pattern):
    start = time.monotonic()
    with pytest.raises(InputError, match="pattern"):
        search([row("aaa")], pattern)
    assert time.monotonic() - start < 2


def test_a_search_stops_in_time_and_says_so():
    found = search([row("a")] * 3, "a", seconds=-1)
    assert (found.n_searched, found.n_rows, found.matches) == (0, 3, ())
    with pytest.raises(InputError, match="field"):
        search([row("a")], "a", "number")  # type: ignore[arg-type]
