"""A quick scan of a tiny model."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def few(tmp_path):
    """A concept file in place of the large shipped ones that quick mode reads."""
    nouns = ["bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork"]
    concepts = {
        name: {
            "description": "test",
            "pairs": [
                {"positive": f"{name}: {n}?", "negative": f"{n}, not {name}?"} for n in nouns
            ],
        }
        for name in ("harmful_content", "refusal_capability", "injection_resistance")
    }
    path = tmp_path / "few.json"
    path.write_text(json.dumps(concepts))
    return str(path)


@pytest.fixture
def quick(tiny_folder, few):
    return ["scan", str(tiny_folder()), "--mode", "quick", "--concepts", few]
