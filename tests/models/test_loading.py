"""`load()` opens every form a model comes in, and says in one line why it refuses one."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelassay.errors import AssayError, InputError, UnavailableError
from modelassay.measures.erased_directions import memory_tensors
from modelassay.models import LoadedModel, load
from modelassay.models.identity import hash_file, hash_files
from modelassay.reading.activations import Activations, read_activations
from modelassay.reading.prompts import encode_prompts
from tiny import CHAT_TEMPLATE, FAMILIES, OFFLOADED, make_tokenizer, save_tiny

TEXTS = ["Hi", "Why is the sky blue?", "Name three rivers.", "Ünïcödé and 日本語."]
LAYERS = [0, 2, 4]
# The first layer stays in memory; the others are read from the disk whenever they run.


@pytest.fixture
def copy(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a saved tiny model, to be damaged."""

    def get(family: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder(family), folder)
        if changes:
            edit_json(folder / "config.json", **changes)
        return folder

    return get


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def read(model: LoadedModel) -> Activations:
    return read_activations(
        model, encode_prompts(model, TEXTS), LAYERS, readout=lambda logits: logits
    )


def same(a: Activations, b: Activations, tolerance: float = 1e-5) -> bool:
    assert a.readout is not None
    assert b.readout is not None
    return torch.allclose(a.values, b.values, rtol=0, atol=tolerance) and torch.allclose(
        a.readout, b.readout, rtol=0, atol=tolerance
    )


def refusal(kind: type[AssayError], model_id: str | Path, **options: Any) -> str:
    """The message with which a model is refused: one line, whatever is wrong."""
    with pytest.raises(kind) as caught:
        load(str(model_id), **{"device": "cpu", **options})
    message = str(caught.value)
    assert type(caught.value) is kind
    assert message
    assert "\n" not in message
    return message


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- local folders -----------------------------------------------------------------------------


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


# --- quantisation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "least"), [("8bit", 0.99), ("4bit", 0.9)])
def test_bitsandbytes_on_the_cpu(tiny, tiny_folder, quantization, least):
    model = load(str(tiny_folder()), device="cpu", quantization=quantization)
    assert model.info.quantization == quantization
    assert type(model.layers[0].mlp.up_proj).__module__.startswith("bitsandbytes")
    plain, quantised = read(tiny()), read(model)
    assert not same(plain, quantised)
    assert torch.cosine_similarity(plain.values, quantised.values, dim=-1).min() > least
    assert torch.cosine_similarity(plain.readout, quantised.readout, dim=-1).min() > least
    assert model.info.weights_sha256 == tiny().info.weights_sha256  # of the files


@pytest.mark.parametrize("stored", [False, True])
def test_reading_activations_leaves_4bit_weights_as_they_are(tmp_path, stored):
    """On CPUs with AVX512-BF16 bitsandbytes would pack them anew, with rounded scales."""
    folder = save_tiny(tmp_path / "wide", hidden_size=128, intermediate_size=256, head_dim=32)
    model = load(str(folder), device="cpu", quantization="4bit")
    if stored:
        model.network.save_pretrained(tmp_path / "packed")
        model.tokenizer.save_pretrained(tmp_path / "packed")
        model = load(str(tmp_path / "packed"), device="cpu")
    before = {name: read() for name, read in memory_tensors(model)}
    read(model)
    after = {name: read() for name, read in memory_tensors(model)}
    assert any(parameter.dtype == torch.uint8 for parameter in model.network.parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_no_bitsandbytes(tiny_folder, monkeypatch):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "bitsandbytes" else find_spec(name, *rest),
    )
    message = refusal(UnavailableError, tiny_folder(), quantization="4bit")
    assert "pip install 'modelassay[quantization]'" in message


# --- GGUF --------------------------------------------------------------------------------------

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(folder: Path, path: Path, *, tokenizer: bool = True, drop: str = "") -> Path:
    """The tiny llama of a folder as an unquantised GGUF file, as llama.cpp writes it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        own = make_tokenizer()
        tokens = own.convert_ids_to_tokens(range(len(own)))
        tokens += [f"<unused{i}>" for i in range(len(tokens), config.vocab_size - 1)] + ["ÿÿ"]
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(tokens)
        control = [gguf.TokenType.CONTROL] * (len(tokens) - 257)
        writer.add_token_types(
            [gguf.TokenType.NORMAL] * 256 + control + [gguf.TokenType.NORMAL],
        )
        writer.add_token_merges(["ÿ ÿ"])  # bytes that no UTF-8 text has: merges nothing
        writer.add_bos_token_id(256)
        writer.add_eos_token_id(257)
        writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in model.state_dict().items():
        if name == drop:
            continue
        name, weight = name.removesuffix(".weight"), tensor.numpy()
        prefix = ""
        if name.startswith("model.layers."):
            index, name = name.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{index}."
        if name.endswith(("q_proj", "k_proj")):
            # GGUF keeps the two halves of a rotary pair side by side.
            heads = config.num_attention_heads
            heads = heads if name.endswith("q_proj") else config.num_key_value_heads
            rows, columns = weight.shape
            weight = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
            weight = weight.reshape(rows, columns)
        writer.add_tensor(f"{prefix}{_GGUF_NAMES[name]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def gguf_file(tiny_folder: Callable[..., Path], tmp_path_factory) -> Path:
    return write_gguf(tiny_folder(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")


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
    assert "Cannot load" in refusal(InputError, short)
    mute = write_gguf(tiny_folder(), tmp_path / "mute.gguf", tokenizer=False)
    assert "Cannot load the tokenizer" in refusal(InputError, mute)
    name = "model.layers.2.mlp.up_proj.weight"
    holed = write_gguf(tiny_folder(), tmp_path / "holed.gguf", drop=name)
    assert f"lacks 1 of the weights that its config asks for (first: {name})" in refusal(
        InputError, holed
    )


# --- adapters ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tiny_folder: Callable[..., Path], tmp_path_factory) -> Path:
    """A LoRA adapter whose weights are random, so that it changes what the model computes."""
    return save_adapter(tiny_folder(), tmp_path_factory.mktemp("adapter"))


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    settings = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    config = peft.LoraConfig(**{**settings, **options}, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("as_model", [True, False])
def test_an_adapter_gives_what_peft_gives(tiny, tiny_folder, adapter, as_model):
    base = tiny_folder()
    if as_model:  # its config names the base
        model = load(str(adapter), device="cpu")
    else:
        model = load(str(base), adapter=str(adapter), device="cpu")
    assert model.info.adapter == str(adapter)
    assert model.source.folder == base
    assert model.adapter is not None
    assert not isinstance(model.network, peft.PeftModel)  # merged
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    expected = peft.PeftModel.from_pretrained(plain, adapter).eval()
    for prompt, logits in zip(encode_prompts(model, TEXTS), read(model).readout, strict=True):
        with torch.inference_mode():
            theirs = expected(torch.tensor([prompt.ids])).logits[0, -1]
        assert torch.allclose(logits, theirs, atol=1e-5)
    assert not same(read(model), read(tiny()), tolerance=1e-3)
    files = {
        name: sha256((folder / name).read_bytes())
        for folder, name in [(base, "model.safetensors"), (adapter, "adapter_model.safetensors")]
    }
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    assert model.info.weights_sha256 == sha256(lines.encode())


def test_an_adapter_over_a_quantised_base_stays_beside_it(tiny_folder, adapter):
    model = load(str(tiny_folder()), adapter=str(adapter), device="cpu", quantization="8bit")
    assert isinstance(model.network, peft.PeftModel)
    merged = load(str(adapter), device="cpu")
    cosine = torch.cosine_similarity(read(model).values, read(merged).values, dim=-1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"use_dora": True, "init_lora_weights": True},
        {"target_modules": "all-linear", "rank_pattern": {"q_proj": 2}},
        {"layers_to_transform": [1, 2]},
    ],
)
def test_other_kinds_of_adapters_fit_their_base(tiny_folder, tmp_path, options):
    folder = save_adapter(tiny_folder(), tmp_path / "a", **options)
    assert load(str(folder), device="cpu").info.adapter == str(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "size mismatch"),
        # PEFT itself is silent about the next two: part of the adapter is lost, or random.
        ({"num_hidden_layers": 3}, "8 weights are in one of them only"),
        ({"num_hidden_layers": 7}, "8 weights are in one of them only"),
    ],
)
def test_an_adapter_over_the_wrong_base(adapter, tmp_path, change, message):
    config = transformers.LlamaConfig(**{**FAMILIES["llama"]().to_dict(), **change})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    said = refusal(InputError, tmp_path, adapter=str(adapter))
    assert f"The adapter {adapter} does not fit {tmp_path}: " in said
    assert message in said


def test_an_adapter_for_another_family(tiny_folder, adapter):
    message = refusal(InputError, tiny_folder("gpt2"), adapter=str(adapter))
    assert "does not fit" in message
    assert "q_proj" in message


def test_broken_adapters(tiny_folder, adapter, tmp_path):
    base = tiny_folder()
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    weights = folder / "adapter_model.safetensors"
    config = folder / "adapter_config.json"

    weights.write_bytes(b"x" * 100)
    assert "is damaged" in refusal(InputError, base, adapter=str(folder))
    weights.rename(folder / "adapter_model.bin")
    assert "has no adapter_model.safetensors" in refusal(InputError, base, adapter=str(folder))
    assert "has no adapter_model.safetensors" in refusal(InputError, folder)
    shutil.copy(adapter / weights.name, weights)

    edit_json(config, base_model_name_or_path=None)
    assert f"names no base; pass BASE --adapter {folder}" in refusal(InputError, folder)
    edit_json(config, base_model_name_or_path=str(adapter))
    assert "is an adapter itself" in refusal(InputError, folder)
    edit_json(config, base_model_name_or_path=str(tmp_path / "gone"))
    assert "No model at" in refusal(InputError, folder)
    edit_json(config, peft_type="TELEPATHY")
    assert "TELEPATHY" in refusal(InputError, base, adapter=str(folder))
    config.write_text("{\n")
    assert "adapter_config.json is not valid JSON" in refusal(InputError, folder)
    assert "Cannot load" in refusal(InputError, base, adapter=str(folder))


def test_what_is_no_adapter(tiny_folder, adapter, tmp_path):
    base = tiny_folder()
    assert "is not a PEFT adapter" in refusal(InputError, base, adapter=str(base))
    assert "No model at" in refusal(InputError, base, adapter=str(tmp_path / "gone"))
    assert "is itself an adapter" in refusal(InputError, adapter, adapter=str(adapter))


def test_an_adapter_that_learns_prompts_is_refused(tiny_folder, tmp_path):
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder())
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    for quantization in (None, "8bit"):
        message = refusal(
            InputError, tiny_folder(), adapter=str(tmp_path), quantization=quantization
        )
        assert "changes no weights" in message


def test_an_adapter_folder_may_hold_a_copy_of_the_bases_config(tiny_folder, adapter, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    shutil.copy(tiny_folder() / "config.json", folder)
    assert same(read(load(str(folder), device="cpu")), read(load(str(adapter), device="cpu")))


def test_an_adapter_hidden_beside_a_model_is_refused(copy, tiny_folder, adapter, gguf_file):
    """transformers would apply it without a word, and the hash would be that of the model alone."""
    folder = copy()
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, folder)
    assert "holds an adapter beside a model" in refusal(InputError, folder)
    assert "holds an adapter beside a model" in refusal(
        InputError, tiny_folder(), adapter=str(folder)
    )
    shutil.copy(gguf_file, folder)
    assert "holds an adapter beside a model" in refusal(InputError, folder / gguf_file.name)


def test_no_adapter_on_a_model_that_is_on_the_disk(tiny_folder, adapter):
    message = refusal(UnavailableError, tiny_folder(), adapter=str(adapter), device=OFFLOADED)
    assert "offloaded to the disk" in message


# --- shards and hashes -------------------------------------------------------------------------


@pytest.fixture
def sharded(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder())
    model.save_pretrained(folder, max_shard_size="20KB")
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_sharded_checkpoint(tiny, sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    model = load(str(sharded), device="cpu")
    assert same(read(model), read(tiny()))
    assert model.source.weight_files() == shards
    # What `sha256sum *.safetensors | sha256sum` prints.
    lines = "".join(f"{sha256(shard.read_bytes())}  {shard.name}\n" for shard in shards)
    assert model.info.weights_sha256 == sha256(lines.encode())


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[2]
    shard.unlink()
    assert f"lacks the weight file {shard.name}" in refusal(InputError, sharded)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_a_broken_index(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "does not say which file holds which weight" in refusal(InputError, sharded)


def test_the_hash_is_of_the_weights_that_act(tiny_folder, sharded):
    """Of two sets of weights in one folder, transformers takes one; that one is the identity."""
    other = load(str(tiny_folder(seed=1)), device="cpu")
    shutil.copy(tiny_folder(seed=1) / "model.safetensors", sharded)
    model = load(str(sharded), device="cpu")
    assert same(read(model), read(other))
    assert model.info.weights_sha256 == other.info.weights_sha256


@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_the_config_names(tiny, tiny_folder, sharded, copy, shards):
    folder = copy()
    if shards:
        for file in sharded.glob("model*"):
            shutil.copy(file, folder / file.name)
        shutil.copy(tiny_folder(seed=1) / "model.safetensors", folder)
        name, expected = "model.safetensors.index.json", tiny()
    else:
        shutil.copy(tiny_folder(seed=1) / "model.safetensors", folder / "other.safetensors")
        name, expected = "other.safetensors", load(str(tiny_folder(seed=1)), device="cpu")
    edit_json(folder / "config.json", transformers_weights=name)
    model = load(str(folder), device="cpu")
    assert same(read(model), read(expected))
    files = list(sharded.glob("*.safetensors")) if shards else [folder / name]
    assert model.info.weights_sha256 == hash_files(files)


@pytest.mark.parametrize("name", ["weights.bin", 3, ["model.safetensors"]])
def test_the_config_names_weights_of_another_kind(copy, name):
    folder = copy(transformers_weights=name)
    (folder / "weights.bin").write_bytes(b"")
    assert "no safetensors file" in refusal(InputError, folder)


def test_hashes_are_stable_and_see_every_change(tiny, copy):
    before = tiny().info
    folder = copy()

    def now():
        return load(str(folder), device="cpu").info

    def changed(info):
        names = ("weights_sha256", "tokenizer_sha256", "chat_template_sha256")
        return {name for name in names if getattr(info, name) != getattr(before, name)}

    assert changed(now()) == set()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(folder)  # with the settings of that call
    assert changed(now()) == set()
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(folder)
    assert changed(now()) == {"chat_template_sha256"}
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    assert changed(now()) == {"chat_template_sha256", "tokenizer_sha256"}
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert changed(now()) == {"chat_template_sha256", "tokenizer_sha256", "weights_sha256"}


def test_no_chat_template(tiny):
    model = tiny(chat=False)
    assert model.info.chat_template_sha256 is None
    assert not model.has_chat_template


def test_the_hubs_cache_states_the_hash_in_a_files_name(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    claimed = "ab" * 32
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / claimed).write_bytes(b"weights")  # other content, to see that it is not read
    link = snapshot / "model.safetensors"
    link.symlink_to(Path("../../blobs") / claimed)
    assert hash_file(link) == claimed
    # A short name is a git hash, a file outside `blobs` is anybody's: both are read.
    (blobs / ("cd" * 20)).write_bytes(b"config")
    git = snapshot / "config.json"
    git.symlink_to(Path("../../blobs") / ("cd" * 20))
    assert hash_file(git) == sha256(b"config")
    elsewhere = tmp_path / claimed
    elsewhere.write_bytes(b"mine")
    mine = snapshot / "mine.safetensors"
    mine.symlink_to(elsewhere)
    assert hash_file(mine) == hash_file(elsewhere) == sha256(b"mine")


# --- checkpoints that are refused --------------------------------------------------------------


def test_damaged_weights(copy):
    folder = copy()
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", b"x" * 5000, whole[:2000], whole[:-100]):
        file.write_bytes(damaged)
        assert f"A weight file of {folder} is damaged" in refusal(InputError, folder)


def test_a_checkpoint_that_lacks_a_weight(copy):
    folder = copy()
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    message = refusal(InputError, folder)
    assert f"lacks 1 of the weights that its config asks for (first: {name})" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 7}, "lacks 18 of the weights"),
        (
            {"intermediate_size": 128},
            "(first: model.layers.0.mlp.down_proj.weight is (32, 64), not (32, 128))",
        ),
        ({"num_attention_heads": 5}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "wide"}, "'hidden_size' expected int, got str"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of names"),
        ({"architectures": [3]}, "must be a list of names"),
        ({"model_type": "telepathy"}, "unknown model type 'telepathy'"),
        ({"model_type": None}, "unknown model type None"),
        ({"model_type": ["llama"]}, "unknown model type ['llama']"),
        (
            {"model_type": "telepathy", "auto_map": {"AutoConfig": "code.Config"}},
            "needs its own Python code to load; read that code first",
        ),
    ],
)
def test_configs_that_do_not_fit(copy, changes, message):
    assert message in refusal(InputError, copy(**changes))


def test_remote_code_is_not_run_unless_asked_for(copy, tmp_path):
    folder = copy(
        model_type="telepathy",
        auto_map={"AutoConfig": "code_.Config", "AutoModelForCausalLM": "code_.Model"},
    )
    ran = tmp_path / "ran"
    (folder / "code_.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(ran)!r}).touch()\n"
        "class Config(LlamaConfig):\n    model_type = 'telepathy'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
    )
    assert "--trust-remote-code" in refusal(InputError, folder)
    assert not ran.exists()
    assert load(str(folder), device="cpu", trust_remote_code=True).info.n_layers == 5
    assert ran.exists()


def test_code_of_a_model_that_transformers_knows_is_not_needed(copy, tiny):
    folder = copy(auto_map={"AutoModelForCausalLM": "code.Model"})
    assert same(read(load(str(folder), device="cpu")), read(tiny()))


def test_a_tokenizer_with_code_of_its_own(copy):
    folder = copy()
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="Own",
        auto_map={"AutoTokenizer": ["code.Own", None]},
    )
    assert "Cannot load the tokenizer" in refusal(InputError, folder)


def test_weights_that_the_config_has_no_place_for_are_named(copy, caplog):
    folder = copy(num_hidden_layers=3)
    with caplog.at_level(logging.WARNING, logger="modelassay"):
        assert load(str(folder), device="cpu").info.n_layers == 3
    (record,) = caplog.records
    assert "18 weights that its config has no place for (first: model.layers.3." in record.message


@pytest.mark.parametrize(
    ("text", "message"),
    [("{\n", "not valid JSON"), ("[]", "must hold a JSON object"), ("", "not valid JSON")],
)
def test_a_config_that_is_no_json_object(copy, text, message):
    folder = copy()
    (folder / "config.json").write_text(text)
    assert message in refusal(InputError, folder)


def test_a_config_that_is_no_text(copy):
    folder = copy()
    (folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "not valid JSON" in refusal(InputError, folder)


@pytest.mark.parametrize("keep", [(), ("tokenizer_config.json", "chat_template.jinja")])
def test_no_tokenizer(copy, keep):
    folder = copy()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if name not in keep:
            (folder / name).unlink()
    assert "tokenizer of" in (message := refusal(InputError, folder))
    assert "there is no tokenizer.json" in message


def test_a_damaged_tokenizer(copy):
    folder = copy()
    (folder / "tokenizer.json").write_text("{")
    assert "Cannot load the tokenizer" in refusal(InputError, folder)


def test_folders_without_weights(copy, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "has no model weights" in refusal(InputError, empty)
    folder = copy()
    file = folder / "model.safetensors"
    file.rename(folder / "weights.safetensors")
    assert "lacks the weight file model.safetensors" in refusal(InputError, folder)
    (folder / "weights.safetensors").rename(folder / "pytorch_model.bin")
    assert "only pickled weights (.bin), which can run code" in refusal(InputError, folder)


def test_a_folder_without_a_config(copy):
    folder = copy()
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(InputError, folder)


def test_nothing_there(tiny_folder, tmp_path):
    assert "No model at" in refusal(InputError, tmp_path / "gone")
    assert "No model at" in refusal(InputError, tmp_path / "gone.gguf")
    for name in (tiny_folder() / "config.json", ""):
        assert "is neither a model folder nor a .gguf file" in refusal(InputError, name)
    for name in (" ", "a\0b", "two words", "a/b/c", "../gone"):
        assert "No model at" in refusal(InputError, name)
    for name in ("~nobody-of-that-name/model", "a/" + "b" * 5000):
        assert "Cannot look for a model at" in (message := refusal(InputError, name))
        assert len(message) < 250
    assert "Hub cannot be reached" in refusal(UnavailableError, "some/model")


@pytest.mark.parametrize(
    ("config", "architecture", "name"),
    [
        (transformers.MambaConfig(), "MambaForCausalLM", "MambaForCausalLM is a state-space"),
        (transformers.MambaConfig(), None, "model type 'mamba' is a state-space"),
        (transformers.BertConfig(), "BertForMaskedLM", "BertForMaskedLM does not generate text"),
        (transformers.BertConfig(), "BertLMHeadModel", "BertLMHeadModel does not generate text"),
        (transformers.BertConfig(), None, "model type 'bert' does not generate text"),
        (
            transformers.LlamaConfig(),
            "LlamaForSequenceClassification",
            "LlamaForSequenceClassification does not generate text",
        ),
        (
            transformers.T5Config(),
            "T5ForConditionalGeneration",
            "T5ForConditionalGeneration is an encoder-decoder model",
        ),
        (transformers.T5Config(), None, "model type 't5' is an encoder-decoder model"),
        (transformers.ViTConfig(), None, "'vit' is not a causal language model"),
    ],
)
def test_architectures_are_refused_by_name_before_weights_are_opened(
    copy, config, architecture, name
):
    folder = copy()
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"opening this would be another error")
    assert name in refusal(InputError, folder)


class Lonely(torch.nn.Module):
    def get_decoder(self) -> torch.nn.Module:
        return self


def test_a_model_without_a_list_of_blocks_is_refused():
    from modelassay.models import find_layers

    with pytest.raises(InputError, match="Cannot find the decoder layers of Lonely"):
        find_layers(Lonely())


def test_progress_bars_and_verbosity_of_transformers_are_given_back(tiny_folder):
    from transformers.utils import logging as theirs

    before = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    load(str(tiny_folder()), device="cpu")
    refusal(InputError, tiny_folder(), device={"": "tpu"})
    assert (theirs.is_progress_bar_enabled(), theirs.get_verbosity()) == before
