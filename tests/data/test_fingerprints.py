"""What was learnt from is recognised by its record, and nothing else is."""

from __future__ import annotations

import pytest

from modelassay.data.fingerprints import fingerprints, told, unseen
from modelassay.data.labelled import LabelledExchange, data_hash
from modelassay.errors import InputError
from modelassay.probes import PROBES


def rows(*prompts):
    return [LabelledExchange(prompt, "r", False, None, "s") for prompt in prompts]


def test_prompts_are_known_whatever_their_case_and_spacing():
    known = fingerprints(["How do I bake bread?", "Name a tree."])
    found = unseen(rows(" how  do i bake BREAD?", "How do I bake cake?"), known, [])
    assert (found.rows, found.n_seen) == ((1,), 1)
    assert "bread" not in known
    assert fingerprints(["a", "b"]) == fingerprints(["b", "a", "A"])


def test_an_older_record_knows_its_whole_data_only():
    learnt = rows("a", "b")
    assert unseen(learnt, None, [data_hash(learnt)]).n_seen == 2
    with pytest.raises(InputError, match="All 2 rows are of prompts that it was trained on"):
        unseen(learnt, None, [data_hash(learnt)]).require("it", "show it")
    part = unseen(learnt[:1], None, [data_hash(learnt)])
    assert (part.rows, part.n_seen) == ((0,), None)
    assert "unknown" in told(None)
    assert unseen(learnt, "no fingerprints", []).n_seen is None  # a stranger's record


def test_the_shipped_prompt_heads_say_what_they_learnt_from():
    for found in PROBES.list(own=False):
        trained_on = found.record.heads["prompt"].trained_on
        n_prompts = len(trained_on.prompts or "") // 10
        assert 0.9 * (trained_on.n_safe + trained_on.n_unsafe) < n_prompts
        assert unseen(rows("A prompt of nobody's."), trained_on.prompts, []).n_seen == 0
