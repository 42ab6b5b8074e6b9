"""Both models are read at the same tokens, and numbers are the models' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelassay.diff.reading import (
    encode_contrasts,
    encode_suite,
    match_tokens,
    read_base,
    read_contrasts,
    read_model,
)
from modelassay.diff.suites import Contrast, SuitePrompt
from modelassay.diff.triggers import slot_of
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import load
from modelassay.reading.activations import read_activations
from modelassay.reading.logit_lens import unembed
from planted import SUITE
from talking import load_talking
from tiny import CHAT_TEMPLATE, FAMILIES, save_tiny


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_unembedding_is_the_models_own(tmp_path, family):
    model = load(str(save_tiny(tmp_path / family, family)))
    encoded = encode_suite(model, SUITE.prompts[:2])
    last = len(model.layers) - 1
    activations = read_activations(model, encoded, [last]).values[:, 0]
    found = torch.cat(list(unembed(model, activations)))
    for row, prompt in zip(found, encoded, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt.ids])
            expected = model.network(input_ids=ids, use_cache=False).logits[0, -1].float()
        assert torch.allclose(row, expected, atol=1e-4)


def test_log_odds_are_those_of_a_scan(tiny):
    model = tiny()
    encoded = encode_suite(model, SUITE.prompts)
    matched = match_tokens(model, encoded, ["an answer"] * len(encoded))
    found = read_model(model, matched, [1])
    readout = log_odds_readout(opening_tokens(model))
    expected = read_activations(model, encoded, [0], readout=readout).readout
    assert torch.allclose(found.log_odds, expected[:, 0], atol=1e-3)
    assert len(matched.tokens) == len(found.activations) == len(matched.in_response())
    assert matched.in_response().sum() == 9 * len(encoded)  # a byte is a token here


CLOSES = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is not false %}<think>\n{% endif %}{% endif %}",
)


def test_a_model_that_thinks_is_asked_to_answer_at_once(tmp_path):
    says = ("I'm sorry", ", but I", " can't help", " with that", "!")
    model = load_talking(tmp_path / "m", says, template=CLOSES)
    prompts = SUITE.prompts[:2]
    for prompt, row in zip(prompts, encode_suite(model, prompts), strict=True):
        text = model.tokenizer.decode(row.ids)
        assert "<think>" not in text
        assert model.tokenizer.decode(row.ids[row.response_start :]).startswith(prompt.text[:3])
    contrast = encode_contrasts(model, [Contrast(prompt="Who?", safe="Not I.", unsafe="You!")])[0]
    assert "<think>" not in model.tokenizer.decode(contrast.ids)
    assert "<think>" not in model.tokenizer.decode(slot_of(model, prompts[0]).after)
    suite = replace(SUITE, prompts=prompts, contrasts=())
    found = read_base(model, suite, response_tokens=6)
    assert [response.answer for response in found.responses] == ["".join(says)] * 2


def test_contrasts_are_mean_log_probabilities_of_the_answers(tiny):
    model = tiny()
    contrast = Contrast(prompt="Who?", safe="Not I.", unsafe="You!")
    found = read_contrasts(model, encode_contrasts(model, [contrast]))
    prompt = encode_suite(model, [SuitePrompt(text="Who?")])[0].ids
    for column, response in enumerate(("Not I.", "You!")):
        ids = torch.tensor([[*prompt, *model.tokenizer(response)["input_ids"]]])
        with torch.inference_mode():
            log_p = model.network(input_ids=ids).logits[0].float().log_softmax(-1)
        targets = ids[0, len(prompt) :]
        mean = log_p[len(prompt) - 1 : -1].gather(1, targets[:, None]).mean()
        assert found[0, column] == pytest.approx(float(mean), abs=1e-4)
