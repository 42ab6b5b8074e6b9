"""The example scripts run as they stand."""

from __future__ import annotations

import subprocess
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
def test_example(script, arguments, words, tiny_folder):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / script), str(tiny_folder()), *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert words in run.stdout
