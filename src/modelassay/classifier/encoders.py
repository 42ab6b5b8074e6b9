"""Opens an encoder by name, to be fine-tuned: a folder or a Hub id of any architecture.

Whether it can be is found out on the CPU before anything is trained: it must read both ways, its
weights must all be there, and it must take rows as long as they may get. Position limits are not
what configs say (RoBERTa counts from two), so a row of that length is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from modelassay.classifier.encoding import special_ids
from modelassay.classifier.model import pad_id
from modelassay.errors import InputError
from modelassay.hub import check_weight_files, fetch_model
from modelassay.models.explain import explain_loading

EXAMPLES = "such as ModernBERT, BERT, RoBERTa or DeBERTa"


def open_encoder(
    name: str, classes: Sequence[str], max_length: int, token: str | None = None
) -> tuple[Any, Any, Path]:
    """An encoder with a fresh head for some classes, in fp32, its tokenizer and its folder.

    Args:
        name: A folder or a Hub id.
        classes: What the head is to tell apart.
        max_length: Most tokens of a row.
        token: Hub token.

    Raises:
        InputError: there is none, it is no encoder, it is damaged, or it reads shorter rows only.
        UnavailableError: the Hub cannot be reached, or it does not fit into memory.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(name).expanduser()
    if folder.is_dir():
        check_weight_files(name, [file.name for file in folder.iterdir()])
    else:
        folder = fetch_model(name, revision=None, token=token, gguf_file=None, code=False).folder
    with explain_loading(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _check_kind(name, config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        special_ids(tokenizer)
        network, loaded = AutoModelForSequenceClassification.from_pretrained(
            folder,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={label: i for i, label in enumerate(classes)},
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # a head of other classes; see below
            output_loading_info=True,
        )
    _check_weights(name, network, loaded)
    _check_length(name, network, tokenizer, max_length)
    return network, tokenizer, folder


def _check_kind(name: str, config: Any) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    )

    kind = str(config.model_type)
    both_ways = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not both_ways or getattr(config, "is_decoder", False):
        raise InputError(
            f"{name} is a model of the kind {kind[:40]!r}, and a classifier is trained over an"
            f" encoder, which reads a text both ways; choose one {EXAMPLES}."
        )
    if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise InputError(
            f"transformers has no classifier over encoders of the kind {kind[:40]!r}; choose one"
            f" {EXAMPLES}."
        )


def _check_weights(name: str, network: Any, loaded: dict[str, Any]) -> None:
    """Refuses an encoder that would be trained from random weights; its head may be fresh."""
    inside = f"{network.base_model_prefix}."
    fresh = {str(key) for key in loaded.get("missing_keys", ())}
    fresh |= {str(key[0]) for key in loaded.get("mismatched_keys", ())}
    lost = [key for key in fresh if key.startswith(inside) and ".pooler." not in key]
    if lost:
        raise InputError(
            f"{name} lacks weights of its encoder, or has them in another shape than its config"
            f" says ({min(lost)[:80]}); download it again."
        )


def _check_length(name: str, network: Any, tokenizer: Any, max_length: int) -> None:
    limit = getattr(network.config, "max_position_embeddings", None)
    size = network.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise InputError(
            f"{name} has a tokenizer with {len(tokenizer)} tokens and weights for {size}; they do"
            " not belong together."
        )
    advice = "choose a smaller --max-length."
    if isinstance(limit, int) and 0 < limit < max_length:
        raise InputError(f"{name} reads {limit} tokens at most; {advice}")
    word = next(each for each in range(size) if each != pad_id(tokenizer))  # padding has no place
    row = torch.full((1, max_length), word)
    network.eval()
    try:
        with torch.inference_mode():
            network(input_ids=row, attention_mask=torch.ones_like(row))
    except (IndexError, RuntimeError, ValueError) as error:
        raise InputError(f"{name} cannot read {max_length} tokens; {advice}") from error
    finally:
        network.train()
