"""Where SAEs are, and which are refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import sae_lens
import torch

pytest.importorskip("sae_lens")
from labelled import LAYER, NEURONPEDIA, WIDTH, in_folder
from modelassay.errors import InputError, UnavailableError
from modelassay.sae import SAES, Settings, find_labels, find_sae, list_releases, save_sae
from modelassay.sae.labels import weights_hash


def test_a_plain_sae_lens_folder_is_a_dictionary(tiny, planted, tmp_path):
    found = in_folder(planted, tmp_path / "plain")
    assert (found.name, found.layer, found.width, found.record) == ("plain", LAYER, WIDTH, None)
    assert found.hidden_size == tiny().info.hidden_size
    assert found.neuronpedia_id == NEURONPEDIA
    found.check_belongs_to(tiny())
    with pytest.raises(InputError, match="reads layer 9; the last one of"):
        replace(found, layer=9).check_belongs_to(tiny())
    with pytest.raises(InputError, match="has no revisions"):
        find_sae(str(tmp_path / "plain"), revision="main")


def change_config(folder, **change):
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= change.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, "reads an MLP"),
        ({"metadata": {"hook_name": "vision_model.encoder.layers.1"}}, "reads a vision tower"),
        ({"metadata": {"hf_hook_name": "visual.blocks.1"}}, "reads a vision tower"),
        ({"metadata": {"hf_hook_name": "model.layers.4"}}, "names more than one layer"),
        ({"metadata": {"hook_names": ["model.layers.1", "model.layers.2"]}}, "several places"),
        ({"hook_names": ["model.layers.1", "model.layers.2"]}, "several places"),
        ({"model_name": ["gemma-2-2b", "gemma-2-2b-it"]}, "cross-coder of several models"),
        ({"metadata": {"hook_head_index": 3}}, "attention heads"),
        ({"normalize_activations": "covariance_whitening"}, "covariance_whitening"),
        ({"normalize_activations": "expected_average_only_in"}, "does not say the scale"),
        ({"reshape_activations": "hook_z"}, "holds no SAE"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "TransformerLens has centred",
        ),
        ({"d_sae": 7}, "holds no SAE"),
        ({"architecture": "nonsense"}, "holds no SAE"),
    ],
)
def test_dictionaries_that_cannot_be_used_are_refused(planted, tmp_path, change, message):
    planted.module.save_model(tmp_path / "d")
    change_config(tmp_path / "d", **change)
    with pytest.raises(InputError, match=message) as error:
        find_sae(str(tmp_path / "d"))
    assert "\n" not in str(error.value)


def test_a_transcoder_of_the_stream_is_refused(tmp_path):
    config = sae_lens.TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False)
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    sae_lens.Transcoder(config).save_model(tmp_path / "t")
    with pytest.raises(InputError, match="a transcoder that reads blocks.1.hook_resid_post"):
        find_sae(str(tmp_path / "t"))


def test_the_shipped_are_found_by_name_and_by_model(trained_folder, tiny, tmp_path, monkeypatch):
    shipped = tmp_path / "dictionaries"
    shutil.copytree(trained_folder, shipped / "mine")
    monkeypatch.setattr("modelassay.files.shipped.CHECKOUT", tmp_path)
    for where in ("mine", tiny().info.id):
        found = find_sae(where)
        assert found.name == "mine"
        assert found.record is not None


@pytest.mark.parametrize("where", ["nowhere", "no such/thing at all", "", "a/b/c", "x" * 5000])
def test_what_is_nowhere_is_said(where):
    with pytest.raises(InputError) as error:
        find_sae(where)
    assert "\n" not in str(error.value)


def test_what_was_pushed_is_pulled(hub, trained_folder, tiny):
    hub.add_writer("mine", "me")
    own = find_sae(str(trained_folder))
    pushed = SAES.push(SAES.open(own.folder), "me/dictionaries", token="mine")
    files = hub.repos["datasets", "me/dictionaries"].commits[pushed.commit]
    names = {name.partition("dictionaries/mine/")[2] for name in files if "mine" in name}
    assert names == {
        "cfg.json",
        "sae_weights.safetensors",
        "dictionary.json",
        "labels.json",
        "labels.parquet",
        "metrics.jsonl",
    }
    card = files["README.md"].decode()
    assert "modelassay-dictionary" in card
    assert "dictionaries/*/metrics.jsonl" in card
    row = json.loads(files["dictionaries/mine/metrics.jsonl"])
    assert row["explained_variance"] == own.record.metrics.explained_variance
    for where in ("me/dictionaries", f"me/dictionaries:mine@{pushed.commit}"):
        pulled = find_sae(where)
        assert pulled.record == own.record
        assert weights_hash(pulled) == weights_hash(own)
        assert find_labels(pulled).of(3) == find_labels(own).of(3)
    with pytest.raises(InputError, match="no revision 'old'"):
        find_sae("me/dictionaries", revision="old")
    with pytest.raises(InputError, match="holds no SAE 'other'"):
        find_sae("me/dictionaries:other")


def test_what_was_tampered_with_on_the_hub_is_refused(hub, trained_folder):
    files = {f"dictionaries/mine/{f.name}": f.read_bytes() for f in trained_folder.iterdir()}
    weights = bytearray(files["dictionaries/mine/sae_weights.safetensors"])
    weights[-1] ^= 1
    files["dictionaries/mine/sae_weights.safetensors"] = bytes(weights)
    hub.add_repo("datasets", "you/dictionaries", files)
    with pytest.raises(InputError, match="is not the file that"):
        find_sae("you/dictionaries")


def test_training_replaces_a_dictionary_and_nothing_else(trained_folder, tiny, monkeypatch):
    own = find_sae(str(trained_folder))
    (trained_folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    settings = Settings(layer=1, width=48, k=6)
    with pytest.raises(InputError, match="is there and is not an SAE"):
        save_sae(own.module, tiny(), settings, [], trained_folder, name="mine", data=[])
    assert (trained_folder / "thesis.txt").exists()


def test_only_trained_dictionaries_are_pushed(planted, tmp_path):
    with pytest.raises(InputError, match=r"no dictionary\.json"):
        SAES.push(SAES.open(in_folder(planted, tmp_path / "plain").folder), "me/dictionaries")


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
        "gemma-scope-2b-pt-transcoders": "before the gain of its norm",
        "mntss-gemma-2-2b": "not the output of a layer",
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


def test_transcoders_of_a_release_are_fetched_where_they_are_asked_for(hub):
    from safetensors.torch import load, save

    where = "gemma-scope-2-270m-it-transcoders-all:layer_12_width_16k_l0_big_affine"
    assert list_releases(where)[0].transcoder
    with pytest.raises(InputError, match="only `features find` and"):
        find_sae(where)
    assert hub.log == []
    folder = "transcoder_all/layer_12_width_16k_l0_big_affine"
    files = {f"{folder}/{n.rpartition('/')[2]}": f for n, f in gemma_files(32, 24).items()}
    skip = {"affine_skip_connection": torch.eye(32)}
    tensors = load(files[f"{folder}/params.safetensors"]) | skip
    files[f"{folder}/params.safetensors"] = save(tensors)
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-it",
        "hf_hook_point_in": "model.layers.12.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.12.post_feedforward_layernorm.output",
        "affine_connection": True,
    }
    files[f"{folder}/config.json"] = json.dumps(config).encode()
    hub.add_repo("models", "google/gemma-scope-2-270m-it", files)
    found = find_sae(where, transcoders=True)
    assert (found.layer, found.hidden_size, found.width, found.transcoder) == (12, 32, 24, True)
    assert torch.equal(found.module.W_skip, torch.eye(32))

    named = {n.replace("w_", "W_"): v for n, v in tensors.items() if n[:2] in ("w_", "b_")}
    named["W_enc"] = named["W_enc"].T.contiguous()
    settings = {"d_model": 32, "d_feature": 24, "batch_size": 8}
    lines = "".join(f"{name}: {{value: {value}}}\n" for name, value in settings.items())
    others = {
        "layer_3.safetensors": save(named),
        "config.yaml": b"model_name: Qwen/Qwen3-0.6B\n",
        "wandb-config.yaml": lines.encode(),
        "layer_3.pt": b"a pickle",
    }
    hub.add_repo("models", "mwhanna/qwen3-0.6b-transcoders-lowl0", others)
    found = find_sae("mwhanna-qwen3-0.6b-transcoders-lowl0:layer_3", transcoders=True)
    assert (found.layer, found.width, found.neuronpedia_id) == (
        3,
        24,
        "qwen3-0.6b/3-transcoder-hp-lowl0",
    )
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
