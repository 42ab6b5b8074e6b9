"""Adapters give what PEFT gives, or are refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from checkpoints import TEXTS, edit_json, read, refusal, same, sha256
from modelassay.errors import InputError, UnavailableError
from modelassay.models import load
from modelassay.reading.prompts import encode_prompts
from tiny import FAMILIES, OFFLOADED, make_tokenizer


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
