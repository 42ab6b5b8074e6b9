"""From text to the token ids that a model reads.

A prompt goes through the model's chat template when it has one, with the marker that the
assistant's response comes next, because that is where a chat model decides what to do. The
templated text already holds the special tokens, so none are added a second time. What was said is
checked to be in what is read: in the text that the template makes of it, and in the tokens, which
differ where the words do.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from modelassay.errors import InputError, first_line
from modelassay.models import LoadedModel
from modelassay.reading.templates import Thinking, lost_text, template_fails, template_of
from modelassay.reading.tokens import control_tokens, tokenize


class TooLongError(InputError):
    """A text is longer than the model reads."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of one prompt, or of a prompt with its response."""

    ids: tuple[int, ...]
    response_start: int
    """Index of the first response token; `len(ids)` for a prompt alone."""


def encode_prompts(
    model: LoadedModel,
    texts: Sequence[str],
    *,
    chat_template: bool = True,
    thinking: Thinking | None = None,
) -> list[Encoded]:
    """Token ids of user prompts, one `Encoded` per text, in the same order.

    Args:
        model: Whose tokenizer and chat template are used.
        texts: What the user says.
        chat_template: Render as a one-turn conversation if the model has a template; False reads
            the raw text.
        thinking: From `modelassay.reading.thinking`, so that the model answers at once; None asks
            as the template does by itself.

    Raises:
        InputError: a text is empty or longer than the context, the template fails or loses words,
            or two texts become the same tokens.
    """
    rows = _prompt_ids(model, texts, chat_template, thinking)
    return [Encoded(ids, response_start=len(ids)) for ids in rows]


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
    model: LoadedModel,
    texts: Sequence[str],
    chat_template: bool,
    thinking: Thinking | None = None,
) -> list[tuple[int, ...]]:
    chat = chat_template and model.has_chat_template
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"A prompt must be text that is not empty, got {text!r}.")
    if not texts:
        return []
    rendered = list(texts)
    if chat:
        rendered = [render_chat(model, apart(model, text), thinking=thinking) for text in texts]
    ids = tokenize(model, rendered, special=not chat)
    _check_vocabulary(model, ids)
    check_distinct(model, texts, ids)
    for text, row in zip(texts, ids, strict=True):
        if not row:
            raise InputError(f"The tokenizer makes no token of the prompt {text!r}.")
        check_length(model, text, len(row))
    return [tuple(row) for row in ids]


def render_chat(
    model: LoadedModel, text: str, *, system: str | None = None, thinking: Thinking | None = None
) -> str:
    """The text of a one-turn conversation up to where the assistant's response begins."""
    opening = [{"role": "system", "content": system}] if system else []
    return render_messages(model, [*opening, {"role": "user", "content": text}], thinking=thinking)


def encode_chat(
    model: LoadedModel,
    messages: Sequence[Mapping[str, str]],
    *,
    max_tokens: int | None = None,
    thinking: Thinking | None = None,
) -> tuple[int, ...]:
    """Token ids of a conversation up to where the assistant's next response begins.

    What people say cannot end their turn or begin another: control tokens written out in a message
    are taken apart (`<|im_end|>` is read as `< |im_end|>`).

    Args:
        model: Whose tokenizer and chat template are used; without a template the messages are read
            as plain text, one after the other, each under its role where `named_turns` says so.
        messages: Turns `{"role", "content"}`.
        max_tokens: Cut longer ones in the middle; None refuses what the model cannot take.
        thinking: As in `encode_prompts`.

    Raises:
        InputError: there is nothing to read, it is too long, or the template fails.
    """
    turns = [{**turn, "content": apart(model, turn["content"])} for turn in messages]
    if not turns or not turns[-1]["content"].strip():
        raise InputError("There is nothing to answer: the last message is empty.")
    chat = model.has_chat_template
    text = "\n\n".join(turn["content"] for turn in turns)
    if model.named_turns:
        text = "".join(f"{turn['role'].capitalize()}:\n{turn['content']}\n\n" for turn in turns)
        text += "Assistant:\n"
    if chat:
        text = render_messages(model, turns, thinking=thinking)
    ids = tokenize(model, [text], special=not chat)[0]
    _check_vocabulary(model, [ids])
    if not ids:
        raise InputError("The tokenizer makes no token of the last message.")
    if max_tokens is not None and len(ids) > max_tokens:
        ids = [*ids[: max_tokens // 2], *ids[len(ids) - (max_tokens - max_tokens // 2) :]]
    check_length(model, turns[-1]["content"], len(ids))
    return tuple(ids)


def last_message_start(
    model: LoadedModel,
    messages: Sequence[Mapping[str, str]],
    ids: Sequence[int],
    *,
    thinking: Thinking | None = None,
) -> int:
    """Index of the first token of the last message in `encode_chat`'s ids."""
    # Other words in its place change nothing before it; two, because one could begin as it does.
    lengths = []
    for words in ("Q", "a"):
        changed = [*messages[:-1], {**messages[-1], "content": words}]
        other = encode_chat(model, changed, thinking=thinking)
        same = (i for i, (x, y) in enumerate(zip(ids, other, strict=False)) if x != y)
        lengths.append(next(same, min(len(ids), len(other)) - 1))
    return min(*lengths, len(ids) - 1)


def encode_response(model: LoadedModel, text: str) -> list[int]:
    """Token ids of a response; control tokens written in it are taken apart, as in a message."""
    return model.tokenizer(apart(model, text), add_special_tokens=False)["input_ids"]


def apart(model: LoadedModel, text: str) -> str:
    """The text with the control tokens written in it taken apart: they are words there."""
    tokens = control_tokens(model.tokenizer)
    if model.has_chat_template:  # those of turns are not always called special
        turns = template_of(model).turn_tokens
        tokens = [*tokens, *model.tokenizer.convert_ids_to_tokens(sorted(turns))]
    for token in tokens:
        if len(token) > 1 and token in text:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text


def render_messages(
    model: LoadedModel,
    messages: Sequence[Mapping[str, str]],
    *,
    thinking: Thinking | None = None,
) -> str:
    """The text of a conversation up to where the assistant's next response begins.

    Raises:
        InputError: the model's template fails, or leaves out or changes what is said.
    """
    template = template_of(model)
    try:
        text = template.render(model.tokenizer, messages, thinking=thinking)
    except Exception as error:  # a template is a program of the model's author: anything can fail
        raise template_fails(model, f"fails ({first_line(error)})") from error
    if (lost := lost_text(text, messages)) is not None:
        raise template_fails(model, f"cuts or changes what is said (“{_start(lost)}…”)")
    return text


def check_distinct(model: LoadedModel, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    """Refuses what makes the same tokens of different words.

    Raises:
        InputError: names two texts. Such as differ in case or blanks alone may be the same.
    """
    first: dict[tuple[int, ...], str] = {}
    for text, row in zip(texts, rows, strict=True):
        other = first.setdefault(tuple(row), text)
        if other != text and _folded(other) != _folded(text):
            raise InputError(
                f"{model.info.id} reads “{_start(other)}…” and “{_start(text)}…” as the same"
                " tokens, so nothing could be measured; its tokenizer does not know these words."
            )


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).casefold()
    return "".join(c for c in plain if not (c.isspace() or unicodedata.combining(c)))


def _start(text: str) -> str:
    return " ".join(text[:60].split())


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
        raise TooLongError(
            f"A prompt has {n_tokens} tokens but {model.info.id} takes {model.context_length};"
            f" shorten it (it begins “{_start(text)}…”)."
        )
