"""Releases of sae-lens."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("sae_lens")
from modelassay.errors import InputError, UnavailableError
from modelassay.sae import find_sae, list_releases


def test_releases_are_listed_without_the_network():
    found = list_releases("res:", model="unsloth/gemma-3-270m-it")
    by_where = {release.where: release for release in found}
    one = by_where["gemma-scope-2-270m-it-res:layer_12_width_16k_l0_small"]
    assert (one.model, one.layer, one.width) == ("google/gemma-3-270m-it", 12, "16k")
    assert one.refused is None
    assert all(release.model == "google/gemma-3-270m-it" for release in found)
    for where, reason in {
        "llama-3.1-8b-instruct-andyrdt": "pickles",
        "goodfire-llama-3.1-8b-instruct": "pickles",
        "gemma-scope-2-270m-it-transcoders": "not the output of a layer",
        "gpt2-small-res-jb:": "centred",
        "temporal-sae-gemma-2-2b": "converter temporal",
    }.items():
        assert all(reason in str(release.refused) for release in list_releases(where))
        assert list_releases(where)


def test_pickled_releases_are_refused_before_anything_is_fetched(hub):
    with pytest.raises(InputError, match=r"pickles \(\.pt\)"):
        find_sae("goodfire-llama-3.1-8b-instruct:layer_19")
    assert hub.log == []
    with pytest.raises(InputError, match="has no SAE 'layer_99'"):
        find_sae("gemma-scope-2-270m-it-res/layer_99")
    with pytest.raises(InputError, match="has 52 SAEs; choose one"):
        find_sae("gemma-scope-2-270m-it-res")


def gemma_files(d: int, width: int) -> dict[str, bytes]:
    from safetensors.torch import save

    draw = torch.Generator().manual_seed(1)
    tensors = {
        "w_enc": torch.randn((d, width), generator=draw),
        "w_dec": torch.randn((width, d), generator=draw),
        "b_enc": torch.zeros(width),
        "b_dec": torch.zeros(d),
        "threshold": torch.full((width,), 0.5),
    }
    folder = "resid_post/layer_12_width_16k_l0_medium"
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-it",
        "hf_hook_point_in": "model.layers.12.output",
    }
    return {
        f"{folder}/params.safetensors": save(tensors),
        f"{folder}/config.json": json.dumps(config).encode(),
        f"{folder}/evil.pt": b"a pickle",
    }


def test_a_release_is_fetched_and_converted(hub):
    hub.add_repo("models", "google/gemma-scope-2-270m-it", gemma_files(32, 24))
    where = "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medium"
    found = find_sae(where)
    assert found.name == where.replace("/", ":")
    assert (found.layer, found.hidden_size, found.width, found.record) == (12, 32, 24, None)
    assert found.neuronpedia_id == "gemma-3-270m-it/12-gemmascope-2-res-16k"
    assert found.module.threshold[0].item() == 0.5
    assert not any(".pt" in request.path for request in hub.log)


def test_a_release_that_cannot_be_fetched_is_one_line(hub):
    where = "gemma-scope-2-270m-it-res:layer_12_width_16k_l0_medium"
    with pytest.raises(InputError, match="No model 'google/gemma-scope-2-270m-it' on the Hub"):
        find_sae(where)
    files = gemma_files(32, 24)
    hub.add_repo("models", "google/gemma-scope-2-270m-it", {"other.txt": b""})
    with pytest.raises(InputError, match="does not hold"):
        find_sae(where)
    broken = {name: data[:40] for name, data in files.items()}
    hub.add_commit("models", "google/gemma-scope-2-270m-it", broken)
    with pytest.raises((InputError, UnavailableError)) as error:
        find_sae(where)
    assert "\n" not in str(error.value)
    hub.close()
    with pytest.raises(UnavailableError, match="cannot be reached") as error:
        find_sae("gemma-scope-2-1b-it-res:layer_13_width_16k_l0_small")
    assert "\n" not in str(error.value)
