"""From text to the token ids that a model reads.

A prompt goes through the model's chat template when it has one, with the marker that the
assistant's response comes next, because that is where a chat model decides what to do. The
templated text already holds the special tokens, so none are added a second time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelassay.errors import InputError, first_line
from modelassay.models import LoadedModel


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, or of a prompt with its response."""

    ids: tuple[int, ...]
    response_start: int
    """Index of the first response token; `len(ids)` for a prompt alone."""


def encode_prompts(
    model: LoadedModel, texts: Sequence[str], *, chat_template: bool = True
) -> list[Encoded]:
    """Token ids of user prompts, one `Encoded` per text, in the same order.

    Args:
        model: Whose tokenizer and chat template are used.
        texts: What the user says.
        chat_template: Render as a one-turn conversation if the model has a template; False reads
            the raw text.

    Raises:
        InputError: a text is empty or longer than the context, or the template fails.
    """
    return [
        Encoded(ids, response_start=len(ids)) for ids in _prompt_ids(model, texts, chat_template)
    ]


def encode_exchanges(
    model: LoadedModel, exchanges: Sequence[tuple[str, str]], *, chat_template: bool = True
) -> list[Encoded]:
    """Token ids of (prompt, response) pairs, with the response's first token marked.

    Raises:
        InputError: as `encode_prompts`, or a response is empty.
    """
    prompts = _prompt_ids(model, [prompt for prompt, _ in exchanges], chat_template)
    encoded = []
    for prompt_ids, (_, response) in zip(prompts, exchanges, strict=True):
        response_ids = model.tokenizer(response, add_special_tokens=False)["input_ids"]
        if not response_ids:
            raise InputError("A response to read is empty.")
        ids = (*prompt_ids, *response_ids)
        check_length(model, response, len(ids))
        encoded.append(Encoded(ids, response_start=len(prompt_ids)))
    return encoded


def _prompt_ids(
    model: LoadedModel, texts: Sequence[str], chat_template: bool
) -> list[tuple[int, ...]]:
    chat = chat_template and model.has_chat_template
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"A prompt must be text that is not empty, got {text!r}.")
    if not texts:
        return []
    rendered = [render_chat(model, text) for text in texts] if chat else list(texts)
    ids = model.tokenizer(rendered, add_special_tokens=not chat)["input_ids"]
    _check_vocabulary(model, ids)
    for text, row in zip(texts, ids, strict=True):
        if not row:
            raise InputError(f"The tokenizer makes no token of the prompt {text!r}.")
        check_length(model, text, len(row))
    return [tuple(row) for row in ids]


def render_chat(model: LoadedModel, text: str, *, system: str | None = None) -> str:
    """The text of a one-turn conversation up to where the assistant's response begins."""
    opening = [{"role": "system", "content": system}] if system else []
    return render_messages(model, [*opening, {"role": "user", "content": text}])


def encode_chat(
    model: LoadedModel, messages: Sequence[Mapping[str, str]], *, max_tokens: int | None = None
) -> tuple[int, ...]:
    """Token ids of a conversation up to where the assistant's next response begins.

    What people say cannot end their turn or begin another: control tokens written out in a message
    are taken apart (`<|im_end|>` is read as `< |im_end|>`).

    Args:
        model: Whose tokenizer and chat template are used; without a template the messages are read
            as plain text, one after the other.
        messages: Turns `{"role", "content"}`.
        max_tokens: Cut longer ones in the middle; None refuses what the model cannot take.

    Raises:
        InputError: there is nothing to read, it is too long, or the template fails.
    """
    turns = [
        {**turn, "content": _without_control_tokens(model, turn["content"])} for turn in messages
    ]
    if not turns or not turns[-1]["content"].strip():
        raise InputError("There is nothing to answer: the last message is empty.")
    chat = model.has_chat_template
    text = render_messages(model, turns) if chat else "\n\n".join(turn["content"] for turn in turns)
    ids = model.tokenizer(text, add_special_tokens=not chat)["input_ids"]
    _check_vocabulary(model, [ids])
    if not ids:
        raise InputError("The tokenizer makes no token of the last message.")
    if max_tokens is not None and len(ids) > max_tokens:
        ids = [*ids[: max_tokens // 2], *ids[len(ids) - (max_tokens - max_tokens // 2) :]]
    check_length(model, turns[-1]["content"], len(ids))
    return tuple(ids)


def last_message_start(
    model: LoadedModel, messages: Sequence[Mapping[str, str]], ids: Sequence[int]
) -> int:
    """Index of the first token of the last message in `encode_chat`'s ids."""
    # Other words in its place change nothing before it; two, because one could begin as it does.
    lengths = []
    for words in ("Q", "a"):
        other = encode_chat(model, [*messages[:-1], {**messages[-1], "content": words}])
        same = (i for i, (x, y) in enumerate(zip(ids, other, strict=False)) if x != y)
        lengths.append(next(same, min(len(ids), len(other)) - 1))
    return min(*lengths, len(ids) - 1)


def encode_response(model: LoadedModel, text: str) -> list[int]:
    """Token ids of a response; control tokens written in it are taken apart, as in a message."""
    return model.tokenizer(_without_control_tokens(model, text), add_special_tokens=False)[
        "input_ids"
    ]


def _without_control_tokens(model: LoadedModel, text: str) -> str:
    added = model.tokenizer.added_tokens_decoder.values()
    tokens = {str(token) for token in added if token.special} | set(
        model.tokenizer.all_special_tokens
    )
    for token in sorted(tokens, key=len, reverse=True):
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def render_messages(model: LoadedModel, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a conversation up to where the assistant's next response begins.

    Raises:
        InputError: the model's template fails.
    """
    try:
        return model.tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=True,
            # Reasoning models (Qwen 3 and others) answer at once; other templates ignore this.
            enable_thinking=False,
        )
    except Exception as error:  # a template is a program of the model's author: anything can fail
        raise InputError(
            f"The chat template of {model.info.id} fails ({first_line(error)}); a scan can read"
            " raw prompts with --no-chat-template."
        ) from error


def _check_vocabulary(model: LoadedModel, rows: Sequence[Sequence[int]]) -> None:
    """Refuses a tokenizer that makes tokens the model has no embedding for."""
    size = model.network.get_input_embeddings().weight.shape[0]
    largest = max((max(row) for row in rows if row), default=0)
    if largest >= size:
        raise InputError(
            f"The tokenizer of {model.info.id} makes token {largest} but the model knows {size};"
            " they do not belong together."
        )


def check_length(model: LoadedModel, text: str, n_tokens: int) -> None:
    """Refuses a text that with its template, and its response if it has one, fills the context.

    Raises:
        InputError: says how long it is.
    """
    if n_tokens > model.context_length:
        start = " ".join(text[:60].split())
        raise InputError(
            f"A prompt has {n_tokens} tokens but {model.info.id} takes {model.context_length};"
            f" shorten it (it begins “{start}…”)."
        )
