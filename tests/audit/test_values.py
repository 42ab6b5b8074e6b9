"""What of a result is evidence."""

from __future__ import annotations

import numpy as np

from modelassay.audit.values import mean, note_on_pairs, numbers_of, rate


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


def test_a_statistic_that_needs_more_data_says_so():
    assert "note" in rate(0, 0)
    assert rate(0, 0)["rate"] is None
    assert "note" not in rate(1, 2)
    assert "interval" in mean(np.array([2.0]))["note"]
    assert "note" not in mean(np.array([2.0, 3.0]))
    assert "p-value" in note_on_pairs(5)["note"]
    assert note_on_pairs(6) == {}
