"""The configuration of a GGUF file's model: what transformers reads, and all else that it says.

Each key that is used is taken from the file; what is left over must be known to change no number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from modelassay.models.gguf import MOE, GgufFile

PARTIAL_ROTARY = ("nemotron", "phi3", "stablelm")
"""Architectures in which a part of a head may be rotated."""
TWO_ROTARIES = ("gemma3",)
"""Architectures whose sliding layers rotate by a base of their own."""
SLIDING = ("gemma2", "gemma3", "phi3")
WIDEST = {("gemma2", 46): True, ("gemma3", 62): True}
"""Gemma's largest models scale attention by the width of the stream over the number of heads."""
EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
BIASES = {
    "attention_bias": ("attn_q.bias", "attn_qkv.bias", "attn_output.bias"),
    "mlp_bias": ("ffn_up.bias", "ffn_down.bias"),
    "use_bias": ("attn_q.bias", "ffn_up.bias"),
    "bias": ("attn_qkv.bias", "ffn_up.bias"),
}
"""Settings that say whether there are biases, and tensors that do."""
IDLE: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        ("logit_scale", "residual_scale", "embedding_scale", "expert_weights_scale"), (0, 1)
    ),
    **dict.fromkeys(
        (
            *("expert_count", "expert_used_count", "expert_shared_count", "nextn_predict_layers"),
            *("leading_dense_block_count", "expert_group_count", "expert_group_used_count"),
            *("attention.clamp_kqv", "attention.max_alibi_bias", "router_logit_softcapping"),
            *("attention.shared_kv_layers", "embedding_length_per_layer_input"),
        ),
        (0,),
    ),
    "attention.causal": (True,),
}
"""Values with which a setting does nothing."""
NO_SETTINGS = ("vocab_size", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned")
"""Keys that change no number."""
NOT_OF_THE_TEXT = ("vision.", "mm.", "audio.")
HALF_PRECISION = 1e-3


def complete_config(file: GgufFile, config: Any) -> Any:
    """The configuration with all that a file says.

    Args:
        file: What the file says.
        config: What transformers made of it.

    Raises:
        InputError: names a key that would be ignored.
    """
    changes = _tokens(file)
    if file.architecture in ("lfm2", "qwen35", "qwen35moe"):
        _account_for_new_reader(file)
    else:
        changes |= _shape(file, config) | _caps(file, config) | _biases(file, config)
        width = changes.pop("_head_dim")
        changes |= _windows(file, config)
        if hasattr(config, "rope_parameters"):
            changes["rope_parameters"] = _rope(file, width, changes)
            if (length := changes["rope_parameters"].get("original_max_position_embeddings")) and (
                hasattr(config, "original_max_position_embeddings")
            ):
                changes["original_max_position_embeddings"] = length
    for key, value in file.left().items():
        if key in NO_SETTINGS or key.startswith(NOT_OF_THE_TEXT) or value in IDLE.get(key, ()):
            continue
        said = value if not isinstance(value, list) else "a list"
        raise file.refused(f"{file.architecture}.{key} is {said}, which transformers does not read")
    return type(config).from_dict({**config.to_dict(), **changes})


def _tokens(file: GgufFile) -> dict[str, Any]:
    """Ids that begin, end and pad, and whether input and output share their embeddings."""
    ids = {
        name: file.values.get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("eot", "eot"), ("eom", "eom"))
    }
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    ends = list(dict.fromkeys(ends))
    return {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": file.values.get("tokenizer.ggml.padding_token_id"),
        "vocab_size": file.shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in file.shapes,
    }


def _shape(file: GgufFile, config: Any) -> dict[str, Any]:
    """Widths, counts and the norms' epsilon; `_head_dim` is the width of a head."""
    hidden, heads = file.take("embedding_length"), file.take("attention.head_count")
    if not hidden or not heads:
        raise file.refused("it says no embedding_length or no attention.head_count")
    keys = file.take("attention.head_count_kv", heads)
    width = file.take("attention.key_length", hidden // heads)
    if (other := file.take("attention.value_length", width)) != width:
        raise file.refused(f"{file.architecture}.attention.value_length is {other}, not {width}")
    layers, inner = file.take("block_count"), file.take("feed_forward_length")
    found: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "_head_dim": width,
    }
    epsilon = file.take("attention.layer_norm_rms_epsilon")
    other = file.take("attention.layer_norm_epsilon")
    found |= {
        name: other if epsilon is None else epsilon
        for name in EPSILONS
        if hasattr(config, name) and (epsilon, other) != (None, None)
    }
    context = file.take("context_length")
    found |= {
        name: context
        for name in ("max_position_embeddings", "n_positions")
        if context and hasattr(config, name)
    }
    if file.architecture == "falcon":
        if keys != 1:
            raise file.refused(
                f"falcon.attention.head_count_kv is {keys}: Falcon's keys and values of several"
                " heads lie in another order than transformers takes them for"
            )
    elif hasattr(config, "num_key_value_heads"):
        found["num_key_value_heads"] = keys
    if "head_dim" in config.to_dict() or file.architecture == "nemotron":
        found["head_dim"] = width
    elif width != hidden // heads:
        raise file.refused(f"{file.architecture}.attention.key_length is {width}")
    for name in ("intermediate_size", "ffn_hidden_size", "n_inner"):
        if inner is not None and name in config.to_dict():
            found[name] = inner
    if file.architecture == "bloom" and inner not in (None, 4 * hidden):
        raise file.refused(f"bloom.feed_forward_length is {inner}, not {4 * hidden}")
    if file.architecture in MOE:
        found |= _experts(file)
    file.take("use_parallel_residual")  # as in llama.cpp, the norms that are there tell
    return found


def _experts(file: GgufFile) -> dict[str, Any]:
    """Of a mixture of experts that are chosen by a softmax."""
    gating = file.take("expert_gating_func", 1)
    if gating not in (0, 1):
        raise file.refused(f"{file.architecture}.expert_gating_func is {gating}, not softmax")
    width = file.take("expert_feed_forward_length")
    shared = file.take("expert_shared_feed_forward_length")
    shapes = file.shapes
    found = {
        "num_experts": file.take("expert_count"),
        "num_experts_per_tok": file.take("expert_used_count"),
        "moe_intermediate_size": width or shapes.get("blk.0.ffn_gate_exps.weight", (0, 0))[1],
    }
    if file.architecture == "qwen2moe":
        shared = shared or shapes.get("blk.0.ffn_gate_shexp.weight", (0,))[0]
        file.take("expert_shared_count")
        found["shared_expert_intermediate_size"] = shared
    if (normed := file.take("expert_weights_norm")) is not None:
        found["norm_topk_prob"] = normed
    return found


def _caps(file: GgufFile, config: Any) -> dict[str, Any]:
    """Soft caps, and what attention's scores are divided by."""
    found: dict[str, Any] = {}
    for name in CAPS:
        if hasattr(config, name):
            found[name] = file.take(name, getattr(config, name)) or None
    if hasattr(config, "query_pre_attn_scalar"):
        hidden, heads = file.take("embedding_length"), file.take("attention.head_count")
        width = file.take("attention.key_length", hidden // heads)
        widest = (file.architecture, file.take("block_count")) in WIDEST
        scale = file.take("attention.scale")
        scalar = hidden // heads if widest else width
        found["query_pre_attn_scalar"] = round(scale**-2) if scale else scalar
    elif (scale := file.take("attention.scale")) is not None:
        hidden, heads = file.take("embedding_length"), file.take("attention.head_count")
        usual = file.take("attention.key_length", hidden // heads) ** -0.5
        if scale and abs(scale / usual - 1) > HALF_PRECISION:
            raise file.refused(f"{file.architecture}.attention.scale is {scale:.4g}")
    return found


def _biases(file: GgufFile, config: Any) -> dict[str, Any]:
    """Which layers have biases, as the tensors show."""
    return {
        name: any(f"blk.0.{tensor}" in file.shapes for tensor in tensors)
        for name, tensors in BIASES.items()
        if hasattr(config, name)
    }


def _windows(file: GgufFile, config: Any) -> dict[str, Any]:
    """The window of sliding attention, and the layers that have it."""
    window = file.take("attention.sliding_window")
    context = file.take("context_length")
    if file.architecture not in SLIDING:
        if window and context and window < context:
            raise file.refused(
                f"{file.architecture}.attention.sliding_window is {window}, which"
                f" {type(config).__name__} does not read"
            )
        file.take("attention.sliding_window_pattern")
        return {}
    found: dict[str, Any] = {}
    if window is not None:
        found["sliding_window"] = window or None
    pattern = file.take("attention.sliding_window_pattern")
    if pattern is not None and file.architecture == "phi3":
        raise file.refused("phi3.attention.sliding_window_pattern is not read by transformers")
    if hasattr(config, "layer_types"):
        layers = file.take("block_count")
        every = {"gemma2": 2, "gemma3": 6}.get(file.architecture, 1) if pattern is None else pattern
        slides = every if isinstance(every, list) else [(i + 1) % every for i in range(layers)]
        found["layer_types"] = [
            "sliding_attention" if slide else "full_attention" for slide in slides
        ]
    return found


def _rope(file: GgufFile, width: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding, as transformers' `rope_parameters`."""
    arch = file.architecture
    theta = file.take("rope.freq_base") or file.take("rope.global.freq_base") or 10000.0
    turned = file.take("rope.dimension_count", width)
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": float(theta)}
    if arch in PARTIAL_ROTARY:
        found["partial_rotary_factor"] = turned / width
    elif turned != width:
        raise file.refused(f"{arch}.rope.dimension_count is {turned}, but a head has {width}")
    found |= _scaling(file, found, turned, changes.get("max_position_embeddings"))
    if arch not in TWO_ROTARIES:
        return found
    local = file.take("rope.freq_base_swa") or file.take("rope.local.freq_base") or 10000.0
    file.take("rope.local.freq_base")
    sliding = {"rope_type": "default", "rope_theta": float(local)}
    return {"full_attention": found, "sliding_attention": sliding}


def _scaling(
    file: GgufFile, rope: dict[str, Any], turned: int, context: int | None
) -> dict[str, Any]:
    """How positions beyond those that a model was trained on are rotated."""
    arch = file.architecture
    kind = file.take("rope.scaling.type")
    factor = file.take("rope.scaling.factor") or file.take("rope.scale_linear") or 0.0
    file.take("rope.scale_linear")
    original = file.take("rope.scaling.original_context_length")
    attention = file.take("rope.scaling.attn_factor")
    if kind is None:
        kind = "linear" if factor not in (0.0, 1.0) else "none"  # as llama.cpp takes it
    divided = file.vectors.get("rope_freqs.weight")
    if divided is not None and not np.allclose(divided, 1):
        if kind not in ("none", "llama3"):
            raise file.refused(f"it has both rope_freqs.weight and {arch}.rope.scaling.type {kind}")
        if len(divided) != turned // 2:
            raise file.refused(f"rope_freqs.weight has {len(divided)} values, not {turned // 2}")
        return _divided(divided, rope["rope_theta"], original, context or 1)
    long, short = (file.vectors.get(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is not None and short is not None:
        found: dict[str, Any] = {
            "rope_type": "longrope",
            "long_factor": [float(value) for value in long],
            "short_factor": [float(value) for value in short],
            "original_max_position_embeddings": int(original or context or 1),
        }
        return found | ({"attention_factor": float(attention)} if attention else {})
    if kind == "none" or (kind in ("linear", "longrope") and factor in (0.0, 1.0)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn" or not factor:
        raise file.refused(f"{arch}.rope.scaling.type is {kind!r}, which is not read")
    return _yarn(file, float(factor), original or context, attention)


def _yarn(file: GgufFile, factor: float, original: Any, attention: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(original),
    }
    for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
        if (value := file.take(f"rope.scaling.{key}")) is not None:
            found[name] = float(value)
    attention = file.take("rope.scaling.yarn_attn_factor") or attention or 1.0
    if attention != 1.0:  # on top of what follows from the factor
        found["attention_factor"] = attention * (0.1 * math.log(factor) + 1)
    for key in ("yarn_ext_factor", "yarn_log_multiplier"):
        if (value := file.take(f"rope.scaling.{key}")) not in (
            (None, 1.0, -1.0) if key == "yarn_ext_factor" else (None, 0.0)
        ):
            raise file.refused(f"{file.architecture}.rope.scaling.{key} is {value}")
    return found


def _divided(divided: np.ndarray, theta: float, original: Any, context: int) -> dict[str, Any]:
    """Frequencies that are divided one by one: Llama 3's rule, where it is what made them.

    Any other division is LongRoPE with the same factors for short and long texts.
    """
    lengths = 2 * np.pi * theta ** (np.arange(len(divided)) / len(divided))
    factor = float(divided.max())
    for old in [original] if original else [2**power for power in range(13, 5, -1)]:
        share = ((old / lengths - 1) / 3).clip(0, 1)
        if np.allclose(1 / ((1 - share) / factor + share), divided, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": int(old),
            }
    values = [float(value) for value in divided]
    return {
        "rope_type": "longrope",
        "long_factor": values,
        "short_factor": values,
        "original_max_position_embeddings": int(context),
        "attention_factor": 1.0,
    }


NEW_READER_KEYS = (
    *("context_length", "embedding_length", "feed_forward_length", "block_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.layer_norm_rms_epsilon", "full_attention_interval", "nextn_predict_layers"),
    *("ssm.conv_kernel", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank"),
    *("ssm.inner_size", "rope.freq_base", "rope.dimension_sections", "rope.dimension_count"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length"),
    *("expert_shared_feed_forward_length", "shortconv.l_cache"),
)
"""What transformers reads of the architectures of its newer reader."""


def _account_for_new_reader(file: GgufFile) -> None:
    for key in NEW_READER_KEYS:
        file.take(key)
    width = file.take("attention.key_length")
    if (other := file.take("attention.value_length", width)) != width:
        raise file.refused(f"{file.architecture}.attention.value_length is {other}, not {width}")
    if file.take("rope.scaling.type", "none") != "none" or file.vectors:
        raise file.refused(f"{file.architecture}.rope.scaling is not read by transformers")
