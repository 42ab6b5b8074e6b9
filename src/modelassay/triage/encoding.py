"""Token ids of a training file's rows, as training reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.prompts import Encoded, render_messages
from modelassay.triage.rows import TrainingRow

MAX_ROW_TOKENS = 4096
"""Of a longer row, or one beyond the model's context, the rest is not read, as in most training."""


def encode_rows(
    model: LoadedModel, rows: Sequence[TrainingRow]
) -> tuple[list[tuple[Encoded, ...]], int]:
    """Token ids of every answer in every row, as training reads them.

    Each answer of a conversation is read after all that went before it. A model without a chat
    template reads the turns as plain text, parted by empty lines. Text without roles counts from
    its second token on.

    Args:
        model: Whose tokenizer and chat template are used.
        rows: Of a training file.

    Returns:
        For each row the answers that have tokens within what is read, and how many rows reach
        beyond it.

    Raises:
        InputError: the chat template fails, or token ids lie beyond the model's vocabulary.
    """
    found: list[tuple[Encoded, ...]] = []
    n_cut = 0
    most = min(model.context_length, MAX_ROW_TOKENS)
    for row in rows:
        whole = _encode_plain(model, row) if row.plain else _encode_turns(model, row)
        kept = [Encoded(e.ids[:most], e.response_start) for e in whole]
        n_cut += any(len(e.ids) > most for e in whole)
        found.append(tuple(e for e in kept if len(e.ids) > e.response_start >= 1))
    largest = max((max(e.ids) for each in found for e in each), default=0)
    size = model.network.get_input_embeddings().weight.shape[0]
    if largest >= size:
        raise InputError(
            f"The tokenizer of {model.info.id} makes token {largest} but the model knows {size};"
            " they do not belong together."
        )
    return found, n_cut


def _encode_plain(model: LoadedModel, row: TrainingRow) -> list[Encoded]:
    ids = model.tokenizer(row.plain)["input_ids"]
    return [Encoded((*ids, *_ending(model, row)), response_start=1)]


def _encode_turns(model: LoadedModel, row: TrainingRow) -> list[Encoded]:
    encoded = []
    for i, (role, answer) in enumerate(row.turns):
        if role != "assistant" or not answer.strip():
            continue
        before = row.turns[:i]
        if model.has_chat_template:
            try:
                context = render_messages(model, [{"role": r, "content": c} for r, c in before])
            except InputError as error:
                raise InputError(
                    f"The chat template of {model.info.id} cannot render row {row.number}; its"
                    f" turns are {', '.join(r for r, _ in row.turns)}."
                ) from error
        else:
            context = "".join(f"{content}\n\n" for _, content in before)
        chat = model.has_chat_template
        prompt = model.tokenizer(context, add_special_tokens=not chat)["input_ids"]
        ids = model.tokenizer(answer, add_special_tokens=False)["input_ids"]
        if ids:
            ids = (*prompt, *ids, *_ending(model, row))
            encoded.append(Encoded(ids, response_start=max(1, len(prompt))))
    return encoded


def _ending(model: LoadedModel, row: TrainingRow) -> tuple[int, ...]:
    """The token that ends an answer."""
    end = model.tokenizer.eos_token_id
    return (end,) if row.complete and end is not None else ()


def check_tokens(
    model: LoadedModel, rows: Sequence[TrainingRow], base_tokenizer: Any, base: str
) -> None:
    """Refuses a base that reads other tokens: losses per token could not be compared.

    Args:
        model: The candidate.
        rows: That both are to read.
        base_tokenizer: Of the base.
        base: What an error calls it.

    Raises:
        InputError: names the first row of which they make different tokens.
    """
    texts = [row.text for row in rows]
    if model.has_chat_template:
        texts.append(render_messages(model, [{"role": "user", "content": "Hello"}]))
    for number, text in enumerate(texts):
        own, other = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for tokenizer in (model.tokenizer, base_tokenizer)
        )
        if own != other:
            what = f"row {rows[number].number}" if number < len(rows) else "the chat template"
            raise InputError(
                f"{base} and {model.info.id} have different tokenizers: of {what} they make"
                f" {len(other)} and {len(own)} tokens, not all the same, so that losses per token"
                " cannot be compared."
            )
