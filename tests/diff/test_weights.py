"""The spectrum of a weight difference names what made it."""

from __future__ import annotations

import pytest
import torch

from modelassay.diff.weights import diff_weights
from modelassay.errors import InputError
from modelassay.models.layers import LAYER_INDEX
from modelassay.models.writers import Writer

HIDDEN, WIDE, BLOCKS = 64, 160, 6
SHAPES = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.up_proj.weight": (WIDE, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, WIDE),
    "input_layernorm.weight": (HIDDEN,),
}
WRITERS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    weights = {
        f"model.layers.{layer}.{name}": torch.randn(shape, generator=draw) / 8
        for layer in range(BLOCKS)
        for name, shape in SHAPES.items()
    }
    weights["model.embed_tokens.weight"] = torch.randn((300, HIDDEN), generator=draw)
    return weights


def compare(base, candidate):
    def tensors(weights):
        return [(name, lambda weight=weight: weight) for name, weight in weights.items()]

    return diff_weights(tensors(base), tensors(candidate), writer_of)


def writer_of(name):
    if not name.endswith(WRITERS):
        return None
    kind = "attention" if "self_attn" in name else "mlp"
    return Writer(name, int(LAYER_INDEX.search(name).group(1)), 0, kind)


def low_rank(shape, rank, scale, seed):
    draw = torch.Generator().manual_seed(seed)
    left, right = torch.randn(shape[0], rank, generator=draw), torch.randn(rank, shape[1])
    return scale * left @ right


def test_nothing_changed(base):
    found = compare(base, {name: weight.clone() for name, weight in base.items()})
    assert found.identical
    assert found.matrices == ()
    assert found.relative == 0
    assert found.mark is None


def test_names_may_have_other_prefixes(base):
    other = {f"base_model.{name}": weight for name, weight in base.items()}
    other["lm_head.weight"] = base["model.embed_tokens.weight"]  # tied, and written out
    assert compare(base, other).identical


def test_an_output_layer_that_only_one_has_is_compared_with_the_embeddings(base):
    """It may be tied and written out, or be where the change is."""
    changed = {**base, "lm_head.weight": 1.01 * base["model.embed_tokens.weight"]}
    for pair in ((base, changed), (changed, base)):
        found = compare(*pair)
        assert not found.identical
        assert [change.name for change in found.matrices] == ["lm_head.weight"]
        assert found.energy_elsewhere == pytest.approx(1)


@pytest.mark.parametrize("rank", [1, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_shows_its_rank(base, rank, dtype):
    base = {name: weight.to(dtype).float() for name, weight in base.items()}
    candidate = dict(base)
    for seed, name in enumerate(base):
        if "proj" in name:
            change = low_rank(base[name].shape, rank, 0.02, seed)
            candidate[name] = (base[name] + change).to(dtype).float()
    found = compare(base, candidate)
    assert found.adapter_rank == rank
    assert found.mark is None
    assert len(found.matrices) == 4 * BLOCKS


def test_full_fine_tuning_and_rounding_have_no_rank(base):
    trained = {name: weight + 1e-3 * torch.randn(weight.shape) for name, weight in base.items()}
    rounded = {name: weight.bfloat16().float() for name, weight in base.items()}
    for candidate in (trained, rounded):
        found = compare(base, candidate)
        assert not found.identical
        assert found.adapter_rank is None
        assert found.mark is None


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ablation_bears_its_mark(base, strength, shared, dtype):
    base = {name: weight.to(dtype).float() for name, weight in base.items()}
    candidate, layers = dict(base), (1, 2, 3)
    common = torch.nn.functional.normalize(torch.randn(HIDDEN), dim=0)
    for layer in layers:
        own = torch.nn.functional.normalize(torch.randn(HIDDEN), dim=0)
        r = common if shared else own
        for writer in WRITERS:
            name = f"model.layers.{layer}.{writer}"
            ablated = base[name] - strength * torch.outer(r, r @ base[name])
            candidate[name] = ablated.to(dtype).float()
    found = compare(base, candidate)
    assert found.mark is not None
    assert found.mark.layers == layers
    assert found.mark.shared == shared
    assert found.mark.strength == pytest.approx(strength, abs=0.02)
    assert set(found.energy_by_layer) == set(layers)
    assert sum(found.energy_by_layer.values()) == pytest.approx(1)


@pytest.mark.parametrize(("kind", "writer"), zip(("attention", "mlp"), WRITERS, strict=True))
def test_ablation_of_one_kind_is_named(base, kind, writer):
    r = torch.nn.functional.normalize(torch.randn(HIDDEN), dim=0)
    candidate = {
        name: weight - torch.outer(r, r @ weight) if name.endswith(writer) else weight
        for name, weight in base.items()
    }
    mark = compare(base, candidate).mark
    assert mark.kind == kind
    assert mark.layers == tuple(range(BLOCKS))
    assert "outputs of 6 layers" in mark.taken_from


def test_scaling_is_no_ablation(base):
    assert compare(base, {name: 0.7 * weight for name, weight in base.items()}).mark is None


def test_what_is_only_in_one_of_the_two_is_named(base):
    candidate = dict(base)
    moved = candidate.pop("model.layers.2.mlp.up_proj.weight")
    candidate["model.layers.6.mlp.up_proj.weight"] = moved
    found = compare(base, candidate)
    assert found.only_in_base == ("2.mlp.up_proj.weight",)
    assert found.only_in_candidate == ("6.mlp.up_proj.weight",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight[:-1], "not versions of one model"),
        (lambda weight: weight.char(), "packed"),
        (lambda weight: weight * float("nan"), "not numbers"),
    ],
)
def test_what_cannot_be_compared_is_said(base, change, message):
    candidate = dict(base)
    name = "model.layers.1.mlp.down_proj.weight"
    candidate[name] = change(candidate[name])
    with pytest.raises(InputError, match=message) as error:
        compare(base, candidate)
    assert "\n" not in str(error.value)


def test_models_without_a_weight_in_common_are_refused(base):
    with pytest.raises(InputError, match="no weight of the same name"):
        compare(base, {"encoder.weight": torch.zeros(3, 3)})


@pytest.mark.parametrize("which", ["base", "candidate", "both"])
def test_empty_and_rank_deficient_matrices_are_no_ablation(base, which):
    def emptied(weights, keep):
        return {
            name: torch.cat([w[:, :keep], torch.zeros_like(w[:, keep:])], dim=1)
            if name.endswith(WRITERS)
            else w
            for name, w in weights.items()
        }

    for keep in (0, 3):
        before = emptied(base, keep) if which != "candidate" else base
        after = emptied(base, keep) if which != "base" else base
        if which == "both":
            after = {name: 1.01 * w for name, w in after.items()}
        found = compare(before, after)
        assert found.mark is None
        assert not found.edits.turned
        pruned = [text for text in found.observations if "pruned" in text]
        assert bool(pruned) == (which == "candidate")
        assert not any("Only what writes" in text for text in found.observations if pruned)
