"""Tiny models of many families, built from configs, and what belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.data.labelled import At
from modelassay.models import LoadedModel
from modelassay.probes import Head, Probe, ProbeRecord

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant that answers in a few words<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


VOCABULARY = 300


_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


_LESS = {k: v for k, v in _SIZES.items() if k != "num_key_value_heads"}


_GEMMA = {**_SIZES, "head_dim": 8, "sliding_window": 64, "query_pre_attn_scalar": 8}


_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


FAMILIES: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**_SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, sliding_window=64),
    "mixtral": lambda: transformers.MixtralConfig(
        **_SIZES, num_local_experts=4, num_experts_per_tok=2
    ),
    "gemma2": lambda: transformers.Gemma2Config(**_GEMMA),
    "gemma3_text": lambda: transformers.Gemma3TextConfig(**_GEMMA),
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=_GEMMA, vision_config=_VISION, mm_tokens_per_image=4
    ),
    "phi3": lambda: transformers.Phi3Config(**_SIZES, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=5, n_head=4, n_positions=256
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_LESS),
    "opt": lambda: transformers.OPTConfig(
        **{k: v for k, v in _LESS.items() if k != "intermediate_size"},
        ffn_dim=64,
        word_embed_proj_dim=32,
    ),
    "falcon": lambda: transformers.FalconConfig(**_LESS, new_decoder_architecture=True),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=5, n_head=4
    ),
}


def make_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every text has tokens, none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny(
    folder: Path, family: str = "llama", *, chat: bool = True, seed: int = 0, **settings: int
) -> Path:
    """Saves a tiny model with random weights and its tokenizer."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    config.update(settings)
    for part in (config, config.get_text_config()):
        part.eos_token_id = 257
        part.bos_token_id = 256
        part.pad_token_id = 257
    if family == "gemma3":
        model = transformers.Gemma3ForConditionalGeneration(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    make_tokenizer(chat).save_pretrained(folder)
    return folder


def probe_for(
    model: LoadedModel, *, pause: float = 0.5, block: float = 0.9, name: str = "a-probe"
) -> Probe:
    """A probe of random directions that belongs to a model, thresholds as given."""
    generator = torch.Generator().manual_seed(0)
    info = model.info
    heads: dict[At, Head] = {}
    for at in ("prompt", "answer"):
        weight = torch.randn((2, 2, info.hidden_size), generator=generator) / info.hidden_size
        heads[at] = Head(at, "logistic", (1, 3), ("last", "mean"), weight, 0.0, pause, block)
    half = (0.5, 0.5)
    metrics = {
        "auroc": 0.5,
        "interval": half,
        "tpr_at_fpr": {"0.01": None},
        "tpr_interval": {"0.01": None},
        "calibration_error": 0.0,
        "n": 4,
        "n_positive": 2,
        "n_prompts": 4,
    }
    record = ProbeRecord.model_validate(
        {
            "name": name,
            "created": "2026-11-24",
            "model": {
                "id": info.id,
                "architecture": info.architecture,
                "n_layers": info.n_layers,
                "hidden_size": info.hidden_size,
                "weights_sha256": info.weights_sha256,
                "organism": info.organism,
                "dtype": info.dtype,
            },
            "heads": {
                at: {
                    "kind": "logistic",
                    "layers": head.layers,
                    "poolings": head.poolings,
                    "bias": head.bias,
                    "pause": pause,
                    "block": block,
                    "block_rate": 0.0,
                    "block_interval": half,
                    "pause_rate": 0.0,
                    "detected_rate": 0.5,
                    "detected_interval": half,
                    "held_rate": 0.5,
                    "metrics": metrics,
                    "trained_on": {
                        "sha256": "0" * 64,
                        "sources": {"a test": 4},
                        "n_unsafe": 2,
                        "n_safe": 2,
                    },
                }
                for at, head in heads.items()
            },
            "versions": {},
            "weights_sha256": "0" * 64,
        }
    )
    return Probe(record, heads)


OFFLOADED = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.norm": "cpu",
    "lm_head": "cpu",
    "model.layers.0": "cpu",
    **{f"model.layers.{i}": "disk" for i in range(1, 5)},
}


def unit(hidden: int, seed: int = 0) -> torch.Tensor:
    r = torch.randn(hidden, generator=torch.Generator().manual_seed(seed))
    return r / r.norm()
