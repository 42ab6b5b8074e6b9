"""Models that are read and refused, and what is changed in a copy of one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from modelassay.errors import AssayError
from modelassay.models import LoadedModel, load
from modelassay.reading.activations import Activations, read_activations
from modelassay.reading.prompts import encode_prompts
from tiny import CHAT_TEMPLATE, make_tokenizer

TEXTS = ["Hi", "Why is the sky blue?", "Name three rivers.", "Ünïcödé and 日本語."]
LAYERS = [0, 2, 4]


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
