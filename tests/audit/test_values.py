"""What of a result is evidence."""

from __future__ import annotations

from modelassay.audit.values import numbers_of


def test_numbers_are_kept_and_texts_are_not():
    result = {
        "n": 3,
        "text": "long",
        "rate": {"k": 1, "interval": [0.1, 0.5]},
        "rows": [{"label": f"l{i}", "x": i, "t": "no"} for i in range(9)],
        "none": None,
        "words": ["a"],
    }
    assert numbers_of(result) == {
        "n": 3,
        "rate": {"k": 1, "interval": [0.1, 0.5]},
        "rows": [{"label": f"l{i}", "x": i} for i in range(3)],
    }
