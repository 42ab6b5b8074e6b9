"""Labelled exchanges: what a row may say, and which rows stay together."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modelassay.data.labelled import (
    LabelledExchange,
    data_hash,
    draw,
    hold_out,
    prompt_groups,
    read_labelled,
    require_classes,
    rows_at,
    to_labelled,
)
from modelassay.errors import InputError
from modelassay.probes.fitting import folds_of
from probe_rows import WORDS

GOOD = '{"prompt": "a", "response": "b", "label": 1}'


@pytest.mark.parametrize(
    ("label", "unsafe", "name"),
    [
        (0, False, None), (1, True, None), (True, True, None), ("0", False, None),
        ("harmful", True, None), ("Benign", False, None), (1.0, True, None),
        ("safe_refusal", False, "safe_refusal"), ("unsafe_compliance", True, "unsafe_compliance"),
    ],
)  # fmt: skip
def test_labels(tmp_path, label, unsafe, name):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b", "label": label}) + "\n")
    (row,) = read_labelled(path, labels="binary")
    assert (row.unsafe, row.label, row.source) == (unsafe, name, "rows.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Row 3 .* not valid JSON"),
        ("[1]", "Row 3 .* not a JSON object"),
        ('{"prompt": "a", "response": "b"}', "Row 3 .*label"),
        ('{"prompt": "a", "response": "b", "label": 3}', "Row 3 .*label"),
        ('{"prompt": "a", "response": "b", "label": [1]}', "Row 3 .*label"),
        ('{"prompt": "", "response": "b", "label": 1}', "Row 3 .*prompt"),
        ('{"prompt": 5, "response": "b", "label": 1}', "Row 3 .*prompt"),
        ('{"prompt": "a", "response": "", "label": 1}', "Row 3 .*response"),
        ('{"prompt": "a", "label": 1}', "Row 3 .*response"),
        ('{"prompt": "a \\ud800", "response": "b", "label": 1}', "Row 3 .*half of a character"),
        (json.dumps({"prompt": "a" * 300_000, "response": "b", "label": 1}), "Row 3 .*more than"),
        ("[" * 100_000, "Row 3 .* not valid JSON"),
        (GOOD[:-1] + ', "spans": [[0, 2]]}', r"Row 3 .*\[0, 2\].* response of 1 char"),
        (GOOD[:-1] + ', "spans": [[0, true]]}', "Row 3 .*list of .start, end."),
        (GOOD[:-1] + ', "spans": {"0": 1}}', "Row 3 .*list of .start, end."),
        (GOOD[:-1] + ', "spans": "[[0"}', "Row 3 .*not valid JSON"),
        (GOOD[:-2] + '0, "spans": [[0, 1]]}', "Row 3 .*labelled safe"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=words):
        read_labelled(path)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "response": "  well, harm\n", "spans": [[8, 12]]},
        {"prompt": "a", "response": "  well, harm\n", "spans": "[[8, 13]]"},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "well, harm"},
            ],
            "spans": [[6, 10]],
        },
    ],
)
def test_spans_count_characters_of_the_response_as_it_is_written(row):
    found = to_labelled({**row, "label": 1}, "Row 1", "answer", "s", "binary")
    ((start, end),) = found.spans
    assert found.response[start:end] == "harm"
    assert data_hash([found]) != data_hash([replace(found, spans=())])


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\xff\xfe\x00\x01\n")
    with pytest.raises(InputError, match="Row 2 .* UTF-8"):
        read_labelled(path)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 1000)[:-20])
    with pytest.raises(InputError):
        read_labelled(path)
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_labelled(tmp_path / "none.jsonl")


def test_responses_may_be_empty_at_the_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "label": 1}\n{"prompt": "b", "response": "", "label": 0}\n')
    assert [row.response for row in read_labelled(path, at="prompt")] == ["", ""]


def test_a_missing_class_is_named():
    with pytest.raises(InputError, match=r"unsafe \(1\)"):
        require_classes([LabelledExchange("a", "b", False, None, "s")], (True, False), "A probe")


def test_near_duplicates_stay_together():
    prompts = [
        "How do I bake a chocolate cake for ten people?",
        "How do I bake a chocolate cake for ten people??",
        "how do I bake a chocolate cake  for ten people",
        "What is the tallest mountain in Africa?",
        "",
    ]
    groups = prompt_groups([*prompts, prompts[3]])
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[3] == groups[5] != groups[4]
    rows = [row for i in range(40) for row in (f"{WORDS[i % 14]} number {i * 7919}",) * 3]
    groups = prompt_groups(rows)
    test = hold_out(groups, 0.25)
    assert not set(groups[test]) & set(groups[~test])
    assert 0.1 < test.mean() < 0.4
    unsafe = np.arange(len(rows)) % 2 == 0
    for train, left in folds_of(unsafe, groups):
        assert not set(groups[train]) & set(groups[left])


def test_at_the_prompt_labels_speak_of_the_prompt(caplog):
    """An exchange's label says what was answered; a refusal says nothing about what was asked."""

    def row(prompt, label):
        return LabelledExchange(prompt, "x", label == "unsafe_compliance", label, "s")

    rows = [
        row("bad", "safe_refusal"),
        row("bad", "unsafe_compliance"),
        row("bad", "safe_compliance"),
        row("good", "safe_compliance"),
        row("unknown", "safe_refusal"),
    ]
    kept = rows_at(rows, "prompt")
    assert [(each.prompt, each.unsafe) for each in kept] == [("bad", True)] * 3 + [("good", False)]
    assert "1 rows are left out" in caplog.text
    assert rows_at(rows, "answer") == rows


def test_a_byte_order_mark_is_no_error(tmp_path):
    file = tmp_path / "rows.jsonl"
    text = '{"prompt": "a", "response": "b", "label": 0}\n' * 2
    file.write_text(text, encoding="utf-8-sig")
    assert len(read_labelled(file)) == 2


def test_labels_are_of_exchanges_in_any_layout():
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    for row in (
        {"messages": said, "label": 1},
        {"messages": json.dumps(said), "label": "1"},  # of a CSV file
        {"prompt": "", "instruction": "q", "output": "a", "unsafe": "true", "label": ""},
        {"question": "q", "answer": "a", "label": True},
    ):
        found = to_labelled(row, "Row 1 of x", "answer", "x", "binary")
        assert (found.prompt, found.response, found.unsafe) == ("q", "a", True)
    with_input = {"instruction": "q", "input": "x", "output": "a", "label": 0}
    assert to_labelled(with_input, "Row 1 of x", "answer", "x", "binary").prompt == "q\nx"


def test_a_label_of_several_turns_or_of_another_meaning_is_refused():
    turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    with pytest.raises(InputError, match="turns user, assistant, user"):
        to_labelled({"messages": turns, "label": 1}, "Row 1 of x", "prompt", "x", "binary")
    with pytest.raises(InputError, match="true means a desired response"):
        to_labelled(
            {"prompt": "q", "completion": "a", "label": True}, "Row 1", "answer", "x", "binary"
        )


def _drawn(rows, most, **how):
    found = draw(rows, most, **how)
    assert found == sorted(set(found))
    return Counter((rows[i].unsafe, rows[i].source) for i in found)


def test_a_draw_is_even_over_labels_and_sources_and_always_the_same():
    sizes = {(True, "a"): 40, (True, "b"): 3, (False, "a"): 500, (False, "c"): 100}
    rows = [
        LabelledExchange(f"{n} {source}", "x", unsafe, None, source)
        for (unsafe, source), size in sizes.items()
        for n in range(size)
    ]
    assert _drawn(rows, 40) == {
        (True, "a"): 17, (True, "b"): 3, (False, "a"): 10, (False, "c"): 10,
    }  # fmt: skip
    # Where a class has too few, the other fills up; nothing is drawn twice, nothing left out.
    assert _drawn(rows, 300) == {
        (True, "a"): 40, (True, "b"): 3, (False, "a"): 157, (False, "c"): 100,
    }  # fmt: skip
    assert draw(rows, 40) == draw(rows, 40) != draw(rows, 40, seed=1)
    assert (
        draw(rows, 643) == draw(rows, 9999) == draw(rows, None) == draw(rows, 0) == list(range(643))
    )
    with pytest.raises(InputError, match="at least 2"):
        draw(rows, 1)


def test_a_draw_may_be_even_over_three_classes():
    names = ["safe_response"] * 80 + ["safe_refusal"] * 15 + ["unsafe_response"] * 5
    rows = [LabelledExchange("p", "r", "unsafe" in name, name, "s") for name in names]
    found = Counter(rows[i].label for i in draw(rows, 30, of=lambda row: row.label))
    assert found == {"safe_response": 12, "safe_refusal": 13, "unsafe_response": 5}
