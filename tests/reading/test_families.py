"""Every family that transformers knows is read right or refused by name, as docs/models.md says."""

from __future__ import annotations

import pytest

from families import TYPES
from family_sweep import PAGE, outcome, row

FEW = ("falcon_h1", "gemma4_text", "gpt_oss", "llama4", "mllama", "openai-gpt", "qwen3_next")


def _check(model_type, folder):
    assert row(model_type, outcome(model_type, folder)) in PAGE.read_text().splitlines()


@pytest.mark.parametrize("model_type", FEW)
def test_a_few_unlike_families(tmp_path, model_type):
    _check(model_type, tmp_path)


@pytest.mark.families
@pytest.mark.parametrize("model_type", [name for name in TYPES if name not in FEW])
def test_all_other_families(tmp_path, model_type):
    _check(model_type, tmp_path)
