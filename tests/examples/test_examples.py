"""The example scripts run as they stand."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("scan_model.py", ["quick"], "held out"),
        ("read_activations.py", [], "against tools"),
        ("guarded_answer.py", [], "held-out AUROC"),
        ("needle_in_haystack.py", ["0.1"], "7 needles in 71 rows"),
    ],
)
def test_example(script, arguments, words, tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, str(tiny_folder()), *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    assert words in capsys.readouterr().out
