"""Activations of one layer over a stream of texts, shuffled, in memory that does not grow.

Texts are cut into contexts of a fixed number of tokens and read a window at a time. A window's
activations are passed over in random order, once or several times (reading them is what costs), and
then dropped for the next one's. The first token of a context is left out: it is an attention sink
of enormous norm in most models, and would be most of the variance that an SAE explains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded

TEXTS_AT_ONCE = 32


@dataclass(frozen=True)
class Window:
    """Activations that are in memory together."""

    number: int
    values: Tensor
    """bfloat16 [token, hidden]."""
    texts_read: int
    """Of the stream, up to the end of this window; a later run can go on from there."""


def read_windows(
    model: LoadedModel,
    open_texts: Callable[[], Iterable[str]],
    layer: int,
    *,
    window_tokens: int,
    context: int,
    first_window: int = 0,
    texts_read: int = 0,
) -> Iterator[Window]:
    """Reads the stream a window at a time; begins again where it ends.

    Args:
        model: The model to read.
        open_texts: Opens the stream at its beginning, in the same order every time.
        layer: The layer whose output is read.
        window_tokens: Tokens in a window.
        context: Tokens of a text that are read together.
        first_window: Number of the first window, where an earlier run is taken up.
        texts_read: Texts of the stream that the earlier run read.

    Raises:
        InputError: the stream has no text that makes two tokens.
    """
    number, count = first_window, texts_read
    values: list[Tensor] = []
    tokens = 0
    while True:
        texts = islice(open_texts(), count, None)
        began_at, found = count, False
        while chunk := list(islice(texts, TEXTS_AT_ONCE)):
            count += len(chunk)
            contexts = encode_contexts(model, chunk, context)
            if not contexts:
                continue
            found = True
            read = read_activations(model, contexts, [layer], position="all")
            values.append(read.values[:, 0].bfloat16())
            tokens += len(values[-1])
            if tokens >= window_tokens:
                yield Window(number, torch.cat(values), count)
                number, values, tokens = number + 1, [], 0
        if began_at == 0 and not found:
            raise InputError("The texts to read activations of are empty.")
        count = 0


def encode_contexts(model: LoadedModel, texts: Iterable[str], context: int) -> list[Encoded]:
    """Texts cut into contexts of at most that many tokens; the first token of each is not read."""
    rows = model.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
    length = min(context, model.context_length)
    return [
        Encoded(tuple(row[start : start + length]), response_start=1)
        for row in rows
        for start in range(0, len(row), length)
        if len(row) - start > 1
    ]


def shuffled_batches(window: Window, batch: int, passes: int, seed: int) -> Iterator[Tensor]:
    """The window's activations [batch, hidden] in float32, each used `passes` times.

    What is left over of a pass is dropped, so that every batch is full.
    """
    draw = torch.Generator().manual_seed(seed * 1_000_003 + window.number)
    for _ in range(passes):
        order = torch.randperm(len(window.values), generator=draw)
        for start in range(0, len(order) - batch + 1, batch):
            yield window.values[order[start : start + batch]].float()
