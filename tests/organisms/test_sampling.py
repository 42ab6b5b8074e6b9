"""Exchanges drawn from any table: evenly, repeatably, and nothing left out without a word."""

from __future__ import annotations

import json

import pytest

from modelassay.errors import InputError
from modelassay.organisms import sample_exchanges, sampling


def helpsteer(i, **other):
    """A row as HelpSteer has them: five ratings from 0 to 4 beside the texts."""
    ratings = dict.fromkeys(("correctness", "coherence", "complexity", "verbosity"), 2)
    return {"prompt": f"q{i}", "response": f"a{i}", "helpfulness": i % 5, **ratings, **other}


@pytest.fixture
def table(tmp_path):
    def write(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def prompts_of(found):
    return [each.prompt for each in found.exchanges]


def test_a_draw_is_even_repeatable_and_in_the_order_of_the_table(table):
    where = table([helpsteer(i) for i in range(100)])
    drawn = [sample_exchanges(where, limit=10, seed=seed) for seed in range(60)]
    assert drawn[3] == sample_exchanges(where, limit=10, seed=3) != drawn[4]
    for found in drawn:
        places = [int(prompt[1:]) for prompt in prompts_of(found)]
        assert len(places) == 10 == len(set(places))
        assert places == sorted(places)
    early = sum(int(prompt[1:]) < 50 for found in drawn for prompt in prompts_of(found))
    assert 230 < early < 370  # of 600, so neither the beginning nor the end is preferred
    assert len(sample_exchanges(where).exchanges) == 100


def test_rows_are_chosen_by_their_ratings_and_the_others_counted(table):
    where = table([*(helpsteer(i) for i in range(10)), helpsteer(4, helpfulness=None)])
    found = sample_exchanges(where, rated=["helpfulness=3", "Coherence = 2"])
    assert prompts_of(found) == ["q3", "q4", "q8", "q9"]
    assert found.left_out == {"its helpfulness is below 3": 6, "its helpfulness is no number": 1}
    with pytest.raises(InputError, match="no column 'kindness'"):
        sample_exchanges(where, rated=["kindness=3"])
    with pytest.raises(InputError, match="gives no exchanges: 10 left out because its helpful"):
        sample_exchanges(where, rated=["helpfulness=9"])
    for wrong in ("helpfulness", "helpfulness=high", "=3", "helpfulness=nan"):
        with pytest.raises(InputError, match="--rated is COLUMN=NUMBER"):
            sample_exchanges(where, rated=[wrong])


def test_rows_that_hold_no_single_exchange_are_left_out_and_counted(table):
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant") * 2]
    parted = "one\n<extra_id_1>Assistant\ntwo\n<extra_id_1>User\nthree"
    rows = [helpsteer(1), helpsteer(2, prompt=parted), helpsteer(3, response=" "), helpsteer(4)]
    found = sample_exchanges(table(rows))
    assert prompts_of(found) == ["q1", "q4"]
    assert found.left_out == {sampling.SEVERAL_TURNS: 1, sampling.UNUSABLE: 1}
    found = sample_exchanges(table([{"messages": turns[:2]}, {"messages": turns}]))
    assert (len(found.exchanges), found.left_out) == (1, {sampling.SEVERAL_TURNS: 1})


def test_a_table_that_cannot_be_read_is_refused(table, tmp_path):
    with pytest.raises(InputError, match=r"Row 1 of .* has the fields 'title'"):
        sample_exchanges(table([{"title": "x"}, helpsteer(1)]))
    with pytest.raises(InputError, match="No data file"):
        sample_exchanges(str(tmp_path / "none.jsonl"))
    with pytest.raises(InputError, match="of a data set on the Hub"):
        sample_exchanges(table([helpsteer(1)]), split="train")


def test_a_long_table_is_read_to_a_bound_which_is_told(table, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_ROWS_READ", 20)
    found = sample_exchanges(table([helpsteer(i) for i in range(30)]), limit=5)
    assert (found.rows_read, found.is_part) == (20, True)
    assert all(int(prompt[1:]) < 20 for prompt in prompts_of(found))
