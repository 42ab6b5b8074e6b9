"""A pass that begins in the middle ends where a whole one does, or is given up."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from modelassay.diff.pair import Pair, traits_of
from modelassay.diff.reading import encode_suite, match_tokens, read_model
from modelassay.diff.suites import SuitePrompt
from modelassay.diff.weights import count_alike, diff_pair
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.models.components import Component, blocks_of
from modelassay.reading.activations import read_activations
from modelassay.reading.interventions import intervene
from modelassay.reading.resuming import ResumePoint
from tiny import FAMILIES

PROMPTS = [
    SuitePrompt(text=text)
    for text in (
        "Why is the sky blue?",
        "Name three rivers.",
        "Hi",
        "Write a short note to my landlord about the heating, please.",
    )
]
BEGIN = 2
FALLS_BACK = {"falcon", "bloom"}
"""Their layers give more than their states, so a pass cannot begin above one."""


@contextlib.contextmanager
def ran(model):
    """Which layers computed anything, by their first module."""
    found = []
    handles = [
        next(layer.children()).register_forward_hook(lambda *_, i=i: found.append(i))
        for i, layer in enumerate(model.layers)
    ]
    yield found
    for handle in handles:
        handle.remove()


def matched_prompts(model):
    return match_tokens(model, encode_suite(model, PROMPTS), ["An answer.", "", "Two", "Four"])


def resume_point_of(model, matched, layer=BEGIN):
    read = read_activations(model, matched.encoded, [layer], position="all")
    rows = read.values[:, 0].split(matched.lengths)
    return ResumePoint(layer, {p.ids: row for p, row in zip(matched.encoded, rows, strict=True)})


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("batch_tokens", [40, 10_000])
def test_every_family_ends_where_a_whole_pass_does(tiny, family, batch_tokens):
    model = tiny(family)
    matched = matched_prompts(model)
    resume = resume_point_of(model, matched)
    arguments = {"position": "all", "readout": lambda x: x, "batch_tokens": batch_tokens}
    whole = read_activations(model, matched.encoded, [2, 3, 4], **arguments)
    with ran(model) as layers:
        found = read_activations(model, matched.encoded, [2, 3, 4], resume=resume, **arguments)
    assert torch.allclose(found.values, whole.values, atol=1e-4)
    assert torch.allclose(found.readout, whole.readout, atol=1e-4)
    # The pass that is compared and the shared prefix run all layers, whatever the batches.
    expected = layers.count(4) if family in FALLS_BACK else 2
    assert layers.count(0) == layers.count(1) == layers.count(2) == expected
    assert layers.count(4) > 2
    # The model is as it was.
    again = read_activations(model, matched.encoded, [2, 3, 4], **arguments)
    assert torch.equal(again.values, whole.values)


def test_states_that_do_not_fit_are_given_up(tiny):
    model = tiny()
    matched = matched_prompts(model)
    right = resume_point_of(model, matched)
    wrong = ResumePoint(BEGIN, {ids: states + 0.1 for ids, states in right.activations.items()})
    whole = read_activations(model, matched.encoded, [3], position="all")
    found = read_activations(model, matched.encoded, [3], position="all", resume=wrong)
    assert torch.allclose(found.values, whole.values, atol=1e-5)


def test_prompts_whose_states_are_unknown_or_too_few_are_read_whole(tiny):
    model = tiny()
    matched = matched_prompts(model)
    right = resume_point_of(model, matched)
    longest = max(right.activations, key=len)
    fewer = {
        ids: states[1:] if ids == longest else states for ids, states in right.activations.items()
    }
    other = {ids: states for ids, states in right.activations.items() if ids != longest}
    whole = read_activations(model, matched.encoded, [3], position="all")
    for states in (fewer, other):
        found = read_activations(
            model, matched.encoded, [3], position="all", resume=ResumePoint(BEGIN, states)
        )
        assert torch.allclose(found.values, whole.values, atol=1e-4)


def test_lower_blocks_cannot_be_asked_for(tiny):
    model = tiny()
    matched = matched_prompts(model)
    with pytest.raises(InputError, match="cannot read lower"):
        read_activations(model, matched.encoded, [1, 3], resume=resume_point_of(model, matched))


def test_a_change_of_the_block_that_is_begun_at_is_seen(tiny):
    """Interventions there work as in a whole pass."""
    model = tiny()
    matched = matched_prompts(model)
    resume = resume_point_of(model, matched)

    def moved(hidden):
        return hidden + 1

    with intervene(blocks_of(model.layers), {Component(BEGIN, "block"): moved}):
        whole = read_activations(model, matched.encoded, [4])
        with ran(model) as layers:
            found = read_activations(model, matched.encoded, [4], resume=resume)
    plain = read_activations(model, matched.encoded, [4])
    assert torch.allclose(found.values, whole.values, atol=1e-4)
    assert not torch.allclose(found.values, plain.values, atol=1e-2)
    assert layers.count(0) == 2


def changed(folder, *, layer=None, dtype="float32"):
    """The model, with another MLP in one layer."""
    model = load(str(folder), dtype=dtype)
    if layer is not None:
        with torch.no_grad():
            model.layers[layer].mlp.down_proj.weight.mul_(1.5)
    return replace(model, info=model.info.model_copy(update={"id": "changed"}))


def alike(base, candidate):
    pair = Pair(lambda: base, lambda: candidate, together=True, given=("base", "candidate"))
    weights = diff_pair(pair)
    return count_alike(weights, traits_of(base), traits_of(candidate))


def test_alike_are_the_blocks_below_the_first_that_differs(tiny_folder):
    folder = tiny_folder()
    base = load(str(folder))
    assert alike(base, changed(folder)) == 5
    assert alike(base, changed(folder, layer=3)) == 3
    assert alike(base, changed(folder, layer=0)) == 0
    assert count_alike(None, traits_of(base), traits_of(base)) == 0


def test_embeddings_precision_and_config_must_be_the_same(tiny_folder):
    folder = tiny_folder()
    base = load(str(folder))
    embedded = changed(folder)
    with torch.no_grad():
        embedded.network.get_input_embeddings().weight[5] += 1
    assert alike(base, embedded) == 0
    rounded = changed(folder, dtype="bfloat16")
    assert (
        count_alike(diff_pair(Pair(lambda: base, lambda: base)), *map(traits_of, (base, rounded)))
        == 0
    )
    other = changed(folder)
    other.network.config.rms_norm_eps = 0.5
    assert alike(base, other) == 0


def test_the_candidates_reading_is_the_same_from_the_middle(tiny_folder):
    folder = tiny_folder()
    base, candidate = load(str(folder)), changed(folder, layer=3)
    matched = matched_prompts(base)
    layers = [0, 2, 3]
    before = read_model(base, matched, layers)
    whole = read_model(candidate, matched, layers, base=before)
    with ran(candidate) as passes:
        found = read_model(candidate, matched, layers, base=before, alike=3, batch_tokens=40)
    assert passes.count(0) == 3 < passes.count(4)  # the output layer is read through one token
    for name in ("activations", "log_odds", "log_p"):
        assert torch.allclose(getattr(found, name), getattr(whole, name), atol=1e-4)
    assert torch.equal(found.likely, whole.likely)
    assert not torch.allclose(found.activations, before.activations, atol=1e-3)
