"""The fingerprint of ablation, on planted holes and on untouched weights."""

from __future__ import annotations

import pytest
import torch

from families import tiny_model
from modelassay.measures.erased_directions import search_ablation, search_writers
from modelassay.models import load
from modelassay.models.ablation import Ablation, edit_matrix
from modelassay.models.ablation import ablate as ablate_network
from modelassay.models.kernels import Kernel
from modelassay.models.layers import LAYER_INDEX
from modelassay.models.writers import Writer, find_writers
from tiny import FAMILIES, save_tiny, unit

WIDTH, LAYERS = 96, 12


def healthy(seed=0, layers=LAYERS, dtype=torch.float32):
    """Random output projections of a Llama, wide enough for a smooth spectrum."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{i}.{name}.weight": torch.randn(WIDTH, fan_in, generator=generator).to(dtype)
        for i in range(layers)
        for name, fan_in in (("self_attn.o_proj", 192), ("mlp.down_proj", 384))
    }


def ablate(weights, layers, *, k=1, strength=1.0, per_layer=False, dtype=torch.float32, bits=None):
    """Erases k random directions from the writers of some layers."""
    result = {}
    for name, weight in weights.items():
        layer = int(LAYER_INDEX.search(name).group(1))
        weight = weight.float()
        if layer in layers:
            generator = torch.Generator().manual_seed(1000 + (layer if per_layer else 0))
            r = torch.linalg.qr(torch.randn(WIDTH, k, generator=generator))[0]
            weight = weight - strength * r @ (r.T @ weight)
        if bits:
            scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
            weight = (weight / scale).round() * scale
        result[name] = weight.to(dtype)
    return result


def search(weights):
    readers = {}
    for name, weight in weights.items():
        kind = "attention" if "self_attn" in name else "mlp"
        writer = Writer(name, int(LAYER_INDEX.search(name).group(1)), 0, kind)
        readers[writer] = [lambda weight=weight: weight]
    return search_writers(readers, WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_untouched_weights_have_no_hole(seed, dtype):
    evidence = search(healthy(seed, dtype=dtype))
    assert evidence.detected is False
    assert evidence.layers == ()
    assert evidence.shared is None
    assert evidence.suspected is None
    assert evidence.eigenvalue_ratio > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("per_layer", [False, True])
@pytest.mark.parametrize("layers", [range(LAYERS), range(4, 8)])
def test_full_ablation_names_its_blocks(dtype, per_layer, layers):
    evidence = search(ablate(healthy(), layers, per_layer=per_layer, dtype=dtype))
    assert evidence.detected is True
    assert evidence.layers == tuple(layers)
    assert evidence.shared is (not per_layer)
    assert evidence.n_directions == 1


def test_several_directions_are_counted():
    evidence = search(ablate(healthy(), range(LAYERS), k=3))
    assert evidence.detected is True
    assert evidence.n_directions == 3
    assert evidence.shared is True


def test_eight_bit_rounding_does_not_hide_it():
    evidence = search(ablate(healthy(), range(LAYERS), bits=8, per_layer=True))
    assert evidence.layers == tuple(range(LAYERS))


def test_half_strength_is_not_seen_and_that_is_documented():
    from modelassay.measures import erased_directions as weights

    assert search(ablate(healthy(), range(LAYERS), strength=0.5)).detected is False
    assert "partial ablation" in " ".join(weights.__doc__.split())


def test_padding_is_no_ablation():
    padded = {name: weight.clone() for name, weight in healthy().items()}
    for weight in padded.values():
        weight[-10:] = 0
    assert search(padded).detected is False


def test_the_mean_direction_of_layer_norm_models_is_empty_by_nature():
    def centre(weights):
        return {name: weight - weight.mean(dim=0) for name, weight in weights.items()}

    assert search(centre(healthy())).detected is False
    evidence = search(centre(ablate(healthy(), range(LAYERS))))
    assert evidence.detected is True


def side_by_side(weights, only=("self_attn", "mlp"), layers=range(LAYERS), **how):
    """Weights ablated in the writers of one kind, the others as they are."""
    ablated = ablate(weights, layers, **how)
    return {n: ablated[n] if any(kind in n for kind in only) else w for n, w in weights.items()}


@pytest.mark.parametrize(("kind", "part"), [("attention", "self_attn"), ("mlp", "mlp")])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("layers", [range(LAYERS), range(4, 9)], ids=["all", "band"])
def test_one_kind_of_output_is_searched_by_itself(kind, part, bits, layers):
    evidence = search(side_by_side(healthy(), (part,), layers, bits=bits))
    assert evidence.detected is True
    assert evidence.by_kind == {kind: tuple(layers)}
    assert evidence.layers == tuple(layers)
    assert evidence.shared is True
    assert evidence.n_directions == 1


def test_each_kind_may_lack_a_direction_of_its_own():
    weights = side_by_side(healthy(), ("self_attn",), range(2, 9))
    other = ablate(healthy(), range(3, 7), per_layer=True)
    evidence = search({n: other[n] if "mlp" in n else w for n, w in weights.items()})
    assert evidence.by_kind == {"attention": tuple(range(2, 9)), "mlp": (3, 4, 5, 6)}
    assert evidence.layers == tuple(range(2, 9))
    assert evidence.erased_from == (
        ("attention outputs", tuple(range(2, 9))),
        ("MLP outputs", (3, 4, 5, 6)),
    )


def square(seed=0, layers=24, width=48):
    """Attention outputs as wide as the stream, whose smallest eigenvalue is near zero by itself."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"model.layers.{i}.{name}.weight": torch.randn(WIDTH, columns, generator=generator)
        for i in range(layers)
        for name, columns in (("self_attn.o_proj", WIDTH), ("mlp.down_proj", width))
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [8, 48, 96, 200])
def test_untouched_square_and_narrow_matrices_have_no_hole(seed, width):
    evidence = search(square(seed, width=width))
    assert evidence.detected is False, evidence
    assert evidence.eigenvalue_ratio > 0.4
    assert min(evidence.ratio_by_layer.values()) > 0.2
    assert any("attention outputs of single layers" in limit for limit in evidence.limits)


@pytest.mark.parametrize("layers", [range(24), range(8, 21)], ids=["all", "band"])
def test_square_attention_outputs_are_judged_with_their_neighbours(layers):
    evidence = search(side_by_side(square(width=200), ("self_attn",), layers))
    assert evidence.by_kind == {"attention": tuple(layers)}


def test_too_few_columns_altogether_are_not_searched():
    narrow = {n: w[:, :8] for n, w in square(layers=4).items()}
    evidence = search(narrow)
    assert evidence.detected is None
    assert "too few columns" in evidence.reason
    thin = {n: w[:, :4] if "self_attn" in n else w for n, w in healthy().items()}
    evidence = search(thin)
    assert evidence.detected is False
    assert evidence.limits == ("the attention outputs have too few columns to be searched",)


@pytest.mark.parametrize("dead", [1, 3])
def test_coordinates_that_nothing_writes_are_no_erased_direction(dead):
    weights = {name: weight.clone() for name, weight in healthy().items()}
    for weight in weights.values():
        weight[5 : 5 + dead] = 0
    assert search(weights).detected is False
    assert search(ablate(weights, range(LAYERS))).detected is True


def renamed(weights, layer, to):
    return {n.replace(f".{layer}.", f".{to}."): w for n, w in weights.items() if f".{layer}." in n}


def test_layers_that_are_stacked_twice_are_no_erased_direction():
    """A square matrix beside its copy has no more directions than it has alone."""
    weights, stacked = square(seed=1, width=40), {}
    for layer in range(24):
        for copy in (0, 1):
            trained = renamed(weights, layer, 2 * layer + copy)
            noise = torch.Generator().manual_seed(layer)
            stacked |= {
                n: w + 0.05 * copy * torch.randn(w.shape, generator=noise)
                for n, w in trained.items()
            }
    assert search(stacked).detected is False


def test_layers_that_write_nothing_are_no_erased_direction():
    """Merged models are deepened by copies whose output matrices are zeros."""
    weights = square(width=40)
    for layer in range(1, 24, 2):
        weights |= {n: torch.zeros_like(w) for n, w in renamed(weights, layer, layer).items()}
    evidence = search(weights)
    assert evidence.detected is False, evidence
    assert search(ablate(weights, range(24))).detected is True


def test_matrices_of_low_rank_are_no_erased_direction():
    generator = torch.Generator().manual_seed(0)
    weights = {
        n: torch.randn(WIDTH, 60, generator=generator) @ torch.randn(60, 300, generator=generator)
        for n in healthy()
    }
    for layer in range(1, LAYERS):  # of the same sixty directions everywhere
        for name in renamed(weights, layer, layer):
            weights[name] = weights[name.replace(f".{layer}.", ".0.")] @ torch.randn(
                300, 300, generator=generator
            )
    assert search(weights).detected is False


WRITING = (
    "bloom cohere ctrl dbrx deepseek_v3 falcon gemma2 gemma4_text gpt2 gpt_neox"
    " gpt_oss granitemoe granitemoehybrid jetmoe llama mixtral modernbert-decoder mpt"
    " nemotron_h olmo2 openai-gpt opt qwen3_next recurrent_gemma zamba2"
)


@pytest.mark.parametrize("family", WRITING.split())
def test_every_family_is_whole_until_it_is_ablated(family):
    """Families that differ in how they write; tiny, and so with rough spectra, and many layers."""
    kinds = {"layer_types": ["mamba", "attention"] * 12} if family == "granitemoehybrid" else {}
    network = tiny_model(family, layers=24, **kinds)
    writers = find_writers(network)
    assert writers.unsure is None

    def searched():
        readers = {w: [lambda w=w: network.get_parameter(w.name).detach()] for w in writers.found}
        return search_writers(readers, 32)

    whole = searched()
    assert whole.detected is False, whole
    assert whole.suspected is None
    assert sorted(whole.ratio_by_layer) == list(range(24))
    ablate_network(network, Ablation(dict.fromkeys(range(6, 18), unit(32))))
    found = searched()
    assert found.detected is True
    assert set(range(7, 17)) <= set(found.layers) <= set(range(6, 18))


@pytest.mark.parametrize("family", ["deepseek_v4", "gemma3n_text", "inkling2_text"])
def test_families_whose_writers_are_not_certain_are_unsearched_by_name(family):
    network = tiny_model(family)
    unsure = find_writers(network).unsure
    assert f"stream of {type(network).__name__} is not certain" in unsure


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_searched_in_all_layers(tiny, family):
    evidence = search_ablation(tiny(family))
    assert evidence.detected is False, evidence
    assert evidence.suspected is None
    assert sorted(evidence.ratio_by_layer) == list(range(5))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "falcon"])
def test_ablated_checkpoints_are_found(tmp_path, family):
    model = load(str(save_tiny(tmp_path / family, family)), device="cpu")
    ablate_network(model.network, Ablation(dict.fromkeys(range(5), unit(32))))
    model.network.save_pretrained(tmp_path / "ablated")
    model.tokenizer.save_pretrained(tmp_path / "ablated")
    for quantization in (None, "8bit"):
        ablated = load(str(tmp_path / "ablated"), device="cpu", quantization=quantization)
        evidence = search_ablation(ablated)
        assert evidence.detected is True
        assert evidence.layers == tuple(range(5))


def test_packed_weights_are_unscored():
    packed = {name: torch.zeros(10, 3, dtype=torch.uint8) for name in healthy()}
    assert search(packed).detected is None
    assert "packed" in search(packed).reason


@pytest.mark.real_model
@pytest.mark.parametrize(("kinds", "certain"), [(("attention",), False), (("mlp",), True)])
def test_a_default_edit_of_one_kind_is_suspected_at_least(embedded, kinds, certain):
    """heretic's default: strengths that fade over the layers, rows scaled back to their norms."""
    parameters = dict(embedded.network.named_parameters())
    r = torch.nn.functional.normalize(
        torch.randn(576, generator=torch.Generator().manual_seed(0)), dim=0
    )
    kernel = Kernel(peak=21, distance=5, strength=1.2, least=0.6)
    readers = {}
    for writer in find_writers(embedded.network).found:
        weight = parameters[writer.name].detach()
        strength = kernel.at(writer.layer) if writer.kind in kinds else 0.0
        if strength:
            weight = edit_matrix(weight, r, strength, "norm-preserving")
        readers[writer] = [lambda weight=weight: weight]
    found = search_writers(readers, 576)
    assert found.detected or found.suspected is not None
    assert found.detected is certain
    if found.suspected:
        assert found.suspected.kind == kinds[0]
        assert 15 <= min(found.suspected.layers) <= max(found.suspected.layers) <= 27


@pytest.mark.real_model
def test_the_real_model_is_whole_until_it_is_ablated(embedded):
    evidence = search_ablation(embedded)
    assert evidence.detected is False
    assert evidence.suspected is None
    assert evidence.eigenvalue_ratio == pytest.approx(0.975, abs=0.01)
    assert min(evidence.ratio_by_layer.values()) > 0.3

    generator = torch.Generator().manual_seed(0)
    r = torch.nn.functional.normalize(torch.randn(576, generator=generator), dim=0)

    parameters = dict(embedded.network.named_parameters())

    def erased(dtype, layers, kinds=("attention", "mlp")):
        readers = {}
        for writer in find_writers(embedded.network).found:
            weight = parameters[writer.name]
            if writer.layer in layers and writer.kind in kinds:
                weight = (weight - torch.outer(r, r @ weight)).to(dtype)
            readers[writer] = [lambda weight=weight: weight]
        return search_writers(readers, 576)

    for dtype in (torch.float32, torch.bfloat16):
        full = erased(dtype, range(30))
        assert (full.detected, full.layers, full.shared) == (True, tuple(range(30)), True)
        assert full.eigenvalue_ratio < 1e-4
        band = erased(dtype, range(10, 20))
        assert (band.detected, band.layers, band.shared) == (True, tuple(range(10, 20)), True)
    for kind in ("attention", "mlp"):
        found = erased(torch.bfloat16, range(8, 21), (kind,))
        assert found.by_kind == {kind: tuple(range(8, 21))}
