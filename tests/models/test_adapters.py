"""Adapters over their bases: the model acts as it does under PEFT, or is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers

from checkpoints import TEXTS, edit_json, read, refusal, same, sha256
from modelassay.errors import InputError, UnavailableError
from modelassay.models import LoadedModel, load
from modelassay.models.adapters import add_adapter
from modelassay.reading.prompts import encode_prompts
from tiny import FAMILIES, OFFLOADED, make_tokenizer, save_tiny


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


def test_shares_of_adapters_add_up(tiny_folder, adapter, tmp_path):
    """A linear merge: what each adapter changes, times its share."""
    base = str(tiny_folder())
    plain, merged, shared = (load(base, device="cpu").network for _ in range(3))
    whole = load(str(adapter), device="cpu").network
    add_adapter(merged, adapter, 1.0)
    for share in (0.3, 0.45):
        add_adapter(shared, adapter, share)
    changed = 0
    for name, weight in plain.named_parameters():
        own, other = (network.get_parameter(name) for network in (merged, whole))
        assert torch.allclose(own, other, atol=1e-6)
        expected = weight + 0.75 * (other - weight)
        assert torch.allclose(shared.get_parameter(name), expected, atol=1e-6)
        changed += not torch.equal(own, weight)
    assert changed == 10
    with pytest.raises(InputError, match="does not fit"):
        add_adapter(load(str(tiny_folder("gpt2")), device="cpu").network, adapter, 1.0)


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


TARGETS = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, **TARGETS, **options})


KINDS: dict[str, peft.PeftConfig] = {
    "rank-stabilised": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "biases": lora(bias="lora_only"),
    "head saved": lora(modules_to_save=["lm_head"]),
    "embeddings saved": lora(modules_to_save=["embed_tokens"]),
    "both saved": lora(modules_to_save=["lm_head", "embed_tokens"]),
    "saved as one": lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    "norms saved": lora(modules_to_save=["input_layernorm"]),
    "head": lora(target_modules=["lm_head"]),
    "embeddings": lora(target_modules=["embed_tokens"]),
    "embeddings, dora": lora(target_modules=["embed_tokens"], use_dora=True),
    "both": lora(target_modules=["lm_head", "embed_tokens"]),
    "as one": lora(target_modules=["embed_tokens"], ensure_weight_tying=True),
    "tokens": lora(trainable_token_indices=[65, 66]),
    "tokens of each": lora(trainable_token_indices={"embed_tokens": [65], "lm_head": [66]}),
    "some layers": lora(layers_to_transform=[1, 2]),
    "ranks": lora(target_modules="all-linear", rank_pattern={"q_proj": 2}, alpha_pattern={"v": 9}),
    "parameters": lora(target_modules=[], target_parameters=["mlp.up_proj.weight"]),
    "layers twice": lora(layer_replication=[[0, 4], [2, 5]]),
    "loha": peft.LoHaConfig(r=4, **TARGETS),
    "lokr": peft.LoKrConfig(r=4, **TARGETS),
    "ia3": peft.IA3Config(feedforward_modules=["down_proj"], **TARGETS),
    "vera": peft.VeraConfig(r=4, **{**TARGETS, "target_modules": ["q_proj"]}),
    "oft": peft.OFTConfig(oft_block_size=4, r=0, **TARGETS),
    "norms": peft.LNTuningConfig(**{**TARGETS, "target_modules": ["input_layernorm"]}),
    "tokens alone": peft.TrainableTokensConfig(token_indices=[65, 66], task_type="CAUSAL_LM"),
}
EMBEDDINGS = ("head", "embeddings", "both", "tokens")
OF_EMBEDDINGS = [kind for kind in KINDS if kind.split()[0] in EMBEDDINGS]


def save_kind(base: Path, folder: Path, config: peft.PeftConfig, *, rows: int | None = None) -> Any:
    """Saves an adapter with random weights; returns it as PEFT opens it, beside its base."""
    torch.manual_seed(3)

    def model() -> Any:
        plain = transformers.AutoModelForCausalLM.from_pretrained(base)
        if rows:
            plain.resize_token_embeddings(rows, mean_resizing=False)
        return plain

    wrapped = peft.get_peft_model(model(), deepcopy(config))
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    wrapped.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(model(), folder).eval()


def acts_as(model: LoadedModel, expected: Any, *, tolerance: float = 1e-4) -> bool:
    """Whether it gives the logits of the other model."""
    found, theirs = [], []
    for prompt, logits in zip(encode_prompts(model, TEXTS), read(model).readout, strict=True):
        found.append(logits)
        with torch.inference_mode():
            theirs.append(expected(torch.tensor([prompt.ids])).logits[0, -1])
    return torch.allclose(torch.stack(found), torch.stack(theirs), atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "tied"), [*((kind, True) for kind in KINDS), *((k, False) for k in OF_EMBEDDINGS)]
)
def test_every_kind_acts_as_under_peft(tmp_path, kind, tied):
    """Of tied embeddings and replicated layers too, whose weights two layers share."""
    base = save_tiny(tmp_path / "base", tie_word_embeddings=tied)
    expected = save_kind(base, tmp_path / "adapter", KINDS[kind])
    model = load(str(tmp_path / "adapter"), device="cpu")
    assert not isinstance(model.network, peft.PeftModel)
    assert acts_as(model, expected)
    assert not acts_as(load(str(base), device="cpu"), expected)
    weights = [m.weight for m in (model.network.lm_head, model.network.model.embed_tokens)]
    assert model.network.config.tie_word_embeddings == (weights[0] is weights[1])


@pytest.mark.parametrize(
    "config",
    [
        lora(alora_invocation_tokens=[65]),
        peft.AdaptionPromptConfig(adapter_layers=2, adapter_len=4, task_type="CAUSAL_LM"),
    ],
)
def test_a_kind_that_cannot_be_merged_is_refused(tiny_folder, tmp_path, config):
    save_kind(tiny_folder(), tmp_path, config)
    assert "cannot be merged into its base" in refusal(InputError, tmp_path)


def test_a_merge_that_would_act_otherwise_is_refused(tiny_folder, adapter, monkeypatch):
    layer = peft.tuners.lora.Linear
    whole = layer.get_delta_weight
    monkeypatch.setattr(layer, "get_delta_weight", lambda *args: whole(*args) * 2)
    message = refusal(InputError, adapter)
    assert "(LORA) acts otherwise than beside it" in message


def test_an_adapter_over_a_base_that_is_stored_in_4_bits_stays_beside_it(tmp_path):
    wide = save_tiny(tmp_path / "wide", hidden_size=128, intermediate_size=256, head_dim=32)
    packed = load(str(wide), device="cpu", quantization="4bit")
    packed.network.save_pretrained(tmp_path / "packed")
    packed.tokenizer.save_pretrained(tmp_path / "packed")
    expected = save_kind(tmp_path / "packed", tmp_path / "adapter", lora())
    model = load(str(tmp_path / "adapter"), device="cpu")
    assert isinstance(model.network, peft.PeftModel)
    assert acts_as(model, expected, tolerance=2e-2)  # bitsandbytes packs the other one again
    assert not acts_as(packed, expected, tolerance=2e-2)


def own_tokenizer(folder: Path, *tokens: str, pad: str | None = None) -> Any:
    """Saves a tokenizer that has more tokens than the base's, and another template."""
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<filler {i}>" for i in range(300 - len(tokenizer))])
    tokenizer.add_tokens(list(tokens))
    if pad:
        tokenizer.pad_token = pad
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize(
    ("tied", "saved"),
    [
        (True, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        (False, {"modules_to_save": ["lm_head", "embed_tokens"]}),
        (True, {}),  # PEFT saves the embeddings by itself where they were resized
        (False, {}),
    ],
)
@pytest.mark.parametrize("rows", [302, 320])
def test_tokens_that_came_with_the_adapter(tmp_path, tied, saved, rows):
    base = save_tiny(tmp_path / "base", tie_word_embeddings=tied)
    expected = save_kind(base, tmp_path / "a", lora(**saved), rows=rows)
    tokenizer = own_tokenizer(tmp_path / "a", "<think>", "</think>")
    model = load(str(base), adapter=str(tmp_path / "a"), device="cpu")
    assert len(model.tokenizer) == 302
    assert model.tokenizer.chat_template == tokenizer.chat_template
    (prompt,) = encode_prompts(model, ["<think>"])
    assert list(prompt.ids) == tokenizer("[<think>][", add_special_tokens=False)["input_ids"]
    assert 300 in prompt.ids
    assert acts_as(model, expected)
    assert model.info.tokenizer_sha256 != load(str(base), device="cpu").info.tokenizer_sha256


def test_tokens_that_the_adapter_holds_one_by_one(tmp_path):
    base = save_tiny(tmp_path / "base", tie_word_embeddings=True)
    save_kind(base, tmp_path / "a", lora(trainable_token_indices=[300, 301]), rows=302)
    own_tokenizer(tmp_path / "a", "<think>", "</think>")
    model = load(str(base), adapter=str(tmp_path / "a"), device="cpu")
    assert model.network.get_input_embeddings().weight.shape[0] == 302


def test_tokens_without_embeddings(tiny_folder, adapter, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    own_tokenizer(folder, "<think>", "</think>")
    message = refusal(InputError, folder)
    assert "has 2 tokens more than there are embeddings (first: '</think>')" in message
    # A token for padding is never looked at.
    own_tokenizer(folder, "<pad>", pad="<pad>")
    model = load(str(folder), device="cpu")
    assert model.tokenizer.pad_token_id == 300
    read(model)


def test_tokens_that_the_base_has_no_embeddings_for_either(tiny_folder, tmp_path):
    """As Gemma 3's token for an image in its text models: no text holds it."""
    base, folder = tmp_path / "base", tmp_path / "a"
    shutil.copytree(tiny_folder(), base)
    own_tokenizer(base, "<image>")
    expected = save_kind(base, folder, lora())
    own_tokenizer(folder, "<image>")
    model = load(str(folder), device="cpu")
    assert model.network.get_input_embeddings().weight.shape[0] == 300
    assert acts_as(model, expected)


def test_a_template_that_came_with_the_adapter(tiny_folder, adapter, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    model = load(str(folder), device="cpu")
    assert model.tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert model.info.tokenizer_sha256 == load(str(adapter), device="cpu").info.tokenizer_sha256


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
    assert "only pickled weights (adapter_model.bin)" in refusal(InputError, folder)
    (folder / "adapter_model.bin").unlink()
    assert "has no adapter_model.safetensors" in refusal(InputError, base, adapter=str(folder))
    weights.write_bytes(b"")
    shutil.copy(adapter / weights.name, weights)

    edit_json(config, base_model_name_or_path=None)
    assert "names no base; name it yourself: --base BASE" in refusal(InputError, folder)
    edit_json(config, base_model_name_or_path=str(adapter))
    assert "is an adapter itself" in refusal(InputError, folder)
    edit_json(config, base_model_name_or_path=str(tmp_path / "gone"))
    assert "a path of the machine that trained it" in refusal(InputError, folder)
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


def test_a_setting_of_a_later_version(adapter, tmp_path):
    folder = tmp_path / "a"
    shutil.copytree(adapter, folder)
    edit_json(folder / "adapter_config.json", use_magic=True)
    assert load(str(folder), device="cpu")  # somebody's note
    edit_json(folder / "adapter_config.json", peft_version="99.1.0")
    message = refusal(UnavailableError, folder)
    assert "has the setting use_magic" in message
    assert "update it to 99.1.0" in message
