"""Work tells how much of it is done."""

from __future__ import annotations

from modelassay.progress import phase_of, told


def test_each_item_is_told_before_it_is_worked_on_and_the_last_after():
    said = []
    on_progress = phase_of(lambda phase, done, total: said.append((phase, done, total)), "work")
    items = told("ab", on_progress)
    assert next(items) == "a"
    assert said == [("work", 0, 2)]
    assert list(items) == ["b"]
    assert said == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2)]
    assert list(told([1, 2], None)) == [1, 2]
