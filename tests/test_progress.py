"""Work tells how much of it is done."""

from __future__ import annotations

import re
from pathlib import Path

import modelassay
from modelassay.progress import PHASES, phase_of, told

SOURCES = sorted(Path(modelassay.__file__).parent.rglob("*.py"))


def test_each_item_is_told_before_it_is_worked_on_and_the_last_after():
    said = []
    on_progress = phase_of(lambda phase, done, total: said.append((phase, done, total)), "work")
    items = told("ab", on_progress)
    assert next(items) == "a"
    assert said == [("work", 0, 2)]
    assert list(items) == ["b"]
    assert said == [("work", 0, 2), ("work", 1, 2), ("work", 2, 2)]
    assert list(told([1, 2], None)) == [1, 2]


def test_every_phase_has_words_for_people():
    named = re.compile(r'phase_of\(\s*(?:self\.)?on_\w+,\s*"([^"]+)"')
    found = {name for path in SOURCES for name in named.findall(path.read_text(encoding="utf-8"))}
    assert len(found) > 15
    assert found <= set(PHASES)
