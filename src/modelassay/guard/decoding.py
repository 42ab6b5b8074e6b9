"""Generation token by token that hands out the states of the pass that makes the next token.

One forward pass a token over the KV cache, the prompt prefilled once. The states of the asked
blocks come from hooks on that pass, so reading them costs no second one. Between two tokens no hook
is in place and no mode of torch is entered: a generator may be resumed from any thread, dropped at
any point, and share its model with others.

Token ids become text as soon as it is final (`IncrementalText`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.hooks import capture

UNFINISHED = "\ufffd"
"""What a tokenizer decodes a byte to that is no character yet."""
MOST_UNFINISHED = 3
"""Bytes that a character can still wait to be completed with."""
WINDOW = 16
"""Tokens that the next ones are decoded with; at most twice as many are decoded at a time."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class IncrementalText:
    """Decodes a response piece by piece, to the text that decoding it whole gives.

    What a token adds depends on those around it. Byte-level tokenizers split characters over
    tokens, SentencePiece drops the space before the first word, and WordPiece marks what continues
    a word. So the last tokens are decoded together, and what is new at the end is given out, except
    for what a later token can still change: the bytes of an unfinished character, a run of byte
    tokens (tokenizers decodes it as one, and to nothing but replacement characters if its end is
    cut), and the words that a clean-up of spaces may still join.
    """

    def __init__(self, tokenizer: Any, kept: Mapping[int, str] | None = None) -> None:
        """Starts an empty response.

        Args:
            tokenizer: Whose tokens they are.
            kept: Special tokens that are part of the text, as those that mark a thought.
        """
        self.tokenizer = tokenizer
        self._kept = kept or {}
        self._window: list[int] = []
        self._given = 0  # characters of the window's text that were given out
        self._skipped: dict[int, bool] = {}
        self._spaces = _CleanUp(tokenizer) if _cleans_up(tokenizer) else None

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is final now, often one word, or nothing."""
        if token in self._kept:
            return self.flush() + self._kept[token]
        if self._is_skipped(token):
            return ""
        self._window.append(token)
        if _BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(token))):
            return ""
        text = self._decode(self._window)
        end = len(text) - _unfinished(text)
        new, self._given = text[self._given : end], max(self._given, end)
        if len(self._window) >= 2 * WINDOW:
            self._shorten()
        return self._spaces.push(new) if self._spaces else new

    def flush(self) -> str:
        """The rest, when no token follows; bytes that stayed unfinished come as decoded whole."""
        new = self._decode(self._window)[self._given :] if self._window else ""
        self._window, self._given = [], 0
        return self._spaces.push(new) + self._spaces.flush() if self._spaces else new

    def _shorten(self) -> None:
        """Forgets the first tokens of the window, unless the rest may be stripped as spaces."""
        window = self._window[-WINDOW:]
        text = self._decode(window)
        given = len(text) - _unfinished(text)
        if text[:given].strip() or given > WINDOW // 2:
            self._window, self._given = window, given

    def _is_skipped(self, token: int) -> bool:
        """Whether a token is a special one, which decoding takes out before anything else."""
        if token not in self._skipped:
            shown = self._decode([token]) or not self._decode([token], skip_special_tokens=False)
            self._skipped[token] = not shown
        return self._skipped[token]

    def _decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(
            list(ids),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )


def _unfinished(text: str) -> int:
    """Characters at the end of a text that further bytes may still complete."""
    tail = text[-MOST_UNFINISHED:]
    return len(tail) - len(tail.rstrip(UNFINISHED))


def _cleans_up(tokenizer: Any) -> bool:
    """Whether decoding ends with a clean-up of spaces; of BPE, transformers leaves it out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    forced = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    is_bpe = backend is not None and type(backend.model).__name__ == "BPE"
    wanted = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    return wanted and (not is_bpe or bool(getattr(tokenizer, forced, False)))


class _CleanUp:
    """transformers' clean-up of spaces before punctuation and English contractions, in pieces.

    It replaces " ." by "." and the like, each over the whole text. A text can be cut before a space
    that follows a letter or digit: nothing that is replaced reaches over such a place, except
    " n ' t", which becomes "n't" in two steps.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.held = ""

    def push(self, text: str) -> str:
        """The cleaned text that can no longer change."""
        start = len(self.held)  # no earlier space is a place to cut
        self.held += text
        cut = self.held.rfind(" ", start)
        while cut > 0 and not (self.held[cut - 1].isalnum() and self.held[cut - 2 : cut] != " n"):
            cut = self.held.rfind(" ", start, cut)
        ready, self.held = self.held[: max(0, cut)], self.held[max(0, cut) :]
        return self.tokenizer.clean_up_tokenization(ready)

    def flush(self) -> str:
        """The rest, when no text follows."""
        ready, self.held = self.held, ""
        return self.tokenizer.clean_up_tokenization(ready)


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
    model: LoadedModel,
    prompt: Sequence[int],
    layers: Sequence[int],
    sampling: Sampling,
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Generator[DecodingStep, None, None]:
    """Generates without end; the first step has read the whole prompt.

    Args:
        model: The model.
        prompt: Token ids.
        layers: Blocks whose states are wanted; may be empty.
        sampling: How tokens are chosen.
        during: What lasts as long as each pass, for whoever else reads it.
    """
    from transformers import DynamicCache

    choose = chooser(model, sampling)
    cache = DynamicCache(config=model.network.config.get_text_config())
    ids = torch.tensor([list(prompt)], device=model.device)
    read = ids
    while True:
        with during():
            activations, logits = forward(model, read, cache, layers)
        token = choose(ids, logits)
        yield DecodingStep(activations, int(token))
        read = token.view(1, 1).to(model.device)
        ids = torch.cat([ids, read], dim=1)


def forward(
    model: LoadedModel, ids: Tensor, cache: Any, layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """One pass over new tokens: states of the asked blocks, the last token's logits [1, vocab]."""
    activations, logits = forward_rows(model, ids, cache, layers)
    return {layer: hidden[0] for layer, hidden in activations.items()}, logits


def forward_rows(
    model: LoadedModel, ids: Tensor, cache: Any, layers: Sequence[int], **inputs: Any
) -> tuple[dict[int, Tensor], Tensor]:
    """One pass over new tokens of several rows.

    Args:
        model: The model.
        ids: int64 [row, token].
        cache: Keys and values of what was read before.
        layers: Blocks whose states are wanted; may be empty.
        **inputs: What else the network is given, such as a mask.

    Returns:
        For each block, [row, token, hidden]; and the last logits of each row, [row, vocab].
    """
    activations: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        activations[layer] = hidden

    inputs = {
        "input_ids": ids,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
        **inputs,
    }
    with torch.inference_mode():
        if layers:
            with capture(model.layers, layers, keep):
                logits = model.network(**inputs).logits
        else:
            logits = model.network(**inputs).logits
        return activations, logits[:, -1].float()


Chooser = Callable[[Tensor, Tensor], Tensor]
"""From a row's token ids [1, token] and logits [1, vocab] to the token that comes next, [1]."""


def chooser(model: LoadedModel, sampling: Sampling) -> Chooser:
    """Chooses the tokens of one response; what it draws depends on the seed and the logits alone.

    Args:
        model: The model.
        sampling: How; without a seed, otherwise each time.
    """
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
