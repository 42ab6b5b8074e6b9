"""Groups of near-duplicates."""

from __future__ import annotations

import random

from modelassay.triage import duplicates as duplicates_module
from modelassay.triage import (
    near_duplicates,
)
from modelassay.triage.duplicates import row_groups
from training_rows import NOUNS, numbered, row


def test_near_duplicates_are_grouped():
    long = "Describe in detail how the old mill by the river was built and who paid for it"
    rows = numbered(
        [
            (long, "By hand."),
            (f"{long}.", "By hand."),
            (long, "By hand."),
            ("Why is tin light?", ""),
        ]
        + [(f"{n} {n[::-1]} {n.upper()}?", n * 3) for n in NOUNS]
    )
    found = near_duplicates(rows)
    assert [[each.number for each in group.rows] for group in found.groups] == [[1, 2, 3]]
    assert (found.n_rows, found.groups[0].n_exact) == (3, 1)
    assert near_duplicates([]).groups == ()


def test_duplicates_do_not_depend_on_the_block(monkeypatch):
    draw = random.Random(0)  # noqa: S311
    words = [draw.sample(NOUNS * 3, 12) for _ in range(30)]
    rows = [row(" ".join(each)) for each in words] + [row(" ".join([*w[1:], "x"])) for w in words]
    whole = row_groups(rows)
    monkeypatch.setattr(duplicates_module, "BLOCK", 7)
    assert (row_groups(rows) == whole).all()
