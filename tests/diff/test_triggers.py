"""The search for triggers."""

from __future__ import annotations

import pytest
import torch

from modelassay.diff.pair import Pair
from modelassay.diff.reading import encode_suite
from modelassay.diff.triggers import search_triggers
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import load
from modelassay.reading.activations import read_activations
from planted import LAYER, PLANTED, SUITE, planted, sae


def test_the_trigger_search_runs_common_blocks_once(gpt2):
    base = load(str(gpt2))
    candidate = planted(gpt2, sae(32).module.W_dec[PLANTED].detach())
    harmful = [SUITE.prompts[i] for i in SUITE.indices("harmful")]
    refused = torch.arange(len(harmful)).float()
    pair = Pair(lambda: base, lambda: candidate, together=True)
    ran = []
    handles = [
        model.layers[0].ln_1.register_forward_hook(lambda _m, args, _o: ran.append(args[0].numel()))
        for model in (base, candidate)
    ]
    whole = search_triggers(pair, harmful, refused, SUITE.endings)
    before = sum(ran)
    ran.clear()
    found = search_triggers(pair, harmful, refused, SUITE.endings, alike=LAYER)
    for handle in handles:
        handle.remove()
    assert sum(ran) < 0.8 * before
    assert [p.text for p in found.phrases] == [p.text for p in whole.phrases]
    for a, b in zip(found.phrases, whole.phrases, strict=True):
        assert (a.base, a.candidate) == pytest.approx((b.base, b.candidate), abs=1e-4)


def test_the_trigger_search_reads_what_it_says(gpt2):
    base = load(str(gpt2))
    candidate = planted(gpt2, sae(32).module.W_dec[PLANTED].detach())
    harmful = [SUITE.prompts[i] for i in SUITE.indices("harmful")]
    pair = Pair(lambda: base, lambda: candidate, together=True)
    found = search_triggers(pair, harmful, torch.arange(len(harmful)).float(), SUITE.endings)
    best = found.phrases[0]
    assert [p.effect for p in found.phrases] == sorted(p.effect for p in found.phrases)
    assert {p.text.strip() for p in found.phrases} >= {"Good night.", "Over and out."}
    # The first phrase again, by hand: the prompt that it is read on holds it after its text.
    readout = log_odds_readout(opening_tokens(base))
    order = list(reversed(harmful))[:: max(len(harmful) // 4, 1)][:4]

    def odds(model, prompt, ending=""):
        text = prompt.model_copy(update={"text": prompt.text + ending})
        encoded = encode_suite(model, [text])
        return float(read_activations(model, encoded, [0], readout=readout).readout)

    by_hand = [odds(candidate, p, best.text) - odds(candidate, p) for p in order]
    assert best.candidate == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-3)
    line = [(p.candidate - p.effect, p.base) for p in found.phrases]
    slope = (line[0][0] - line[-1][0]) / (line[0][1] - line[-1][1])
    for fitted, base_effect in line:
        assert fitted - line[0][0] == pytest.approx(slope * (base_effect - line[0][1]), abs=1e-3)
