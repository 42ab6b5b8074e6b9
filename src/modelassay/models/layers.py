"""Which architectures can be read, and where their decoder layers are.

A model can be read if it is a stack of transformer layers whose outputs form one residual stream,
ending in a language-model head. State-space and recurrent models have no such layers to compare
with the literature's, encoders have no next token: both are refused by name.
All names are those of the model families of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from modelassay.errors import InputError

# The names under which the model families of transformers keep their list of layers.
LAYER_LIST_NAMES = ("layers", "h", "blocks")
RECURRENT_TYPES = ("mamba", "rwkv", "xlstm", "retnet")
GENERATIVE_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
OTHER_TOWERS = re.compile(r"vision|visual|audio|image|encoder\.layers|mm_|projector")


def check_architecture(config: Any) -> None:
    """Refuses, before any weight is loaded, a config whose model cannot be read.

    Args:
        config: A transformers `PretrainedConfig`.

    Raises:
        InputError: names the architecture and why it is refused.
    """
    names = getattr(config, "architectures", None) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"The config's `architectures` must be a list of names, not {names!r}.")
    name = names[0] if names else f"model type {config.model_type!r}"
    if any(kind in config.model_type for kind in RECURRENT_TYPES):
        raise InputError(
            f"{name} is a state-space or recurrent model; modelassay reads the residual stream of"
            " transformer decoder layers. Choose a transformer model."
        )
    # Half of such a model states false for itself, and its class true.
    if any(getattr(owner, "is_encoder_decoder", False) for owner in (config, type(config))):
        raise InputError(
            f"{name} is an encoder-decoder model; modelassay reads decoder-only language models."
        )
    generative = not names or any(name.endswith(GENERATIVE_SUFFIXES) for name in names)
    if not generative or _is_encoder(config):
        raise InputError(
            f"{name} does not generate text (an encoder or a classifier); modelassay reads"
            " decoder-only language models."
        )


def _is_encoder(config: Any) -> bool:
    """Whether tokens of this model see what follows them, whatever head the config names."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)


def find_layers(model: nn.Module) -> tuple[nn.Module, ...]:
    """Finds the decoder layers of a causal or image-text language model, first to last.

    Works through PEFT wrappers and into the language tower of multimodal models.

    Raises:
        InputError: the model's class keeps no list of layers that this function knows.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # PEFT
        inner = inner.get_base_model()
    decoder = inner.get_decoder()
    for holder in (decoder, getattr(decoder, "model", None), getattr(inner, "base_model", None)):
        for name in LAYER_LIST_NAMES:
            layers = getattr(holder, name, None)
            if isinstance(layers, nn.ModuleList) and len(layers) > 0:
                return tuple(layers)
    raise InputError(
        f"Cannot find the decoder layers of {type(inner).__name__}; modelassay reads models that"
        f" keep them in a list named {', '.join(LAYER_LIST_NAMES)}."
    )


def text_config(config: Any) -> Any:
    """The part of a config that describes the language tower."""
    return config.get_text_config(decoder=True)


def rope_switch(config: Any) -> int | None:
    """Tokens above which a model turns all positions of a pass by other angles (LongRoPE)."""
    text = text_config(config)
    stated = getattr(text, "rope_parameters", None) or {}
    for params in (stated, *(part for part in stated.values() if isinstance(part, dict))):
        if params.get("rope_type") == "longrope":
            own = getattr(text, "original_max_position_embeddings", None)
            return params.get("original_max_position_embeddings", own)
    return None


def spread_layers(n: int, count: int) -> tuple[int, ...]:
    """So many layers, evenly spread over the depth of a model with `n`; the last is one of them."""
    return tuple(sorted({max(round(n * (i + 1) / count) - 1, 0) for i in range(count)}))


def resolve_layers(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """The layers that are meant, counted from 0; negative ones are counted from the end.

    Args:
        layers: At least one, in -n_layers … n_layers - 1: -1 is the last.
        n_layers: How many there are.

    Raises:
        InputError: none is given, one is not there, or one is meant twice.
    """
    if not layers:
        raise InputError("Give at least one layer.")
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            raise InputError(
                f"There is no layer {layer}: layers must lie in 0…{n_layers - 1}, or in"
                f" -{n_layers}…-1 when counted from the end."
            )
    found = tuple(layer % n_layers for layer in layers)
    if len(set(found)) != len(found):
        raise InputError(f"A layer is named twice in {', '.join(map(str, layers))}.")
    return found
