"""The matrices of a model say together what was taken out of which layers, and by what."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from modelassay.measures.directional_edits import (
    NULL_SCORES,
    DirectionalEdits,
    EditedMatrix,
    layers_in_words,
    summarise,
    unmarked,
)
from modelassay.measures.matrix_edits import MARK_COSINE, measure_edit, strength_along
from modelassay.measures.weight_changes import WeightChange
from modelassay.models.ablation import edit_matrix
from modelassay.models.kernels import Kernel

HIDDEN, LAYERS = 64, 8
COLUMNS = {"attention": 96, "mlp": 160}
FAMILIES = ("plain", "row-normalised", "norm-preserving", "column-norm-preserving")


def direction(seed):
    return normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(seed)), dim=0)


def base(layer, kind):
    draw = torch.Generator().manual_seed(1000 + 2 * layer + (kind == "mlp"))
    matrix = torch.randn(HIDDEN, COLUMNS[kind], generator=draw)
    matrix[direction(0).abs().topk(4).indices] *= 6
    return matrix


def summary(edit) -> DirectionalEdits:
    """Of a model whose matrices are what `edit(weight, layer, kind)` gives."""
    changes = {
        (layer, kind): WeightChange(weight, edit(weight, layer, kind))
        for layer in range(LAYERS)
        for kind in COLUMNS
        for weight in [base(layer, kind)]
    }
    matrices = [
        EditedMatrix(f"{layer}.{kind}", layer, kind, measure_edit(change, change.spectrum(24)))
        for (layer, kind), change in changes.items()
        if change.energy
    ]
    found = summarise(matrices, LAYERS)
    along = {
        (m.layer, m.component): [strength_along(changes[m.layer, m.component], found.family, r)]
        for m, r in unmarked(found, matrices)
    }
    return summarise(matrices, LAYERS, along)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shared", [True, False])
def test_a_kernel_is_read_off_the_weights(family, shared):
    kernels = {"attention": Kernel(5.0, 2.5, 1.1, 0.4), "mlp": Kernel(4.0, 3.5, 0.9, 0.1)}

    def edit(weight, layer, kind):
        strength = kernels[kind].at(layer)
        r = direction(0 if shared else layer)
        return edit_matrix(weight, r, strength, family).bfloat16() if strength else weight

    found = summary(edit)
    assert found.family == family
    assert found.family_is_sure
    assert found.fit > 0.98
    assert found.shared == shared
    assert found.layers_left_out == (0,)
    for part in found.components:
        kernel = kernels[part.component]
        assert part.peak.layer == kernel.peak
        for strength in part.strengths:
            assert strength.strength == pytest.approx(kernel.at(strength.layer), abs=0.03)
        assert part.kernel.explained > 0.95
        assert part.kernel.kernel.peak == pytest.approx(kernel.peak, abs=0.75)
        assert part.kernel.kernel.strength == pytest.approx(kernel.strength, abs=0.1)
    text = " ".join(found.sentences())
    assert family in text
    assert ("one direction for all layers" in text) == shared
    assert json.loads(json.dumps(found.to_dict()))["family"] == family


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_one_component_alone(kind):
    def edit(weight, layer, other):
        return edit_matrix(weight, direction(0), 1.0) if other == kind else weight

    mark = summary(edit).mark
    assert mark.kind == kind
    assert mark.family == "plain"
    assert mark.layers == tuple(range(LAYERS))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_sure_where_several_directions_are_gone(family):
    several = torch.stack([direction(seed) for seed in range(3)])
    found = summary(lambda w, layer, kind: edit_matrix(w, several, 1.0, family))
    assert found.n_directions == 3
    assert found.fit > 0.95
    assert not found.family_is_sure


def test_layers_too_weak_to_tell_alone_follow_the_shared_direction():
    def edit(weight, layer, kind):
        strength = 1.0 if layer > 3 else 0.15
        edited = edit_matrix(weight, direction(0), strength)
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(layer))
        return edited + 0.15 * weight.std() * noise

    found = summary(edit)
    weak = [s for part in found.components for s in part.strengths if s.layer <= 3]
    assert len(weak) > 3
    assert all(s.low - 0.05 < 0.15 < s.high + 0.05 for s in weak)


def test_a_swapped_pair_is_said_to_be_one():
    def edit(weight, layer, kind):
        return edit_matrix(weight, direction(0), 1.0)

    changes = [
        (layer, kind, WeightChange(edit(weight, layer, kind), weight))
        for layer in range(LAYERS)
        for kind in COLUMNS
        for weight in [base(layer, kind)]
    ]
    found = summarise(
        [
            EditedMatrix("", layer, kind, measure_edit(change, change.spectrum(24)))
            for layer, kind, change in changes
        ],
        LAYERS,
    )
    assert found.turned
    assert found.mark is None
    assert "swapped" in found.sentences()[0]


def test_a_direction_that_grew_was_not_taken_out():
    """Rows that were made larger can fit a formula, at a strength below zero."""

    def measured(layer, kind):
        weight = base(layer, kind)
        change = WeightChange(weight, edit_matrix(weight, direction(0), 1.0))
        found = measure_edit(change, change.spectrum(24))
        fits = {name: replace(fit, strength=-4.8) for name, fit in found.fits.items()}
        return EditedMatrix("", layer, kind, replace(found, fits=fits))

    found = summarise(
        [measured(layer, kind) for layer in range(LAYERS) for kind in COLUMNS], LAYERS
    )
    assert found.mark is None
    assert found.turned
    assert "less of a direction" in found.sentences()[0]


def test_one_matrix_in_many_is_not_believed():
    def edit(weight, layer, kind):
        if (layer, kind) == (2, "mlp"):
            return edit_matrix(weight, direction(0), 1.0)
        return weight + 1e-3 * torch.randn(weight.shape)

    assert summary(edit).mark is None


def test_benign_changes_have_a_score_and_no_mark():
    found = summary(lambda weight, layer, kind: weight + 1e-3 * torch.randn(weight.shape))
    assert found.mark is None
    assert found.components == ()
    assert found.score < 0.9
    assert found.p_value > 0.3
    assert found.sentences() == []


def test_a_p_value_is_no_finer_than_its_null(monkeypatch):
    monkeypatch.setattr("modelassay.measures.directional_edits.NULL_SCORES", (0.9, 0.3, 0.0))
    edited = summary(lambda weight, layer, kind: edit_matrix(weight, direction(0), 1.0))
    assert edited.p_value == 1 / 4
    monkeypatch.setattr("modelassay.measures.directional_edits.NULL_SCORES", ())
    edited = summary(lambda weight, layer, kind: edit_matrix(weight, direction(0), 1.0))
    assert edited.p_value is None  # none are listed, and none is made up


def test_every_benign_score_that_is_listed_lies_below_the_mark():
    assert list(NULL_SCORES) == sorted(NULL_SCORES, reverse=True)
    assert len(NULL_SCORES) >= 120
    assert NULL_SCORES[0] < MARK_COSINE


def test_nothing_that_changed_has_no_score():
    assert summarise([], LAYERS).score is None


def test_layers_in_words():
    assert layers_in_words([3]) == "layer 3"
    assert layers_in_words([3, 4, 5]) == "layers 3 to 5"
    assert layers_in_words([3, 5]) == "2 layers (3 to 5)"
