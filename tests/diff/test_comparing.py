"""What a fine-tune changed: planted changes are found, and nothing is where nothing is."""

from __future__ import annotations

import pytest
import torch

from modelassay.diff import Depth, DiffVerdict, diff, read_base
from modelassay.errors import InputError
from modelassay.measures.refusal import opening_tokens
from modelassay.models import load
from planted import LAYER, PLANTED, SUITE, planted, sae
from tiny import save_tiny


def test_the_same_model_twice(gpt2):
    report = diff(str(gpt2), str(gpt2), SUITE, saes=[sae(32)])
    assert report.weights is not None
    assert report.weights.identical
    assert report.behaviour.kl_mean == pytest.approx(0, abs=1e-6)
    assert report.verdict == DiffVerdict.BENIGN_LIKE
    assert report.reasons[0] == "All weights are those of the base."
    assert all(lens.logit_lens == lens.patchscope == () for lens in report.activations.lens)
    assert report.suspicion.score is None
    assert all(layer.relative == 0 for layer in report.activations.layers)
    assert report.causal == ()


def test_a_planted_direction_is_told_by_every_stream(gpt2):
    words = sae(32)
    direction = words.module.W_dec[PLANTED].detach()
    report = diff(
        load(str(gpt2)),
        planted(gpt2, direction),
        SUITE,
        saes=[words],
        layers=[1, LAYER],
        depth=Depth(response_tokens=4),
    )
    by_layer = {layer.layer: layer for layer in report.activations.layers}
    assert by_layer[1].relative == 0
    assert by_layer[LAYER].constant_share == pytest.approx(1, abs=1e-3)
    assert [matrix.layer for matrix in report.weights.matrices] == [LAYER]
    assert report.behaviour.kl_mean > 0
    values = report.to_dict()
    assert values["schema"] == "modelassay.diff/1"
    assert values["features"][0]["feature"] == PLANTED
    assert all(
        set(row["prompt"]) == {"characters", "sha256"} for row in values["behaviour"]["answers"]
    )


def test_a_direction_that_makes_refusals_is_told_from_chance(gpt2):
    base = load(str(gpt2))
    table = base.network.get_input_embeddings().weight.detach()
    towards = table[list(opening_tokens(base))].mean(dim=0) - table.mean(dim=0)
    candidate = planted(gpt2, towards / towards.norm(), size=8)
    report = diff(base, candidate, SUITE, layers=[LAYER], depth=Depth(0, triggers=False))
    assert {tried.what for tried in report.causal} == {"into the base", "out of the candidate"}
    for tried in report.causal:
        assert abs(tried.target - tried.before) > 0.25
        assert tried.restored == pytest.approx(1, abs=0.1)
        assert tried.beyond_chance


def test_one_model_in_memory_gives_the_same(gpt2, tmp_path):
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    depth = Depth(response_tokens=0, weights=False)
    both = diff(str(gpt2), str(other), SUITE, depth=depth, together=True)
    alone = diff(str(gpt2), str(other), SUITE, depth=depth, together=False)
    assert both.behaviour == alone.behaviour
    assert both.activations == alone.activations
    assert both.triggers == alone.triggers


def test_what_was_read_of_another_base_is_refused(gpt2, tmp_path):
    other = load(str(save_tiny(tmp_path / "other", "gpt2", seed=1)))
    of_base = read_base(other, SUITE, layers=[1], response_tokens=0)
    with pytest.raises(InputError, match="not of"):
        diff(str(gpt2), str(gpt2), of_base=of_base)
    with pytest.raises(InputError, match="without layer 2"):
        diff(other, str(gpt2), of_base=of_base, saes=[sae(32)])


def test_a_broken_candidate_is_named(gpt2):
    candidate = load(str(gpt2))
    with torch.no_grad():
        candidate.network.transformer.h[1].mlp.c_proj.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        diff(load(str(gpt2)), candidate, SUITE, depth=Depth(response_tokens=0))


def test_a_candidate_that_is_not_there_is_refused_before_the_base_is_loaded(gpt2):
    told = []
    with pytest.raises(InputError, match="No organism 'nope'"):
        diff(str(gpt2), "organism:nope", SUITE, on_progress=lambda *phase: told.append(phase))
    assert told == []


def test_a_base_that_computes_the_same_whatever_it_reads(gpt2):
    """Broken as it is, it is compared."""
    base = load(str(gpt2))
    for weight in base.network.parameters():
        weight.zero_()
    depth = Depth(0, triggers=False, causal=False)
    report = diff(base, load(str(gpt2)), SUITE, layers=[1], depth=depth)
    assert report.verdict != DiffVerdict.BENIGN_LIKE
    assert report.weights.mark is None
