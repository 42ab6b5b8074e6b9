"""Loading from folders and GGUF files: what acts is what is read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers

from checkpoints import LAYERS, TEXTS, edit_json, read, refusal, same, sha256, write_gguf
from modelassay.errors import InputError, UnavailableError
from modelassay.models import load
from modelassay.reading.prompts import encode_prompts
from tiny import CHAT_TEMPLATE, OFFLOADED, save_tiny


def test_a_local_folder(tiny_folder):
    folder = tiny_folder()
    model = load(str(folder), device="cpu")
    info = model.info
    assert (info.id, info.revision, info.adapter) == (str(folder), None, None)
    assert (info.architecture, info.n_layers, info.hidden_size) == ("LlamaForCausalLM", 5, 32)
    assert (info.dtype, info.quantization) == ("float32", None)
    assert info.weights_sha256 == sha256((folder / "model.safetensors").read_bytes())
    assert info.chat_template_sha256 == sha256(CHAT_TEMPLATE.encode())
    assert json.loads(json.dumps(info.to_dict()))["n_layers"] == 5
    assert model.device == torch.device("cpu")
    assert model.context_length == 256
    assert model.has_chat_template
    assert not model.network.training
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_auto_is_float32_on_a_cpu_whatever_the_file_holds(tmp_path):
    folder = save_tiny(tmp_path / "a")
    half = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    half.save_pretrained(folder)
    model = load(str(folder), device="cpu")
    assert model.info.dtype == "float32"
    assert torch.equal(model.network.lm_head.weight, half.lm_head.weight.float())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", torch.float32), ("float16", torch.float16), ("bfloat16", torch.bfloat16)],
)
def test_dtypes(tiny, tiny_folder, dtype, expected):
    model = load(str(tiny_folder()), device="cpu", dtype=dtype)
    assert model.info.dtype == dtype
    assert {parameter.dtype for parameter in model.network.parameters()} == {expected}
    cosine = torch.cosine_similarity(read(model).values, read(tiny()).values, dim=-1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"dtype": "int4"}, InputError, "Unknown dtype 'int4'; choose auto, float32"),
        ({"quantization": "2bit"}, InputError, "choose 8bit or 4bit"),
        ({"device": "tpu"}, InputError, "Unknown device 'tpu'; choose auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, InputError, "Unknown device"),
        ({"device": {}}, InputError, "device map is empty"),
        ({"device": {"": "tpu"}}, InputError, "Cannot load"),
    ],
)
def test_unknown_options(tiny_folder, options, kind, message):
    assert message in refusal(kind, tiny_folder(), **options)


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_no_cuda(tiny_folder, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device cpu" in refusal(UnavailableError, tiny_folder(), device=device)


def test_no_such_gpu(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "no cuda:7; 2 GPUs" in refusal(UnavailableError, tiny_folder(), device="cuda:7")


def test_a_multimodal_model_is_read_through_its_language_tower(tiny):
    model = tiny("gemma3")
    assert model.info.architecture == "Gemma3ForConditionalGeneration"
    assert (model.info.n_layers, model.info.hidden_size) == (5, 32)  # not the vision tower's 1, 16
    assert model.context_length == 256
    result = read(model)
    assert result.values.shape == (len(TEXTS), len(LAYERS), 32)
    ids = encode_prompts(model, TEXTS)[1].ids
    with torch.inference_mode():
        out = model.network(torch.tensor([ids]), output_hidden_states=True)
    assert torch.allclose(result.values[1, 1], out.hidden_states[3][0, -1], atol=1e-4)


def test_offload_to_disk_gives_the_same_activations(tiny, tiny_folder):
    offloaded = load(str(tiny_folder()), device=OFFLOADED)
    assert offloaded.network.model.layers[3].mlp.up_proj.weight.device.type == "meta"
    assert offloaded.device == torch.device("cpu")
    assert same(read(offloaded), read(tiny()))
    assert offloaded.info.weights_sha256 == tiny().info.weights_sha256


def test_memory_runs_out_while_loading(tiny_folder, monkeypatch):
    def full(*_args, **_options):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", full)
    assert "does not fit into memory; try --load-4bit" in refusal(UnavailableError, tiny_folder())


def test_a_gguf_file_gives_the_activations_of_the_model_it_was_made_from(tiny, gguf_file):
    model = load(str(gguf_file), device="cpu")
    assert model.info.quantization == "gguf"
    assert model.info.architecture == "LlamaForCausalLM"
    assert model.info.weights_sha256 == sha256(gguf_file.read_bytes())
    assert model.info.chat_template_sha256 == tiny().info.chat_template_sha256
    assert encode_prompts(model, TEXTS) == encode_prompts(tiny(), TEXTS)
    result = read(model)
    assert torch.isfinite(result.values).all()
    assert torch.isfinite(result.readout).all()
    assert same(result, read(tiny()))


def test_a_gguf_file_chosen_in_a_folder(tiny, gguf_file, tmp_path):
    for name in ("one.gguf", "two.gguf"):
        shutil.copy(gguf_file, tmp_path / name)
    model = load(str(tmp_path), gguf_file="two.gguf", device="cpu")
    assert model.source.weight_files() == [tmp_path / "two.gguf"]
    assert same(read(model), read(tiny()))
    message = refusal(InputError, tmp_path)
    assert "choose one with --gguf-file: " in message
    assert "one.gguf" in message
    assert "two.gguf" in message
    assert "no file 'three.gguf'" in refusal(InputError, tmp_path, gguf_file="three.gguf")
    outside = f"../{tmp_path.name}/one.gguf"
    assert f"no file '{outside}'" in refusal(InputError, tmp_path, gguf_file=outside)


def test_a_gguf_file_is_quantised_already(gguf_file):
    assert "already quantised" in refusal(InputError, gguf_file, quantization="8bit")


def test_broken_gguf_files(tiny_folder, gguf_file, tmp_path):
    text = tmp_path / "text.gguf"
    text.write_bytes(b"not a model" * 100)
    assert "not a GGUF file" in refusal(InputError, text)
    short = tmp_path / "short.gguf"
    short.write_bytes(gguf_file.read_bytes()[:30_000])
    assert "short.gguf cannot be read as a GGUF file" in refusal(InputError, short)
    mute = write_gguf(tiny_folder(), tmp_path / "mute.gguf", tokenizer=False)
    assert "Cannot load the tokenizer" in refusal(InputError, mute)
    name = "model.layers.2.mlp.up_proj.weight"
    holed = write_gguf(tiny_folder(), tmp_path / "holed.gguf", drop=name)
    assert f"lacks 1 of the weights that its config asks for (first: {name})" in refusal(
        InputError, holed
    )


def test_no_chat_template(tiny):
    model = tiny(chat=False)
    assert model.info.chat_template_sha256 is None
    assert not model.has_chat_template


def test_progress_bars_and_verbosity_of_transformers_are_given_back(tiny_folder):
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    load(str(tiny_folder()), device="cpu")
    refusal(InputError, tiny_folder(), device={"": "tpu"})
    assert (theirs.is_progress_bar_enabled(), theirs.get_verbosity()) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"return_dict": False},
    ],
)
def test_how_others_computed_keeps_no_model_out(tiny, tmp_path, settings):
    folder = save_tiny(tmp_path / "a")
    edit_json(folder / "config.json", **settings)
    assert same(read(load(str(folder), device="cpu")), read(tiny()))


def test_a_tokenizer_of_training_gives_the_same_tokens_each_time(tmp_path):
    folder = save_tiny(tmp_path / "a")
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"]["dropout"] = 0.5
    letters = spec["model"]["vocab"]
    spec["model"]["vocab"] |= {"th": len(letters), "the": len(letters) + 1}
    spec["model"]["merges"] = [["t", "h"], ["th", "e"]]
    path.write_text(json.dumps(spec))
    tokenizer = load(str(folder), device="cpu").tokenizer
    assert len({tuple(tokenizer("the the the the")["input_ids"]) for _ in range(20)}) == 1


def test_a_tokenizer_without_its_unknown_token_is_named(tmp_path):
    folder = save_tiny(tmp_path / "a")
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"]["unk_token"] = "<unk>"
    del spec["model"]["vocab"]["y"]
    path.write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"Cannot load the tokenizer of .*Unk token"):
        load(str(folder), device="cpu")
