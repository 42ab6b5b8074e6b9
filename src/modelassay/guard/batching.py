"""Passes for many responses at once: each is prefilled alone, then one pass reads a token of all.

A response gets the tokens that it gets alone, whatever else is in the batch: its keys, positions,
draws and states are its own. Only the rounding of a product of matrices can depend on its height.
Where a model cannot be batched so, because it carries a state from token to token or turns
positions by the length of the text, every response has passes of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modelassay.guard.decoding import (
    Chooser,
    DecodingStep,
    Sampling,
    chooser,
    decode,
    forward_rows,
)
from modelassay.guard.row_cache import Kept, RowCache, kept_of
from modelassay.guard.streaming import Guard
from modelassay.models.layers import rope_switch
from modelassay.reading.activations import common_prefix_length
from modelassay.reading.batching import Batching, batching_of
from modelassay.reading.prompts import Encoded, encode_chat

log = logging.getLogger(__name__)

TRIED = ("Hello.", "What is the colour of the sky, and why does it change in the evening?")
"""What is read alone and together, to see whether a model can be batched."""
TRIED_TOKENS = 3


class RowReadings:
    """What the monitor read in the last pass over one response."""

    def __init__(self) -> None:
        """Nothing was read yet."""
        self.last = np.zeros((0, 0))

    def projections(self) -> np.ndarray:
        """float64 [token, reading]."""
        return self.last


@dataclass(eq=False)
class Row:
    """One response in the passes."""

    sampling: Sampling
    readings: RowReadings = field(default_factory=RowReadings)
    ids: list[int] = field(default_factory=list)
    """All tokens; the last one was made and not read."""
    _choose: Chooser | None = None
    _kept: Kept | None = None
    """What was read, while the row is not in the batch."""
    _passes: Iterator[DecodingStep] | None = None
    """Of a row that has its own."""


@dataclass(frozen=True)
class _Opening:
    """What was read of tokens that many prompts begin with."""

    ids: tuple[int, ...] = ()
    kept: Kept = ()
    states: dict[int, Tensor] = field(default_factory=dict)
    """For each block that is read, [token, hidden]."""
    readings: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    def cache(self) -> Any:
        """A cache that holds it, of plain layers: where a window is less, the mask says so."""
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.inference_mode():
            for layer, (keys, values) in enumerate(self.kept):
                cache.update(keys[None], values[None], layer)
        return cache

    def before(self, layer: int, states: Tensor) -> Tensor:
        """The states of a whole prompt, given those of what follows."""
        return torch.cat([self.states[layer], states]) if self.ids else states


NOTHING = _Opening()


class Passes(Protocol):
    """How the passes for many responses are made."""

    def begin(self, prompt: Sequence[int], row: Row) -> DecodingStep:
        """Reads a prompt; the row is not among those that are read next until it is put there."""
        ...

    def put(self, row: Row) -> None:
        """Puts a row among those whose next token is read."""
        ...

    def take(self, row: Row) -> None:
        """Takes a row out, to be put back later."""
        ...

    def drop(self, row: Row) -> None:
        """Forgets a row, wherever it is."""
        ...

    def read(self) -> list[tuple[Row, DecodingStep]]:
        """Reads the next token of all rows that were put there."""
        ...


class SharedPasses:
    """One pass for all rows."""

    def __init__(self, guard: Guard) -> None:
        """Starts without rows."""
        self.model, self.layers = guard.model, guard.layers
        self._reader = guard.monitor_reader()
        self._rows: list[Row] = []
        self._cache = RowCache()
        self._opening: _Opening | None = None

    def begin(self, prompt: Sequence[int], row: Row) -> DecodingStep:
        """Reads a prompt alone, from where the opening ends that all have."""
        opening = self._opening = self._opening or self._read_opening()
        n = len(opening.ids) if self._begins_with(prompt, opening.ids) else 0
        start = opening if n else NOTHING
        cache = start.cache()
        activations, logits = self._read_prompt(prompt[n:], cache)
        row.ids, row._choose = list(prompt), chooser(self.model, row.sampling)
        row._kept = kept_of(cache)
        row.readings.last = self._readings(start)
        token = self._next(row, logits)
        row.ids.append(token)
        states = {layer: start.before(layer, each[0]) for layer, each in activations.items()}
        return DecodingStep(states, token)

    def _read_opening(self) -> _Opening:
        """What the template lets every conversation without a system message of its own begin with.

        It is the same for all, so that the time a prompt takes tells nothing of what others said.
        """
        first, second = (encode_chat(self.model, [_says(text)]) for text in TRIED)
        both = [Encoded(ids, len(ids)) for ids in (first, second)]
        ids = first[: common_prefix_length(both)]
        if not ids:
            return NOTHING
        cache = NOTHING.cache()
        activations, _ = self._read_prompt(ids, cache)
        states = {layer: each[0] for layer, each in activations.items()}
        return _Opening(ids, kept_of(cache), states, self._readings(NOTHING))

    @staticmethod
    def _begins_with(prompt: Sequence[int], ids: tuple[int, ...]) -> bool:
        return len(ids) < len(prompt) and tuple(prompt[: len(ids)]) == ids

    def _read_prompt(self, ids: Sequence[int], cache: Any) -> tuple[dict[int, Tensor], Tensor]:
        read = torch.tensor([list(ids)], device=self.model.device)
        return self._pass(read, {"past_key_values": cache})

    def _readings(self, before: _Opening) -> np.ndarray:
        """What the monitor read in the last pass, after what it had read before."""
        if self._reader is None:
            return before.readings
        last = self._reader.projections()
        return np.concatenate([before.readings, last]) if len(before.readings) else last

    def put(self, row: Row) -> None:
        """Puts a row among those whose next token is read."""
        assert row._kept is not None  # noqa: S101 (it has begun, and is not there)
        with torch.inference_mode():
            self._cache.place(row._kept)
        self._rows.append(row)
        row._kept = None

    def take(self, row: Row) -> None:
        """Takes a row out, to be put back later."""
        with torch.inference_mode():
            kept = self._cache.take(self._rows.index(row))
        self.drop(row)
        row._kept = kept

    def drop(self, row: Row) -> None:
        """Forgets a row, wherever it is."""
        row._kept = None
        if row not in self._rows:
            return
        at, last = self._rows.index(row), self._rows.pop()
        with torch.inference_mode():
            self._cache.drop(at)
        if last is not row:
            self._rows[at] = last

    def read(self) -> list[tuple[Row, DecodingStep]]:
        """Reads the next token of all rows in one pass."""
        rows = list(self._rows)
        if not rows:
            return []
        activations, logits = self.read_next([row.ids[-1] for row in rows])
        if self._reader is not None:
            found = self._reader.projections()
            for i, row in enumerate(rows):
                row.readings.last = found[i : i + 1]
        likeliest = logits.argmax(dim=-1).tolist()
        steps = []
        for i, row in enumerate(rows):
            token = likeliest[i] if _is_greedy(row.sampling) else self._next(row, logits[i : i + 1])
            row.ids.append(token)
            states = {layer: each[i] for layer, each in activations.items()}
            steps.append((row, DecodingStep(states, token)))
        return steps

    def read_next(self, tokens: Sequence[int]) -> tuple[dict[int, Tensor], Tensor]:
        """One pass over a token of each row: states [row, token, hidden], logits [row, vocab]."""
        device = self.model.device
        with torch.inference_mode():
            inputs = self._cache.open_column(device)
        return self._pass(torch.tensor(tokens, device=device)[:, None], inputs)

    def _pass(self, ids: Tensor, inputs: dict[str, Any]) -> tuple[dict[int, Tensor], Tensor]:
        """States on the CPU, where they are read row by row, and logits."""
        cache = inputs.pop("past_key_values")
        with nullcontext() if self._reader is None else self._reader.reading():
            activations, logits = forward_rows(self.model, ids, cache, self.layers, **inputs)
        return {layer: each.float().cpu() for layer, each in activations.items()}, logits

    def _next(self, row: Row, logits: Tensor) -> int:
        assert row._choose is not None  # noqa: S101 (it has begun)
        return int(row._choose(torch.tensor([row.ids], device=self.model.device), logits))


class OwnPasses:
    """Passes of its own for every row, in turns: for models that cannot be batched."""

    def __init__(self, guard: Guard) -> None:
        """Starts without rows."""
        self.guard = guard
        self._rows: dict[int, Row] = {}

    def begin(self, prompt: Sequence[int], row: Row) -> DecodingStep:
        """Reads a prompt."""
        reader = self.guard.monitor_reader()
        during = nullcontext if reader is None else reader.reading

        def passes() -> Iterator[DecodingStep]:
            model, layers = self.guard.model, self.guard.layers
            for step in decode(model, prompt, layers, row.sampling, during):
                if reader is not None:
                    row.readings.last = reader.projections()
                yield step

        row._passes = passes()
        return next(row._passes)

    def put(self, row: Row) -> None:
        """Puts a row among those whose next token is read."""
        self._rows[id(row)] = row

    def take(self, row: Row) -> None:
        """Takes a row out, to be put back later."""
        self._rows.pop(id(row), None)

    def drop(self, row: Row) -> None:
        """Forgets a row, wherever it is."""
        self.take(row)
        row._passes = None

    def read(self) -> list[tuple[Row, DecodingStep]]:
        """Reads the next token of each row, one after the other."""
        found = []
        for row in list(self._rows.values()):
            assert row._passes is not None  # noqa: S101 (it has begun)
            found.append((row, next(row._passes)))
        return found


def why_not_shared(guard: Guard) -> str | None:
    """Why a model's responses cannot share passes, in a few words; None if they can.

    Found out by the kind of its cache, and by reading a text alone and beside another one.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    model = guard.model
    config = model.network.config
    if rope_switch(config) is not None:
        return "it turns positions by the length of the text"
    layers = DynamicCache(config=config.get_text_config()).layers
    if any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return "it carries a state from token to token"
    prompts = [encode_chat(model, [_says(text)]) for text in TRIED]

    def read(batch: Sequence[tuple[int, ...]]) -> Tensor:
        return _first_logits(guard, batch)

    try:
        found = batching_of(model, "batched responses", read, *prompts)
    except Exception as error:  # a network's own code, given a cache that it may not know
        log.info("%s cannot be batched (%s).", model.info.id, type(error).__name__)
        return "its passes do not take a cache of several rows"
    return None if found is Batching.PADDED else "another text in a pass changes what it reads"


def _says(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _first_logits(guard: Guard, batch: Sequence[tuple[int, ...]]) -> Tensor:
    """Logits [token, vocab] after the first prompt's tokens, in the company of the others."""
    passes = SharedPasses(guard)
    for prompt in batch:
        row = Row(Sampling())
        passes.begin(prompt, row)
        passes.put(row)
    seen = [passes.read_next([token] * len(batch))[1][0] for token in batch[0][:TRIED_TOKENS]]
    return torch.stack(seen)


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature == 0 and sampling.repetition_penalty == 1
