"""GGUF files of tiny models, laid out as llama.cpp's converter lays out each family's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

from tiny import CHAT_TEMPLATE, make_tokenizer

Values = dict[str, Any]
Layout = Callable[[str, np.ndarray, Any], Iterable[tuple[str, np.ndarray]]]

SIZES: Values = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
}
EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon")
_EXPERTS: Values = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_NARROW: Values = {"head_dim": 8}
LONG: Values = {"long_factor": [4.0, 3.0, 2.5, 2.0, 1.8, 1.5, 1.2, 1.1], "short_factor": [1.1] * 8}


def _as_is(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    yield name, weight


def _pairs_together(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    """Llama: the two halves of a rotary pair lie side by side."""
    if ".attn_q." in name or ".attn_k." in name:
        heads = config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads
        rest = weight.shape[1:]
        weight = weight.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(-1, *rest)
    yield name, weight


def _norms_from_one(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    """Gemma and Nemotron: a norm's weight is added to one."""
    yield name, weight + 1 if name.endswith("norm.weight") else weight


def _transposed(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    """GPT-2: matrices are stored [in, out]."""
    flip = weight.ndim == 2 and name.startswith("blk.")
    yield name, weight.T if flip else weight


def _heads_apart(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    """BLOOM: query, key and value of one head after the other become three blocks."""
    if "attn_qkv" in name:
        parts = weight.reshape(config.n_head, 3, -1, *weight.shape[1:])
        weight = np.concatenate([parts[:, i].reshape(-1, *weight.shape[1:]) for i in range(3)])
    yield name, weight


def _experts_apart(name: str, weight: np.ndarray, config: Any) -> Iterable[tuple[str, np.ndarray]]:
    """Mixtures of experts: gate and up projection apart."""
    if name.endswith("gate_up_exps.weight"):
        gate, up = np.split(weight, 2, axis=1)
        yield name.replace("gate_up", "gate"), gate
        yield name.replace("gate_up", "up"), up
    elif "gate_inp_shexp" in name:
        yield name, weight[0]
    else:
        yield name, weight


def _short_convolutions(
    name: str, weight: np.ndarray, config: Any
) -> Iterable[tuple[str, np.ndarray]]:
    """LFM2: a convolution's kernel has two axes."""
    yield name, weight[:, 0] if weight.ndim == 3 else weight


def _value_heads_in_tiles(
    name: str, weight: np.ndarray, config: Any
) -> Iterable[tuple[str, np.ndarray]]:
    """Qwen 3.5: norms plus one, decays negated, value heads of all key heads in turn."""
    keys, per_key = config.linear_num_key_heads, config.linear_num_value_heads
    per_key //= keys

    def tiled(part: np.ndarray, width: int) -> np.ndarray:
        heads = part.reshape(keys, per_key, width, *part.shape[1:])
        return heads.swapaxes(0, 1).reshape(part.shape)

    width, fixed = config.linear_value_head_dim, 2 * keys * config.linear_key_head_dim
    if "ssm_a." in name:
        yield name.removesuffix(".weight"), tiled(-np.exp(weight), 1)
    elif "ssm_dt." in name or "ssm_alpha" in name or "ssm_beta" in name:
        yield name, tiled(weight, 1)
    elif "attn_gate" in name:
        yield name, tiled(weight, width)
    elif "attn_qkv" in name or "ssm_conv1d" in name:
        weight = weight[:, 0] if weight.ndim == 3 else weight
        yield name, np.concatenate([weight[:fixed], tiled(weight[fixed:], width)])
    elif "ssm_out" in name:
        yield name, tiled(weight.T, width).T
    elif name.endswith("norm.weight") and "ssm_norm" not in name:
        yield name, weight + 1
    else:
        yield from _experts_apart(name, weight, config)


@dataclass(frozen=True)
class Family:
    """How llama.cpp writes the models of an architecture."""

    config: Callable[[], Any]
    keys: Callable[[Any], Values] = lambda config: {}
    """Beyond those of every model."""
    layout: Layout = _as_is
    architecture: str | None = None
    """In the file, where it is not the family's name."""
    eps: str = "attention.layer_norm_rms_epsilon"
    tensors: Mapping[str, Any] = field(default_factory=dict)
    """Beyond the weights."""
    pre: str = "smollm"


def _llama(**more: Any) -> Any:
    return transformers.LlamaConfig(**{**SIZES, **more})


def _rope(kind: str, **more: Any) -> Values:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **more}}


def llama3_factors(head_dim: int, **rope: float) -> np.ndarray:
    """By what Llama 3.1 divides each rotary frequency."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    length = 2 * np.pi * 10000.0 ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (rope["original_max_position_embeddings"] / length - low) / (high - low)
    return (1 / ((1 - smooth.clip(0, 1)) / factor + smooth.clip(0, 1))).astype(np.float32)


LLAMA3: dict[str, float] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def _head(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _long(config: Any) -> Values:
    return {
        "attention.sliding_window": 128,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.attn_factor": 1.1547,
    }


_HYBRID: Values = {
    **SIZES,
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}


def _hybrid(config: Any) -> Values:
    return {
        "attention.key_length": 16,
        "attention.value_length": 16,
        "full_attention_interval": 4,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": 8,
        "ssm.group_count": 2,
        "ssm.time_step_rank": 4,
        "ssm.inner_size": 32,
        "rope.dimension_sections": [2, 1, 1, 0],
        "rope.dimension_count": 8,
    }


_GEMMA: Values = {**SIZES, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16}

FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, layout=_pairs_together),
    "llama-biased": Family(
        lambda: _llama(attention_bias=True, mlp_bias=True), layout=_pairs_together
    ),
    "llama-narrow-heads": Family(
        lambda: _llama(head_dim=8),
        lambda c: {"attention.key_length": 8, "attention.value_length": 8},
        layout=_pairs_together,
    ),
    "llama-3.1": Family(
        lambda: _llama(**_rope("llama3", **LLAMA3)),
        layout=_pairs_together,
        tensors={"rope_freqs.weight": llama3_factors(16, **LLAMA3)},
    ),
    "llama-linear": Family(
        lambda: _llama(**_rope("linear", factor=4.0)),
        lambda c: {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        layout=_pairs_together,
    ),
    "llama-untied": Family(lambda: _llama(tie_word_embeddings=False), layout=_pairs_together),
    "mistral": Family(
        lambda: transformers.MistralConfig(**SIZES, head_dim=32, sliding_window=None),
        lambda c: {"attention.key_length": 32, "attention.value_length": 32},
        layout=_pairs_together,
        architecture="llama",
    ),
    "qwen2": Family(lambda: transformers.Qwen2Config(**SIZES)),
    "qwen2-yarn": Family(
        lambda: transformers.Qwen2Config(
            **SIZES, **_rope("yarn", factor=4.0, original_max_position_embeddings=64)
        ),
        lambda c: {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
        },
        architecture="qwen2",
    ),
    "qwen2moe": Family(
        lambda: transformers.Qwen2MoeConfig(
            **SIZES, **_EXPERTS, shared_expert_intermediate_size=48, decoder_sparse_step=1
        ),
        lambda c: {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
        layout=_experts_apart,
    ),
    "qwen3": Family(
        lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
        lambda c: {"attention.key_length": 8, "attention.value_length": 8},
    ),
    "qwen3moe": Family(
        lambda: transformers.Qwen3MoeConfig(**SIZES, **_EXPERTS, **_NARROW, norm_topk_prob=True),
        lambda c: {
            "attention.key_length": 8,
            "attention.value_length": 8,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
        },
        layout=_experts_apart,
    ),
    "phi3": Family(
        lambda: transformers.Phi3Config(**{**SIZES, "sliding_window": 128}),
        lambda c: {"attention.sliding_window": 128, "rope.scaling.original_context_length": 256},
    ),
    "phi3-long": Family(
        lambda: transformers.Phi3Config(
            **{**SIZES, "sliding_window": 128},
            **_rope("longrope", **LONG, original_max_position_embeddings=64),
            original_max_position_embeddings=64,
        ),
        _long,
        architecture="phi3",
        tensors={
            "rope_factors_long.weight": np.array(LONG["long_factor"], np.float32),
            "rope_factors_short.weight": np.array(LONG["short_factor"], np.float32),
        },
    ),
    "phi4-mini": Family(
        lambda: transformers.Phi3Config(
            **{**SIZES, "sliding_window": 128},
            **_rope("default", partial_rotary_factor=0.75),
        ),
        lambda c: {
            "attention.sliding_window": 128,
            "rope.scaling.original_context_length": 256,
            "rope.dimension_count": 12,
        },
        architecture="phi3",
    ),
    "stablelm": Family(
        lambda: transformers.StableLmConfig(
            **SIZES, use_qkv_bias=True, **_rope("default", partial_rotary_factor=0.5)
        ),
        lambda c: {"rope.dimension_count": 8, "use_parallel_residual": False},
        eps="attention.layer_norm_epsilon",
    ),
    "starcoder2": Family(
        lambda: transformers.Starcoder2Config(
            **SIZES, rope_parameters={"rope_type": "default", "rope_theta": 999999.0}
        ),
        lambda c: {"rope.freq_base": 999999.0},
        eps="attention.layer_norm_epsilon",
        pre="starcoder",
    ),
    "nemotron": Family(
        lambda: transformers.NemotronConfig(
            **SIZES, head_dim=16, **_rope("default", partial_rotary_factor=0.25)
        ),
        lambda c: {"rope.dimension_count": 4, "rope.scaling.type": "none"},
        layout=_norms_from_one,
        eps="attention.layer_norm_epsilon",
    ),
    "gemma2": Family(
        lambda: transformers.Gemma2Config(
            **_GEMMA, attn_logit_softcapping=20.0, final_logit_softcapping=10.0
        ),
        lambda c: {
            "attention.key_length": 16,
            "attention.value_length": 16,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 10.0,
            "attention.sliding_window": 32,
        },
        layout=_norms_from_one,
    ),
    "gemma3": Family(
        lambda: transformers.Gemma3TextConfig(
            **{**_GEMMA, "num_hidden_layers": 7},
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
        lambda c: {
            "attention.key_length": 16,
            "attention.value_length": 16,
            "attention.sliding_window": 32,
            "rope.freq_base": 1e6,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
        },
        layout=_norms_from_one,
    ),
    "lfm2": Family(
        lambda: transformers.Lfm2Config(
            **SIZES,
            block_auto_adjust_ff_dim=False,
            layer_types=["conv", "full_attention", "conv"],
        ),
        lambda c: {"attention.head_count_kv": [0, 2, 0], "shortconv.l_cache": 3},
        layout=_short_convolutions,
        pre="lfm2",
    ),
    "qwen35": Family(
        lambda: transformers.Qwen3_5TextConfig(**_HYBRID),
        _hybrid,
        layout=_value_heads_in_tiles,
        pre="qwen35",
    ),
    "qwen35moe": Family(
        lambda: transformers.Qwen3_5MoeTextConfig(
            **_HYBRID, **_EXPERTS, shared_expert_intermediate_size=48
        ),
        lambda c: {
            **_hybrid(c),
            "feed_forward_length": None,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 32,
            "expert_shared_feed_forward_length": 48,
        },
        layout=_value_heads_in_tiles,
        pre="qwen35",
    ),
    "gpt2": Family(
        lambda: transformers.GPT2Config(
            vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=256
        ),
        layout=_transposed,
        eps="attention.layer_norm_epsilon",
        pre="gpt-2",
    ),
    "bloom": Family(
        lambda: transformers.BloomConfig(vocab_size=300, hidden_size=64, n_layer=3, n_head=4),
        layout=_heads_apart,
        eps="attention.layer_norm_epsilon",
        pre="bloom",
    ),
    "falcon": Family(
        lambda: transformers.FalconConfig(
            vocab_size=300, hidden_size=64, num_hidden_layers=3, num_attention_heads=4
        ),
        eps="attention.layer_norm_epsilon",
        pre="falcon",
    ),
}


def make_model(family: str, seed: int = 0) -> Any:
    """A tiny model of a family whose every weight matters to its logits."""
    torch.manual_seed(seed)
    config = FAMILIES[family].config()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 256, 257, 257
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # Fresh norms and biases are ones and zeros: with those, many mistakes do not show.
            weight.add_(torch.randn_like(weight) * 0.3 if weight.dim() == 1 else weight * 3)
    return model


def write_gguf(
    model: Any,
    path: Path,
    family: str = "llama",
    *,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    packed: Mapping[str, tuple[np.ndarray, str]] | None = None,
    drop: Iterable[str] = (),
    template: str | None = CHAT_TEMPLATE,
    quantize: str | None = None,
    tokens: list[str] | None = None,
) -> Path:
    """Writes a model as a GGUF file.

    Args:
        model: A transformers model in float32.
        path: The file.
        family: One of `FAMILIES`.
        keys: Metadata beside the family's, in full or after `<architecture>.`; None drops a key.
        tensors: Tensors beside the model's.
        packed: Bytes of tensors and the name of their GGML type, in place of the model's.
        drop: Tensors that are left out.
        template: Chat template, None for none.
        quantize: Name of a GGML type for the matrices, F32 without one.
        tokens: The vocabulary; None takes that of `make_tokenizer`, padded.
    """
    kind, config = FAMILIES[family], model.config
    name = kind.architecture or family.partition("-")[0]
    writer = gguf.GGUFWriter(str(path), name)
    for key, value in _metadata(config, kind, name, template, tokens, dict(keys or {})).items():
        _add(writer, key, value)
    arch = next(a for a, written in gguf.MODEL_ARCH_NAMES.items() if written == name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    written = {}
    for own, value in model.state_dict().items():
        if own == "lm_head.weight" and tied:
            continue
        known = own.removeprefix("transformer.") if family == "bloom" else own
        known = known.replace(".dt_bias", ".dt_proj.bias")
        found = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if found is None:
            assert ".experts." in own, own
            found = f"blk.{own.split('.')[2]}.ffn_gate_up_exps"
        found += ".weight" if not found.endswith((".weight", ".bias")) else ""
        written |= dict(kind.layout(found, value.float().numpy(), config))
    for own, value in {**kind.tensors, **written, **(tensors or {})}.items():
        if own in drop or own in (packed or {}):
            continue
        value = np.ascontiguousarray(value)
        if quantize is not None and value.ndim > 1 and own.startswith("blk."):
            of_type = gguf.GGMLQuantizationType[quantize]
            writer.add_tensor(own, gguf.quants.quantize(value, of_type), raw_dtype=of_type)
        else:
            writer.add_tensor(own, value)
    for own, (data, of_type) in (packed or {}).items():
        writer.add_tensor(own, data, raw_dtype=gguf.GGMLQuantizationType[of_type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _metadata(
    config: Any,
    kind: Family,
    name: str,
    template: str | None,
    tokens: list[str] | None,
    more: Values,
) -> Values:
    base: Values = {
        "context_length": config.max_position_embeddings
        if hasattr(config, "max_position_embeddings")
        else 2048,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", 4 * config.hidden_size),
        "attention.head_count": config.num_attention_heads,
        kind.eps: next(getattr(config, key) for key in EPSILONS if hasattr(config, key)),
    }
    if hasattr(config, "num_key_value_heads"):
        base["attention.head_count_kv"] = config.num_key_value_heads
    if name == "falcon":
        base["attention.head_count_kv"] = 1
        base["tensor_data_layout"] = "jploski"
    if hasattr(config, "rope_parameters"):
        base["rope.freq_base"] = config.rope_parameters.get("rope_theta", 10000.0)
        base["rope.dimension_count"] = _head(config)
    tokens = tokens or vocabulary(config.vocab_size)
    types = [3 if re.fullmatch(r"<\|.*\|>", t) else 5 if "PAD" in t else 1 for t in tokens]
    values = {f"{name}.{key}": value for key, value in (base | kind.keys(config)).items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": kind.pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": ["ÿ ÿ"],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
    }
    if template is not None:
        values["tokenizer.chat_template"] = template
    known = ("general.", "tokenizer.", "split.", "quantize.", f"{name}.")
    more = {k if k.startswith(known) else f"{name}.{k}": v for k, v in more.items()}
    return {key: value for key, value in (values | more).items() if value is not None}


def vocabulary(size: int) -> list[str]:
    """The tokens of `make_tokenizer`, and unused ones up to a size."""
    own = make_tokenizer(chat=False)
    tokens = [str(own.convert_ids_to_tokens(i)) for i in range(len(own))]
    return tokens + [f"[PAD{i}]" for i in range(len(tokens), size - 1)] + ["ÿÿ"]


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
