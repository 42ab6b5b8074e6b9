"""Tiny models that say one thing, token by token, whatever they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

from modelassay.models import LoadedModel, load
from tiny import CHAT_TEMPLATE, make_tokenizer


def load_talking(
    folder: Path,
    says: Sequence[str],
    *,
    template: str = CHAT_TEMPLATE,
    special: Sequence[str] = (),
    after: str = "\n",
) -> LoadedModel:
    """Saves and loads a model that says these tokens, then the one that ends its turn.

    Its embeddings are unit vectors and its layers add next to nothing, so that the next token
    depends on the last one alone.

    Args:
        folder: Where it is saved.
        says: Tokens, each of which becomes one of its own; no two may be the same.
        template: Its chat template.
        special: Which of the tokens, or of the template's, are special.
        after: The token that ends a prompt.
    """
    tokenizer = make_tokenizer(chat=False)
    tokenizer.chat_template = template
    for token in dict.fromkeys([*special, *says]):
        known = len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
        if not known or token in special:
            added = AddedToken(token, special=token in special, normalized=False)
            tokenizer.add_tokens([added], special_tokens=token in special)
    ids = [
        tokenizer.convert_tokens_to_ids(tokenizer.tokenize(token)[0]) for token in (after, *says)
    ]
    size = len(tokenizer)
    width = -(-size // 64) * 64
    end = tokenizer.eos_token_id
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=width,
            intermediate_size=16,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(1e-3)
        model.model.embed_tokens.weight.copy_(torch.eye(size, width))
        head = torch.zeros(size, width)
        head[end, :size] = 5.0
        for last, following in zip(ids, [*ids[1:], end], strict=True):
            head[:, last] = 0.0
            head[following, last] = 10.0
        model.lm_head.weight.copy_(head)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load(str(folder), device="cpu")
