"""GGUF files: the model that is read is the one that they were made from, or they are refused."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch

from checkpoints import refusal
from ggufs import FAMILIES, make_model, vocabulary, write_gguf
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.verify.settings import differing, settings_of

IDS = torch.randint(0, 256, (1, 100), generator=torch.Generator().manual_seed(1))
"""Longer than the windows and the lengths before scaling of the tiny models."""


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_model("llama")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_those_of_the_model_that_it_was_made_from(family, tmp_path):
    model = make_model(family)
    loaded = load(str(write_gguf(model, tmp_path / "a.gguf", family)), device="cpu")
    here, there = logits(loaded.network), logits(model)
    assert torch.allclose(here, there, rtol=0, atol=1e-5 * float(there.abs().max()))
    mine, theirs = settings_of(loaded.network.config), settings_of(model.config)
    assert differing(mine, theirs, converted=True, same_files=False)[0] == []
    assert loaded.network.config.vocab_size == model.config.vocab_size
    assert loaded.context_length == getattr(model.config, "max_position_embeddings", 2048)


def test_frequencies_that_follow_no_rule_are_divided_one_by_one(tmp_path):
    model = make_model("llama")
    divided = np.array([1, 1.5, 7, 2, 9, 3, 30, 4], np.float32)
    path = write_gguf(model, tmp_path / "a.gguf", tensors={"rope_freqs.weight": divided})
    found = load(str(path), device="cpu").network
    model.model.rotary_emb.inv_freq /= torch.from_numpy(divided)
    assert torch.allclose(logits(found), logits(model), rtol=0, atol=1e-4)


def test_all_ones_divide_nothing(llama, tmp_path):
    ones = {"rope_freqs.weight": np.ones(8, np.float32)}
    found = load(str(write_gguf(llama, tmp_path / "a.gguf", tensors=ones)), device="cpu").network
    assert torch.equal(logits(found), logits(llama))
    assert found.config.rope_parameters["rope_type"] == "default"


def test_llama_3s_rule_is_named(tmp_path):
    path = write_gguf(make_model("llama-3.1"), tmp_path / "a.gguf", "llama-3.1")
    config = load(str(path), device="cpu").network.config
    assert config.rope_parameters["rope_type"] == "llama3"
    assert config.rope_parameters["original_max_position_embeddings"] == 64


@pytest.mark.parametrize(
    ("family", "keys", "said"),
    [
        ("llama", {"expert_count": 8, "expert_used_count": 2}, "llama.expert_count is 8"),
        ("llama", {"logit_scale": 0.25}, "llama.logit_scale is 0.25"),
        ("llama", {"embedding_scale": 12.0}, "llama.embedding_scale is 12"),
        ("llama", {"attention.scale": 0.5}, "llama.attention.scale is 0.5"),
        ("llama", {"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping is 30"),
        ("llama", {"attention.sliding_window": 64}, "llama.attention.sliding_window is 64"),
        ("llama", {"attention.causal": False}, "llama.attention.causal is False"),
        ("llama", {"attention.value_length": 8}, "llama.attention.value_length is 8"),
        ("llama", {"rope.dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ("llama", {"rope.scaling.type": "dynamic"}, "llama.rope.scaling.type is 'dynamic'"),
        ("llama", {"attention.head_count": [4, 4, 2]}, "attention.head_count says one for each"),
        ("llama", {"a_thing_of_tomorrow": 1}, "llama.a_thing_of_tomorrow is 1"),
        ("qwen3moe", {"expert_gating_func": 2}, "qwen3moe.expert_gating_func is 2"),
        ("falcon", {"attention.head_count_kv": 2}, "falcon.attention.head_count_kv is 2"),
    ],
)
def test_a_setting_that_would_be_ignored_is_named(family, keys, said, tmp_path):
    path = write_gguf(make_model(family), tmp_path / "a.gguf", family, keys=keys)
    message = refusal(InputError, path)
    assert said in message
    assert "use the safetensors checkpoint" in message


def test_settings_that_do_nothing_are_no_reason_to_refuse(llama, tmp_path):
    keys = {
        "expert_count": 0,
        "logit_scale": 1.0,
        "attention.scale": 0.25,
        "attention.sliding_window": 4096,
        "attention.causal": True,
        "tensor_data_layout": "Meta AI original pth",
        "rope.scaling.finetuned": True,
        "rope.scaling.type": "none",
        "general.license": "apache-2.0",
        "quantize.imatrix.chunks_count": 100,
    }
    found = load(str(write_gguf(llama, tmp_path / "a.gguf", keys=keys)), device="cpu").network
    assert torch.equal(logits(found), logits(llama))


@pytest.mark.parametrize(
    "name", ["blk.1.attn_q_norm.weight", "blk.0.ffn_gate_inp.weight", "cls.weight"]
)
def test_a_tensor_without_a_place_is_named(llama, name, tmp_path):
    extra = {name: np.ones(16, np.float32)}
    message = refusal(InputError, write_gguf(llama, tmp_path / "a.gguf", tensors=extra))
    assert f"{name} would be left out" in message


def test_an_image_tower_in_the_same_file_is_no_part_of_the_text(tmp_path):
    model = make_model("gemma3")
    path = write_gguf(
        model,
        tmp_path / "a.gguf",
        "gemma3",
        keys={"vision.block_count": 2, "mm.tokens_per_image": 4},
        tensors={"v.patch_embedding.weight": np.ones((4, 4), np.float32)},
    )
    assert torch.allclose(logits(load(str(path), device="cpu").network), logits(model), atol=1e-4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"split.count": 3, "split.no": 1}, "it is part 2 of 3; join the parts with"),
        ({"general.type": "adapter"}, "holds a LoRA adapter"),
        ({"general.type": "mmproj"}, "holds the image or audio encoder"),
        ({"general.architecture": "command-r"}, "architecture 'command-r' are not read right"),
        ({"tokenizer.ggml.pre": "of-tomorrow"}, "tokenizer.ggml.pre is 'of-tomorrow'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is None"),
    ],
)
def test_files_that_hold_no_model_of_their_own(llama, keys, said, tmp_path):
    assert said in refusal(InputError, write_gguf(llama, tmp_path / "a.gguf", keys=keys))


def test_a_vocabulary_alone(llama, tmp_path):
    names = [tensor.name for tensor in gguf.GGUFReader(write_gguf(llama, tmp_path / "a")).tensors]
    path = write_gguf(llama, tmp_path / "a.gguf", drop=names)
    assert "holds no weights of a language model" in refusal(InputError, path)


def test_numbers_that_cannot_be_unpacked(llama, tmp_path):
    ids = {"blk.0.ffn_up.weight": np.ones((96, 64), np.int8)}
    path = write_gguf(llama, tmp_path / "a.gguf", tensors=ids)
    assert "blk.0.ffn_up.weight is stored as I8" in refusal(InputError, path)


def test_big_endian(llama, tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("token_embd.weight", np.ones((300, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "its numbers are big-endian" in refusal(InputError, tmp_path / "a.gguf")


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
def test_packed_weights_are_what_the_format_says(llama, kind, tmp_path):
    path = write_gguf(llama, tmp_path / "a.gguf", quantize=kind)
    found = load(str(path), device="cpu").network.state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    of_type = gguf.GGMLQuantizationType[kind]
    packed = gguf.quants.quantize(llama.state_dict()[name].numpy(), of_type)
    expected = gguf.quants.dequantize(packed, of_type)
    assert torch.equal(found[name], torch.from_numpy(expected))


def four_bits(block: np.ndarray) -> list[float]:
    """The 256 numbers of a Q4_K block: eight scales and minima of 6 bits, each for 32 numbers."""
    d, least = (float(value) for value in block[:4].view(np.float16))
    sixes, nibbles = [int(value) for value in block[4:16]], block[16:]
    numbers = []
    for part in range(8):
        if part < 4:
            scale, minimum = sixes[part] & 63, sixes[part + 4] & 63
        else:
            scale = (sixes[part + 4] & 15) | (sixes[part - 4] >> 6) << 4
            minimum = sixes[part + 4] >> 4 | (sixes[part] >> 6) << 4
        for value in nibbles[32 * (part // 2) :][:32]:
            nibble = int(value) >> 4 if part % 2 else int(value) & 15
            numbers.append(d * scale * nibble - least * minimum)
    return numbers


def six_bits(block: np.ndarray) -> list[float]:
    """The 256 numbers of a Q6_K block: sixteen scales of 8 bits, each for 16 numbers."""
    low, high = block[:128], block[128:192]
    scales, d = block[192:208].view(np.int8), float(block[208:].view(np.float16)[0])
    numbers = []
    for i in range(256):
        half, quarter, place = i // 128, i % 128 // 32, i % 32
        nibble = int(low[64 * half + 32 * (quarter % 2) + place]) >> (4 if quarter > 1 else 0) & 15
        top = int(high[32 * half + place]) >> (2 * quarter) & 3
        numbers.append(d * int(scales[i // 16]) * ((nibble | top << 4) - 32))
    return numbers


@pytest.mark.parametrize(
    ("kind", "size", "halves", "unpack"),
    [("Q4_K", 144, (0, 2), four_bits), ("Q6_K", 210, (208,), six_bits)],
)
def test_k_quants_are_what_their_blocks_say(kind, size, halves, unpack, llama, tmp_path):
    blocks = np.random.RandomState(0).randint(0, 256, (64, size), dtype=np.uint8)
    for at in halves:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    torch.manual_seed(0)
    wide = make_model("llama")
    for layer in wide.model.layers:
        for name in ("gate_proj", "up_proj"):
            setattr(layer.mlp, name, torch.nn.Linear(64, 256, bias=False))
        layer.mlp.down_proj = torch.nn.Linear(256, 64, bias=False)
    wide.config.intermediate_size = 256
    name = "blk.1.ffn_down.weight"
    path = write_gguf(wide, tmp_path / "a.gguf", packed={name: (blocks, kind)})
    found = load(str(path), device="cpu").network.model.layers[1].mlp.down_proj.weight
    expected = torch.tensor([unpack(block) for block in blocks])
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("prefix", "first"), [(None, "▁ab"), (True, "▁ab"), (False, "ab")])
def test_a_sentencepiece_vocabulary_begins_as_the_file_says(llama, prefix, first, tmp_path):
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["a", "b", "▁", "ab", "▁ab"]
    words += [f"<unused{i}>" for i in range(300 - len(words))]
    path = write_gguf(
        llama,
        tmp_path / "a.gguf",
        tokens=words,
        keys={
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.scores": [-float(i) for i in range(300)],
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 5, *[5] * 36],
            "tokenizer.ggml.merges": None,
            "tokenizer.ggml.add_space_prefix": prefix,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
        },
    )
    tokenizer = load(str(path), device="cpu").tokenizer
    assert tokenizer.tokenize("ab ab") == [first, "▁ab"]
    ids = tokenizer("ab ab", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == "ab ab"


def test_the_tokenizer_ends_begins_and_pads_as_the_file_says(llama, tmp_path):
    keys = {"tokenizer.ggml.eot_token_id": 256, "tokenizer.ggml.padding_token_id": 258}
    model = load(str(write_gguf(llama, tmp_path / "a.gguf", keys=keys)), device="cpu")
    assert model.network.config.eos_token_id == [257, 256]
    assert model.network.config.pad_token_id == 258
    assert model.tokenizer.pad_token_id == 258


def test_templates_of_several_names(llama, tmp_path):
    keys = {"tokenizer.chat_template.tool_use": "{{ tools }}"}
    path = write_gguf(llama, tmp_path / "a.gguf", keys=keys, template="{{ messages }}")
    expected = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    assert load(str(path), device="cpu").tokenizer.chat_template == expected


@pytest.mark.parametrize(
    ("pre", "stated", "begins"),
    [("llama-bpe", None, True), ("llama-bpe", False, False), ("qwen2", None, False)],
)
def test_a_text_begins_as_the_vocabulary_has_it(llama, pre, stated, begins, tmp_path):
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": stated}
    model = load(str(write_gguf(llama, tmp_path / "a.gguf", keys=keys)), device="cpu")
    assert (model.tokenizer("ab")["input_ids"][0] == 256) is begins


TOKENS = ["Ġ1", "12", "a1", "ab", "cd", "abcd"]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "ab 12", ["ab", "Ġ", "12"]),
        ("starcoder", "ab 12", ["ab", "Ġ", "1", "2"]),
        ("smollm", "ab12", ["ab", "1", "2"]),
        ("llama-bpe", "abcd", ["abcd"]),
        ("gpt-2", "abcd", ["ab", "cd"]),
    ],
)
def test_text_is_split_as_the_file_says(llama, pre, text, pieces, tmp_path):
    words = vocabulary(300)
    words[260 : 260 + len(TOKENS)] = TOKENS
    keys = {
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.merges": ["1 2", "a b", "c d"],
    }
    path = write_gguf(llama, tmp_path / "a.gguf", keys=keys, tokens=words)
    tokenizer = load(str(path), device="cpu").tokenizer
    assert tokenizer.tokenize(text) == pieces
