"""A prompt and its response as one row of tokens for an encoder.

Of a long exchange the start of the prompt is kept (what is asked for) and the end of the response
(what has just been said): a guarded chat asks about the newest words. When both are long, the
response has two thirds of the room.

Classifiers of open-constitution read one text instead, with `User:` and `Assistant:` before the two
parts. One that fits is tokenised whole, as it was there; of a longer one the same parts are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modelassay.errors import InputError

RESPONSE_SHARE = 2 / 3
N_SPECIAL = 3
MIN_LENGTH = 16
USER, ASSISTANT = "User:\n", "\n\nAssistant:\n"
"""What stands before prompt and response in one text."""
LONGEST_TOKEN = 40
"""Characters per token from which the rest of a text cannot matter: it is not even tokenised."""


@dataclass(frozen=True)
class EncodedExchange:
    """Token ids of one exchange: opening token, prompt, separator, response, separator."""

    ids: tuple[int, ...]
    response_start: int
    """Index of the response's first token; it and its separator are the second segment."""
    cut: bool
    """Whether a part of the response is left out."""


def room(n_prompt: int, n_response: int, max_length: int) -> tuple[int, int]:
    """How many tokens of the prompt and of the response are kept."""
    free = max_length - N_SPECIAL
    least = -int(-free * RESPONSE_SHARE // 1)  # rounded up
    kept = min(n_response, max(free - n_prompt, least))
    return min(n_prompt, free - kept), kept


def encode_pairs(
    tokenizer: Any,
    exchanges: Sequence[tuple[str, str]],
    max_length: int,
    *,
    newest: bool = True,
    text_format: str = "pair",
) -> list[EncodedExchange]:
    """Tokenises (prompt, response) pairs; either text may be empty.

    Args:
        tokenizer: Of the encoder.
        exchanges: Pairs of texts.
        max_length: Most tokens of a row, special ones included.
        newest: Keep the end of a response that is too long; False keeps its beginning.
        text_format: `pair`, or `user_assistant` for one text without a second segment.

    Raises:
        InputError: the tokenizer has no tokens that open and separate.
    """
    opening, separator = special_ids(tokenizer)
    if not exchanges:
        return []
    characters = max_length * LONGEST_TOKEN
    kept = slice(-characters, None) if newest else slice(characters)
    if text_format == "user_assistant":
        return [
            _one_text(tokenizer, prompt[:characters], response[kept], max_length, newest)
            for prompt, response in exchanges
        ]
    prompts = _ids(tokenizer, [prompt[:characters] for prompt, _ in exchanges])
    responses = _ids(tokenizer, [response[kept] for _, response in exchanges])
    encoded = []
    for prompt, response in zip(prompts, responses, strict=True):
        n_prompt, n_response = room(len(prompt), len(response), max_length)
        head = [opening, *prompt[:n_prompt], separator]
        start = len(response) - n_response if newest else 0
        tail = [*response[start : start + n_response], separator]
        cut = n_response < len(response)
        encoded.append(EncodedExchange((*head, *tail), len(head), cut))
    return encoded


def _one_text(
    tokenizer: Any, prompt: str, response: str, max_length: int, newest: bool
) -> EncodedExchange:
    """An exchange as one segment: `User:`, the prompt, `Assistant:`, the response."""
    opening, separator = special_ids(tokenizer)
    (whole,) = _ids(tokenizer, [f"{USER}{prompt}{ASSISTANT}{response}"])
    cut = len(whole) + 2 > max_length
    if cut:
        user, asked, assistant, said = _ids(tokenizer, [USER, prompt, ASSISTANT, response])
        marks = len(user) + len(assistant)
        n_prompt, n_response = room(len(asked), len(said), max_length - marks + N_SPECIAL - 2)
        start = len(said) - n_response if newest else 0
        cut = n_response < len(said)
        whole = [*user, *asked[:n_prompt], *assistant, *said[start : start + n_response]]
    ids = (opening, *whole, separator)
    return EncodedExchange(ids, len(ids), cut)


def special_ids(tokenizer: Any) -> tuple[int, int]:
    """Ids of the tokens that open a row and that separate its parts."""
    opening = (
        tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    )
    separator = (
        tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    )
    if opening is None or separator is None:
        raise InputError(
            "The encoder's tokenizer has no [CLS] and [SEP] tokens; choose an encoder such as"
            " ModernBERT, BERT or DeBERTa."
        )
    return int(opening), int(separator)


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    # A tokenizer file may ask for truncation and padding of its own.
    return tokenizer(
        list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False
    )["input_ids"]


def collate(rows: Sequence[EncodedExchange], pad: int, *, types: bool) -> dict[str, torch.Tensor]:
    """Pads rows on the right to the longest.

    Args:
        rows: Encoded exchanges.
        pad: Id of the padding token.
        types: Whether the encoder tells segments apart by `token_type_ids`.

    Returns:
        `input_ids`, `attention_mask` and perhaps `token_type_ids`, int64 [row, token].
    """
    tokens = [torch.tensor(row.ids) for row in rows]
    ids = pad_sequence(tokens, batch_first=True, padding_value=pad)
    steps = torch.arange(ids.shape[1])
    mask = (steps < torch.tensor([[len(row.ids)] for row in rows])).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if types:
        starts = torch.tensor([[row.response_start] for row in rows])
        batch["token_type_ids"] = mask * (steps >= starts)
    return batch
