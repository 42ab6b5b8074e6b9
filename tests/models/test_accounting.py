"""What a checkpoint's files hold is what the loaded model computes with, or it is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from checkpoints import edit_json, read, refusal, same
from modelassay.errors import InputError
from modelassay.models import load
from packing import FP8, INT8, NF4, Tensors, edit, in_float8, in_int8, put
from tiny import make_tokenizer, save_tiny

UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        *((f"{UP}.{name}", "belong to quantised weights") for name in ("weight_scale", "scales")),
        *((f"{UP}.{name}", "belong to quantised weights") for name in ("qzeros", "input_scale")),
        ("model.layers.1.self_attn.k_scale", "belong to quantised weights"),
        (f"{UP}.lora_A.default.weight", "adapter's, not merged"),
        (f"{UP}.anything", "incomplete or renamed"),
        ("model.layers.5.mlp.up_proj.weight", "num_hidden_layers 5, its files hold more"),
        ("model.something.weight", "incomplete or renamed"),
    ],
)
def test_tensors_that_have_no_place_are_named(copy, extra, said):
    folder = copy()
    edit(folder, lambda tensors: {**tensors, extra: torch.ones(4, 4)})
    message = refusal(InputError, folder)
    assert f"holds 1 tensors that its config has no place for (first: {extra} in model" in message
    assert said in message


@pytest.mark.parametrize(
    "extra",
    [
        {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        {"model.layers.0.self_attn.masked_bias": torch.tensor(-1e9)},
        {"model.layers.0.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8)},
        {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)},
        {"mtp.layers.0.mlp.up_proj.weight": torch.ones(8, 8)},
        {"vision_tower.blocks.0.weight": torch.ones(8, 8)},
        {"layers.1.mlp.up_proj.weight": None},  # a second copy that is the same
    ],
)
def test_tensors_that_mean_nothing_to_what_is_said(copy, tiny, extra):
    folder = copy()

    def change(tensors: Tensors) -> Tensors:
        return tensors | {
            key: tensors[f"model.{key}"].clone() if value is None else value
            for key, value in extra.items()
        }

    edit(folder, change)
    assert same(read(load(str(folder), device="cpu")), read(tiny()))


def test_layers_that_guess_further_tokens_are_numbered_after_the_others(copy, tiny):
    folder = copy()
    edit(folder, lambda tensors: {**tensors, "model.layers.5.eh_proj.weight": torch.ones(4, 4)})
    edit_json(folder / "config.json", num_nextn_predict_layers=1)
    assert same(read(load(str(folder), device="cpu")), read(tiny()))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("q_proj.", "q_proj.base_layer.", "merge it"),
        ("", "base_model.model.", "incomplete or renamed"),
        ("", "_orig_mod.", "incomplete or renamed"),
    ],
)
def test_renamed_weights_are_named_on_both_sides(copy, old, new, said):
    folder = copy()
    edit(folder, lambda tensors: {k.replace(old, new, 1): v for k, v in tensors.items()})
    message = refusal(InputError, folder)
    assert "lacks" in message
    assert f"others (first: {new.split('.')[0]}" in message or "base_layer.weight in" in message
    assert said in message


def test_a_second_copy_that_differs(copy):
    folder = copy()
    edit(folder, lambda t: {**t, f"{UP.removeprefix('model.')}.weight": t[f"{UP}.weight"] + 1})
    message = refusal(InputError, folder)
    assert f"holds two weights for {UP}.weight that differ" in message


@pytest.mark.parametrize("differ", [False, True])
def test_one_tensor_in_two_shards(copy, tiny, differ):
    folder = copy()
    tensors = load_file(folder / "model.safetensors")
    other = {key: value + differ for key, value in tensors.items() if "layers.1" in key}
    put(folder, other, "a.safetensors")
    put(folder, tensors, "b.safetensors")
    (folder / "model.safetensors").unlink()
    names = {key: "a.safetensors" if key in other else "b.safetensors" for key in tensors}
    index = json.dumps({"metadata": {}, "weight_map": names})
    (folder / "model.safetensors.index.json").write_text(index)
    if differ:
        assert "hold two tensors model.layers.1." in refusal(InputError, folder)
    else:
        assert same(read(load(str(folder), device="cpu")), read(tiny()))


def test_shards_of_a_distributed_checkpoint(copy):
    """transformers would read these in place of the file that is hashed."""
    folder = copy()
    name = "shard-00000-model-00000-of-00001.safetensors"
    shutil.copy(folder / "model.safetensors", folder / name)
    assert f"distributed checkpoint (first: {name})" in refusal(InputError, folder)


@pytest.mark.parametrize("stated", [True, None])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_head_of_its_own_in_a_model_that_is_tied(tmp_path, family, stated):
    folder = save_tiny(tmp_path / "m", family)
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings")
    config |= {"tie_word_embeddings": stated} if stated else {}
    (folder / "config.json").write_text(json.dumps(config))
    key = "model.embed_tokens.weight"
    edit(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[key].clone()})
    assert load(str(folder), device="cpu")
    edit(folder, lambda tensors: {**tensors, "lm_head.weight": tensors[key] + 1})
    if family == "llama" and not stated:  # such a model isn't tied
        assert load(str(folder), device="cpu")
        return
    message = refusal(InputError, folder)
    assert f"ties lm_head.weight to {key}" in message
    assert "tie_word_embeddings: false" in message
    edit_json(folder / "config.json", tie_word_embeddings=False)
    model = load(str(folder), device="cpu")
    assert not torch.equal(model.network.lm_head.weight, model.network.model.embed_tokens.weight)


@pytest.mark.parametrize(
    "entry",
    [
        NF4,
        INT8,
        FP8,
        {},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "compressed-tensors", "format": "dense"},
        {"quant_method": "modelopt", "quant_algo": "FP8"},
        {"load_in_8bit": True, "load_in_4bit": True},
    ],
)
@pytest.mark.parametrize("where", ["config.json", "text_config", "hf_quant_config.json"])
def test_an_entry_that_is_left_over_from_the_base_of_a_merge(copy, tiny, caplog, entry, where):
    """All weights are plain: there is one way to read them."""
    folder = copy("gemma3" if where == "text_config" else "llama")
    if where == "text_config":
        text = json.loads((folder / "config.json").read_text())[where]
        edit_json(folder / "config.json", text_config={**text, "quantization_config": entry})
    elif where == "config.json":
        edit_json(folder / where, quantization_config=entry)
    else:
        (folder / where).write_text(json.dumps(entry))
    model = load(str(folder), device="cpu")
    assert model.info.quantization is None
    assert "but all are plain numbers" in caplog.text
    assert same(read(model), read(tiny("gemma3" if where == "text_config" else "llama")))


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("quantization_config", {"quant_method": "modelopt", "quant_algo": "FP8"}),
        ("compression_config", {"quant_method": "compressed-tensors"}),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}),
    ],
)
def test_weights_that_are_packed_in_a_way_that_nothing_applies(copy, name, entry):
    folder = copy()
    edit(folder, lambda tensors: in_float8(tensors, "weight_scale"))
    if name.endswith(".json"):
        (folder / name).write_text(json.dumps(entry))
    else:
        edit_json(folder / "config.json", **{name: entry})
    message = refusal(InputError, folder)
    assert name in message
    assert "which transformers cannot apply" in message
    assert "model.layers.0." in message


@pytest.mark.parametrize("pack", [in_int8, lambda tensors: in_float8(tensors, "weight_scale_inv")])
def test_packed_weights_that_nothing_declares(copy, pack):
    folder = copy()
    edit(folder, pack)
    message = refusal(InputError, folder)
    assert "belong to quantised weights" in message
    edit(folder, lambda t: {k: v for k, v in t.items() if not k.endswith(("SCB", "inv"))})
    assert "that nothing unpacks (first: model.layers.0." in refusal(InputError, folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", [f"{UP}.weight", "model.norm.weight"])
def test_whole_numbers_for_weights(copy, dtype, name):
    folder = copy()
    edit(folder, lambda tensors: {**tensors, name: tensors[name].to(dtype)})
    assert f"that nothing unpacks (first: {name} in" in refusal(InputError, folder)


def test_scales_that_a_conversion_lacks(tmp_path):
    """GPT-OSS: experts in 4 bits, whose scales transformers needs to unpack them."""
    folder = tmp_path / "m"
    config = transformers.GptOssConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        head_dim=8,
        pad_token_id=0,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    packed: Tensors = {}
    for key, value in tensors.items():
        if not key.endswith("proj") or "experts" not in key:
            packed[key] = value
            continue
        experts, rows, columns = value.shape
        shape = (experts, columns, rows // 32)
        packed[f"{key}_blocks"] = torch.zeros(*shape, 16, dtype=torch.uint8)
        packed[f"{key}_scales"] = torch.full(shape, 120, dtype=torch.uint8)
    put(folder, packed)
    edit_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    assert load(str(folder), device="cpu").info.quantization == "mxfp4"
    del packed["model.layers.1.mlp.experts.down_proj_scales"]
    put(folder, packed)
    assert "cannot be put into the form" in refusal(InputError, folder)


def close(folder: Path, reference: Any, least: float = 0.995) -> bool:
    model = load(str(folder), device="cpu")
    found = torch.cosine_similarity(read(model).readout, reference, dim=-1)
    return bool(found.min() > least)


def test_float8_with_scales_that_transformers_applies(copy, tiny):
    folder = copy()
    edit(folder, lambda tensors: in_float8(tensors, "weight_scale_inv"))
    edit_json(folder / "config.json", quantization_config=FP8)
    assert load(str(folder), device="cpu").info.quantization == "fp8"
    assert close(folder, read(tiny()).readout)
    assert "is quantised already (fp8)" in refusal(InputError, folder, quantization="8bit")
    edit(folder, lambda t: {k: v for k, v in t.items() if k != f"{UP}.weight_scale_inv"})
    assert f"that nothing unpacks (first: {UP}.weight in" in refusal(InputError, folder)


def test_int8_with_scales_that_bitsandbytes_applies(copy, tiny):
    folder = copy()
    plain = edit(folder, in_int8)
    edit_json(folder / "config.json", quantization_config=INT8)
    assert close(folder, read(tiny()).readout)
    lacking = {f"{UP}.weight": plain[f"{UP}.weight"]}
    edit(folder, lambda t: {k: v for k, v in t.items() if k != f"{UP}.SCB"} | lacking)
    message = refusal(InputError, folder)
    assert f"those of 1 layers are plain (first: {UP})" in message
    skip = {"llm_int8_skip_modules": ["lm_head", UP]}
    edit_json(folder / "config.json", quantization_config={**INT8, **skip})
    assert close(folder, read(tiny()).readout)


@pytest.mark.parametrize("setting", ["dtype", "torch_dtype"])
def test_settings_that_cannot_be(copy, setting):
    assert f"has the {setting} 'fp16'" in refusal(InputError, copy(**{setting: "fp16"}))


@pytest.mark.parametrize("entry", ["bitsandbytes", [], 5])
def test_a_quantization_config_that_is_none(copy, entry):
    message = refusal(InputError, copy(quantization_config=entry))
    assert "quantization_config in the config.json" in message
    assert "must be an object" in message


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers(copy, value):
    """Those of attention turn into zeros on some devices, and nothing else would tell."""
    folder = copy()
    name = "model.layers.1.self_attn.q_proj.weight"
    edit(folder, lambda tensors: {**tensors, name: torch.full_like(tensors[name], float(value))})
    assert f"{name} of {folder} holds NaN or infinite numbers" in refusal(InputError, folder)
