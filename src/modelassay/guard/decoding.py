"""Generation token by token that hands out the states of the pass that makes the next token.

One forward pass a token over the KV cache, the prompt prefilled once. The states of the asked
blocks come from hooks on that pass, so reading them costs no second one. Between two tokens no hook
is in place and no mode of torch is entered: a generator may be resumed from any thread, dropped at
any point, and share its model with others.

Token ids become text a complete character at a time (`IncrementalText`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.hooks import capture

UNFINISHED = "\ufffd"
"""What a tokenizer decodes part of a character to."""
MOST_BYTES = 8
"""Tokens after which a character that stays unfinished is taken for what was generated."""


class IncrementalText:
    """Decodes a response piece by piece, as decoding it whole would.

    Byte-level tokenizers split characters over tokens, and SentencePiece ones drop the space before
    a first word, so a token cannot be decoded alone: the difference between two decodings, with and
    without the new tokens, is what they add.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Starts an empty response."""
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.context = 0  # first token that the next ones are decoded with
        self.shown = 0  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is complete now, often one word, or nothing."""
        self.ids.append(token)
        text = self._new_text()
        if text.endswith(UNFINISHED) and len(self.ids) - self.shown < MOST_BYTES:
            return ""
        self.context, self.shown = self.shown, len(self.ids)
        return text

    def flush(self) -> str:
        """The rest, when no token follows: a character that stayed unfinished is dropped."""
        text = self._new_text().rstrip(UNFINISHED)
        self.context = self.shown = len(self.ids)
        return text

    def _new_text(self) -> str:
        before = self._decode(self.ids[self.context : self.shown])
        return self._decode(self.ids[self.context :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopStrings:
    """Ends a response at the first stop string, and shows no part of it."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watches for any of these strings."""
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be shown: up to a stop string, or to what may become one."""
        if self.found or not self.stops:
            return "" if self.found else text
        self.held += text
        ends = [self.held.find(stop) for stop in self.stops]
        if first := [end for end in ends if end >= 0]:
            self.found = True
            shown, self.held = self.held[: min(first)], ""
            return shown
        keep = max(_overlap(self.held, stop) for stop in self.stops)
        shown = self.held[: len(self.held) - keep]
        self.held = self.held[len(self.held) - keep :]
        return shown

    def flush(self) -> str:
        """The rest, when no text follows."""
        shown, self.held = self.held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((length for length in lengths if stop.startswith(text[-length:])), 0)


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for no bound."""
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, ok, bounds in (
            ("temperature", 0 <= self.temperature <= 10, "0 to 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0.1 <= self.repetition_penalty <= 10, "0.1 to 10"),
        ):
            if not ok:
                shown = name.replace("_", "-")
                raise InputError(f"The {shown} must be {bounds}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class DecodingStep:
    """One forward pass: what it read, and the token that it makes likely."""

    activations: dict[int, Tensor]
    """For each asked block, [token, hidden] of the tokens that were read."""
    token: int
    """The token that comes next; it has not been read yet."""


def decode(
    model: LoadedModel, prompt: Sequence[int], layers: Sequence[int], sampling: Sampling
) -> Generator[DecodingStep, None, None]:
    """Generates without end; the first step has read the whole prompt.

    Args:
        model: The model.
        prompt: Token ids.
        layers: Blocks whose states are wanted; may be empty.
        sampling: How tokens are chosen.
    """
    from transformers import DynamicCache

    choose = _chooser(model, sampling)
    cache = DynamicCache(config=model.network.config.get_text_config())
    ids = torch.tensor([list(prompt)], device=model.device)
    read = ids
    while True:
        activations, logits = forward(model, read, cache, layers)
        token = choose(ids, logits)
        yield DecodingStep(activations, int(token))
        read = token.view(1, 1).to(model.device)
        ids = torch.cat([ids, read], dim=1)


def forward(
    model: LoadedModel, ids: Tensor, cache: Any, layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """One pass over new tokens: states of the asked blocks, the last token's logits [1, vocab]."""
    activations: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        activations[layer] = hidden[0]

    inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    with torch.inference_mode():
        if layers:
            with capture(model.layers, layers, keep):
                logits = model.network(**inputs).logits
        else:
            logits = model.network(**inputs).logits
        return activations, logits[:, -1].float()


def _chooser(model: LoadedModel, sampling: Sampling) -> Any:
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Any] = []
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
    processors = LogitsProcessorList(steps)
    draw = torch.Generator(device=model.device)
    if sampling.seed is not None:
        draw.manual_seed(sampling.seed)
    else:
        draw.seed()

    def choose(ids: Tensor, logits: Tensor) -> Tensor:
        scores: Any = processors(cast(Any, ids), cast(Any, logits.to(ids.device)))
        if sampling.temperature == 0:
            return scores.argmax(dim=-1)
        return torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=draw)[:, 0]

    return choose
