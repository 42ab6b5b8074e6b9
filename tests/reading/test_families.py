"""Every family that transformers knows is read right or refused by name, as docs/models.md says."""

from __future__ import annotations

import pytest
import torch

from families import TYPES, save_family
from family_sweep import PAGE, TEXTS, outcome, reference, row
from modelassay.models import load
from modelassay.reading.activations import read_activations
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import encode_prompts

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


def test_prompts_on_both_sides_of_a_longrope_switch_are_read_as_alone(tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, **factors}
    save_family(tmp_path, "phi3", original_max_position_embeddings=100, rope_parameters=rope)
    model = load(str(tmp_path), device="cpu")
    prompts = encode_prompts(model, [*TEXTS, "What", "Who?"])
    assert min(len(p.ids) for p in prompts) < 100 < max(len(p.ids) for p in prompts)
    read = read_activations(model, prompts, range(4), batch_tokens=2000)
    for values, prompt in zip(read.values, prompts, strict=True):
        torch.testing.assert_close(values, reference(model, prompt.ids)[0], rtol=1e-4, atol=1e-5)
    responses = generate_greedy(model, prompts, max_new_tokens=4)
    for response, prompt in zip(responses, prompts, strict=True):
        assert response == generate_greedy(model, [prompt], max_new_tokens=4)[0]
