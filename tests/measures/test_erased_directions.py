"""The fingerprint of ablation, on planted holes and on untouched weights."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from modelassay.measures.erased_directions import open_shards, search_ablation, search_tensors
from modelassay.models import load
from modelassay.models.layers import LAYER_INDEX, WRITERS, text_config
from tiny import FAMILIES, save_tiny

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


def search(weights, model_type="llama"):
    readers = ((name, lambda weight=weight: weight) for name, weight in weights.items())
    return search_tensors(readers, WIDTH, model_type)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_untouched_weights_have_no_hole(seed, dtype):
    evidence = search(healthy(seed, dtype=dtype))
    assert evidence.detected is False
    assert evidence.layers == ()
    assert evidence.shared is None
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


@pytest.mark.parametrize("family", FAMILIES)
def test_two_writers_a_block_are_found_in_every_family(tiny_folder, family):
    folder = tiny_folder(family)
    model = load(str(folder), device="cpu")
    config = text_config(model.network.config)
    with ExitStack() as stack:
        shards = open_shards(model.source.weight_files(), stack)
        evidence = search_tensors(shards, config.hidden_size, config.model_type)
    assert evidence.detected is False, evidence
    assert sorted(evidence.ratio_by_layer) == list(range(5))
    found = [n for n, _ in model.network.named_parameters() if LAYER_INDEX.search(n)]
    found = [n for n in found if WRITERS.search(n) and "vision" not in n]
    assert len({n for n in found if LAYER_INDEX.search(n).group(1) == "3"}) >= 2, found


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "mixtral", "falcon"])
def test_ablated_checkpoints_are_found_from_their_files(tmp_path, family):
    folder = save_tiny(tmp_path / family, family)
    model = load(str(folder), device="cpu")
    hidden = text_config(model.network.config).hidden_size
    r = torch.randn(hidden, generator=torch.Generator().manual_seed(1))
    r /= r.norm()
    with torch.no_grad():
        for name, weight in model.network.named_parameters():
            if not (WRITERS.search(name) and LAYER_INDEX.search(name)) or "vision" in name:
                continue
            if weight.dim() == 3:  # experts [expert, out, in]
                weight -= torch.einsum("o,p,epi->eoi", r, r, weight)
            elif family == "gpt2":
                weight -= torch.outer(weight @ r, r)
            else:
                weight -= torch.outer(r, r @ weight)
    model.network.save_pretrained(tmp_path / "ablated")
    model.tokenizer.save_pretrained(tmp_path / "ablated")
    evidence = search_ablation(load(str(tmp_path / "ablated"), device="cpu"))
    assert evidence.detected is True
    assert evidence.layers == tuple(range(5))


def test_packed_and_unknown_weights_are_unscored():
    packed = {name: torch.zeros(10, 3, dtype=torch.uint8) for name in healthy()}
    assert search(packed).detected is None
    assert "packed" in search(packed).reason
    assert "output projection" in search({"encoder.stuff": torch.zeros(3)}).reason


@pytest.mark.real_model
def test_the_real_model_is_whole_until_it_is_ablated(embedded):
    evidence = search_ablation(embedded)
    assert evidence.detected is False
    assert evidence.eigenvalue_ratio == pytest.approx(0.975, abs=0.01)
    assert min(evidence.ratio_by_layer.values()) > 0.3

    generator = torch.Generator().manual_seed(0)
    r = torch.nn.functional.normalize(torch.randn(576, generator=generator), dim=0)

    def erased(dtype, layers):
        for name, weight in embedded.network.named_parameters():
            index = LAYER_INDEX.search(name)
            if index and WRITERS.search(name) and int(index.group(1)) in layers:
                weight = (weight - torch.outer(r, r @ weight)).to(dtype)
            yield name, lambda weight=weight: weight

    for dtype in (torch.float32, torch.bfloat16):
        full = search_tensors(erased(dtype, range(30)), 576, "llama")
        assert (full.detected, full.layers, full.shared) == (True, tuple(range(30)), True)
        assert full.eigenvalue_ratio < 1e-4
        band = search_tensors(erased(dtype, range(10, 20)), 576, "llama")
        assert (band.detected, band.layers, band.shared) == (True, tuple(range(10, 20)), True)
