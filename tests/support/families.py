"""A tiny model with random weights of every family that transformers knows.

Configurations are made of the defaults of the family's own classes, whose sizes are shrunk by the
name of the field. What a family needs beyond that is in `EXCEPTIONS`; a family that cannot be made
tiny is in `NOT_BUILT`, with the reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from tiny import VOCABULARY, make_tokenizer

TYPES: tuple[str, ...] = tuple(
    sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES})
)
"""Every model type with a class that continues text, or text and images."""

LAYERS, HIDDEN, CONTEXT = 4, 32, 512


def _named(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


# What a field is set to if its default is a larger number.
SMALL: dict[str, int] = {
    **_named(VOCABULARY, "vocab_size codebook_size audio_vocab_size vocab_size_per_layer_input"),
    **_named(
        VOCABULARY,
        "num_embeddings shape_vocab_size unpadded_vocab_size mel_vocab_size image_vocab_size",
    ),
    **_named(HIDDEN, "hidden_size d_model n_embd dim embed_dim embedding_size out_hidden_size"),
    **_named(HIDDEN, "projection_dim projector_hidden_size text_hidden_size encoder_hidden_size"),
    **_named(
        HIDDEN, "image_text_hidden_size vision_hidden_size vision_output_dim backbone_hidden_size"
    ),
    **_named(HIDDEN, "projector_input_dim projector_output_dim projection_hidden_size input_size"),
    **_named(
        HIDDEN, "projection_hidden_dim output_dim decoder_hidden_size patch_embed_hidden_size"
    ),
    **_named(
        HIDDEN, "mm_embed_dim audio_embed_dim output_proj_dims adapter_in_dim adapter_out_dim"
    ),
    **_named(HIDDEN, "image_token_embed_dim moe_hidden_size hidden_size_global lru_width"),
    **_named(HIDDEN, "output_channels base_channels latent_channels downsample_hidden_size"),
    **_named(HIDDEN, "ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels"),
    **_named(HIDDEN, "word_embed_proj_dim cross_attention_hidden_size adapter_input_size"),
    **_named(2, "depth encoder_layers num_encoder_layers resampler_depth num_global_layers"),
    **_named(2, "conf_num_hidden_layers aligner_num_add_layers merger_layers"),
    **_named(
        4, "num_attention_heads num_heads n_head n_heads attention_heads encoder_attention_heads"
    ),
    **_named(4, "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"),
    **_named(4, "swa_num_attention_heads index_n_heads resampler_n_heads resampler_heads"),
    **_named(4, "conf_num_attention_heads linear_num_value_heads linear_num_heads"),
    **_named(2, "num_key_value_heads kv_n_heads swa_num_key_value_heads linear_num_key_heads"),
    **_named(
        8, "head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim swa_head_dim index_head_dim"
    ),
    **_named(
        8, "linear_key_head_dim linear_value_head_dim linear_head_dim kv_channels d_kv dim_head"
    ),
    **_named(8, "resampler_head_dim resampler_dim_head rotary_dim swa_v_head_dim global_head_dim"),
    **_named(16, "q_lora_rank kv_lora_rank o_lora_rank laurel_rank hidden_size_per_layer_input"),
    **_named(64, "intermediate_size moe_intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim"),
    **_named(
        64, "shared_expert_intermediate_size shared_intermediate_size ffn_hidden_size d_ff dff"
    ),
    **_named(
        64, "dense_intermediate_size intermediate_size_mlp expert_ffn_hidden_size mlp_dim dim_ff"
    ),
    **_named(64, "shared_experts_intermediate_size moe_shared_expert_intermediate_size n_inner"),
    **_named(64, "alignment_intermediate_size projection_intermediate_size"),
    **_named(4, "num_experts n_routed_experts num_local_experts moe_num_experts zero_expert_num"),
    **_named(2, "num_experts_per_tok moe_topk moe_k moe_top_k top_k_experts"),
    **_named(1, "num_kv_shared_layers n_group topk_group n_groups mamba_n_groups"),
    **_named(CONTEXT, "max_position_embeddings n_positions max_seq_len n_ctx max_sequence_length"),
    **_named(16, "sliding_window sliding_window_size attention_window_size attention_chunk_size"),
    **_named(16, "keep_window_size local_attention local_attention_window_len index_topk"),
    **_named(28, "image_size"),
    **_named(14, "patch_size"),
    **_named(8, "mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size"),
    **_named(8, "mamba_n_heads mamba_num_heads mamba_head_dim mamba_d_head num_query_tokens"),
}

LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "layers",
    "decoder_layers",
    "num_blocks",
    "num_decoder_layers",
)
PER_LAYER = ("layer_types", "mlp_layer_types", "layers_block_type")
ENDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
TEXT_PARTS = ("text_config", "decoder", "decoder_config")

_HEAD = {"head_dim": 8}
_EQUAL_HEADS = {"num_key_value_heads": 4}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_MROPE = {"rope_parameters": {**_ROPE, "mrope_section": [2, 1, 1]}}
_MROPE3 = {"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}
_ROPE_BY_KIND = {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}}
_SAM = {"output_channels": 32, "downsample_channels": [32, 32]}
_DOTS_NOTE = {
    "num_key_value_heads": 4,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 8,
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 16,
    "ngram_vocab_size_base": 300,
    "split_ngram_parts": 1,
}

_MROPE_TEXT = {"text_config": {**_MROPE, **_HEAD}}


def _alike(model_types: str, fields: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(model_types.split(), fields)


EXCEPTIONS: dict[str, dict[str, Any]] = {
    **_alike("axk1 axk2 bailing_hybrid deepseek_v3 deepseek_v32 glm4_moe_lite", _EQUAL_HEADS),
    **_alike("glm_moe_dsa kimi_linear minicpm3 youtu", _EQUAL_HEADS),
    **_alike("kimi_k25 mistral_large4", {"text_config": _EQUAL_HEADS}),
    **_alike("glm46v glm4v paddleocr_vl qwen2_5_vl qwen2_vl", _MROPE_TEXT),
    **_alike("glm4v_moe glm_ocr glmga", {"text_config": {**_MROPE, "head_dim": 16}}),
    "mistral4": _EQUAL_HEADS,
    "qwen2_5_omni_thinker": {**_MROPE_TEXT, "vision_start_token_id": 270},
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 270},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "chameleon": {"vocabulary_map": {"<image>": 260}, "vq_config": {"base_channels": 32}},
    "cohere_compass": {"text_config": {**_ROPE_BY_KIND, "layer_types": ["full_attention"] * 4}},
    "cohere_compass_text": {**_ROPE_BY_KIND, "layer_types": ["full_attention"] * 4},
    "cosmos3_edge": {"text_config": {**_MROPE, **_HEAD}},
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": HIDDEN, "ffn_hidden_size": 64, "moe_top_k": 2},
    },
    "deepseek_ocr2": {
        "text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2}
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_vl_hybrid": {"high_res_vision_config": {"output_channels": 32}},
    "diffusion_gemma": {
        "text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    },
    "dots1": {
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
    },
    "dots3_note": {"text_config": _DOTS_NOTE},
    "dots3_note_text": _DOTS_NOTE,
    "emu3": {
        "vocabulary_map": {"<image>": 260},
        "vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]},
    },
    "ernie4_5_vl_moe": {"text_config": {**_MROPE3, "moe_intermediate_size": [16, 16]}},
    "florence2": {
        "vision_config": {
            "embed_dim": [16] * 4,
            "depths": [1] * 4,
            "num_heads": [4] * 4,
            "num_groups": [4] * 4,
        }
    },
    "gemma4": {
        "text_config": {"global_head_dim": 8},
        "vision_config": {"position_embedding_size": 64},
    },
    "gemma4_text": {"global_head_dim": 8},
    "glm5_next": {"text_config": _EQUAL_HEADS},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
        "qformer_config": {"cross_attention_frequency": 1},
        "deepstack_layer_map": [[0, 0]],
        "spatial_target_layers": [0, 1, 2, 3],
    },
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": _HEAD,
    "hunyuan_vl": {
        "text_config": {**_HEAD, "rope_parameters": {**_ROPE, "mrope_section": [1, 1, 1, 1]}}
    },
    "janus": {"vq_config": {"base_channels": 32, "channel_multiplier": [1, 1]}},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": _HEAD,
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "muse_spark": {"audio_config": {"hidden_sizes": [16] * 4, "depths": [1] * 4}},
    "nemotron": {**_HEAD, **_EQUAL_HEADS},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "roc_bert": {"shape_vocab_size": 300, "shape_embed_dim": 16, "pronunciation_embed_dim": 16},
    "step3p7": {"text_config": {"sliding_window": 16}},
    "unlimited_ocr": {"vision_config": {"sam_config": _SAM}},
    "xlm": {"emb_dim": HIDDEN},
    "xlnet": {"d_inner": 64},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
}
NOT_BUILT: dict[str, str] = {
    **dict.fromkeys(
        ("fast_vlm", "gemma3n", "perception_lm"),
        "its vision tower comes from the package timm, which is not installed",
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant"),
        "a draft head, which runs on the cache of the model that it drafts for",
    ),
    **dict.fromkeys(
        ("evolla", "moshi", "musicgen", "musicgen_melody"),
        "no class for text alone takes the family's config",
    ),
}


def tiny_config(model_type: str, *, layers: int = LAYERS, **settings: Any) -> Any:
    """A config of this family with few and small layers.

    Args:
        model_type: One of `TYPES`.
        layers: How many; kinds of layers alternate.
        **settings: Fields of the text part that differ from what is tiny by default.
    """
    config_class = CONFIG_MAPPING[model_type]
    fields = _shrunk(config_class(), layers, iter(range(258, VOCABULARY)))
    for change in (EXCEPTIONS.get(model_type, {}), settings):
        if change is settings and (text := next((n for n in TEXT_PARTS if n in fields), None)):
            change = {text: settings}
        _merge(fields, change)
    return config_class(**fields)


def tiny_model(model_type: str, *, seed: int = 0, **settings: Any) -> Any:
    """A model of this family with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = tiny_config(model_type, **settings)
    auto: Any = transformers.AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        auto = transformers.AutoModelForImageTextToText
    return auto.from_config(config).eval()


def save_family(folder: Path, model_type: str, *, chat: bool = True, **settings: Any) -> Path:
    """Saves `tiny_model` and a tokenizer that fits it."""
    tiny_model(model_type, **settings).save_pretrained(folder)
    make_tokenizer(chat).save_pretrained(folder)
    return folder


def _shrunk(defaults: Any, layers: int, free_ids: Iterator[int]) -> dict[str, Any]:
    """Fields of a config that are too large, and those of its parts."""
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(defaults):
        name, default = field.name, field.default
        if name in ENDS:
            if default is not None:
                fields[name] = 256 if name == "bos_token_id" else 257
        elif name in PER_LAYER:
            kinds = list(dict.fromkeys(getattr(defaults, name, None) or ()))
            if len(kinds) > 1:
                fields[name] = [kinds[i % len(kinds)] for i in range(layers)]
        elif isinstance(default, bool) or not isinstance(default, int):
            continue
        elif name in LAYER_COUNTS:
            fields[name] = layers
        elif name in SMALL:
            fields[name] = min(default, SMALL[name])
        elif name.endswith(("_token_id", "_token_index", "_id")) and default >= VOCABULARY:
            fields[name] = next(free_ids)
    for name, part_class in (defaults.sub_configs or {}).items():
        part = getattr(defaults, name, None)
        if part is None and part_class is not AutoConfig:
            part = part_class()
        if part is not None and part.model_type:
            fields[name] = {"model_type": part.model_type, **_shrunk(part, layers, free_ids)}
    return fields


def _merge(fields: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(fields.get(name), dict):
            _merge(fields[name], value)
        else:
            fields[name] = value
