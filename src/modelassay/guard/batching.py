"""Passes for many responses at once: prompts are read together, then a token of each response.

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
from modelassay.reading.batching import Batching, batching_of, pad
from modelassay.reading.hooks import head_at
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
    readings: np.ndarray | None = None
    """What the monitor reads in them."""

    def cache(self, rows: int) -> Any:
        """A cache that holds it in each row.

        Its layers are plain ones: where a window is less than the text, the mask says so.
        """
        from transformers import DynamicCache

        cache = DynamicCache()
        with torch.inference_mode():
            for layer, parts in enumerate(self.kept):
                keys, values = (part[None].expand(rows, -1, -1, -1) for part in parts)
                cache.update(keys, values, layer)
        return cache

    def before(self, layer: int, states: Tensor) -> Tensor:
        """The states of a whole prompt, given those of what follows."""
        return torch.cat([self.states[layer], states]) if self.ids else states

    def readings_before(self, readings: np.ndarray) -> np.ndarray:
        """The monitor's readings of a whole prompt, given those of what follows."""
        return readings if self.readings is None else np.concatenate([self.readings, readings])


NOTHING = _Opening()


class Passes(Protocol):
    """How the passes for many responses are made."""

    def begin(self, asked: Sequence[tuple[Sequence[int], Row]]) -> list[DecodingStep]:
        """Reads prompts; a row is not among those that are read next until it is put there."""
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

    def begin(self, asked: Sequence[tuple[Sequence[int], Row]]) -> list[DecodingStep]:
        """Reads prompts together, from where the opening ends that most of them have."""
        opening = self._opening = self._opening or self._read_opening()
        having = [_begins_with(prompt, opening.ids) for prompt, _ in asked]
        found: dict[int, DecodingStep] = {}
        for start, has in ((opening, True), (NOTHING, False)):
            group = [i for i in range(len(asked)) if having[i] is has]
            if group:
                steps = self._begin_after(start, [asked[i] for i in group])
                found.update(zip(group, steps, strict=True))
        return [found[i] for i in range(len(asked))]

    def _begin_after(
        self, start: _Opening, asked: Sequence[tuple[Sequence[int], Row]]
    ) -> list[DecodingStep]:
        """Reads prompts that have one beginning.

        Padding comes after a prompt, where none of its tokens sees it, so that each is read as it
        is alone.
        """
        rest = [list(prompt[len(start.ids) :]) for prompt, _ in asked]
        cache = start.cache(len(rest))
        ids = pad(rest).to(self.model.device)
        ends = torch.tensor([len(each) - 1 for each in rest])
        with head_at(self.model.network, ends):
            activations, logits = self._pass(ids, {"past_key_values": cache, "logits_to_keep": 0})
        read = None if self._reader is None else self._reader.projections()
        steps = []
        for i, (prompt, row) in enumerate(asked):
            n = len(rest[i])
            row.ids, row._choose = list(prompt), chooser(self.model, row.sampling)
            row._kept = kept_of(cache, i, len(prompt))
            if read is not None:
                own = read.reshape(len(rest), -1, read.shape[-1])[i, :n]
                row.readings.last = start.readings_before(own)
            token = self._next(row, logits[i : i + 1])
            row.ids.append(token)
            states = {
                layer: start.before(layer, each[i, :n]) for layer, each in activations.items()
            }
            steps.append(DecodingStep(states, token))
        return steps

    def _read_opening(self) -> _Opening:
        """What the template lets every conversation without a system message of its own begin with.

        It is the same for all, so that the time a prompt takes tells nothing of what others said.
        """
        first, second = (encode_chat(self.model, [_says(text)]) for text in TRIED)
        both = [Encoded(ids, len(ids)) for ids in (first, second)]
        ids = first[: common_prefix_length(both)]
        if not ids:
            return NOTHING
        cache = NOTHING.cache(1)
        read = torch.tensor([ids], device=self.model.device)
        activations, _ = self._pass(read, {"past_key_values": cache})
        states = {layer: each[0] for layer, each in activations.items()}
        readings = None if self._reader is None else self._reader.projections()
        return _Opening(ids, kept_of(cache, 0, len(ids)), states, readings)

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

    def begin(self, asked: Sequence[tuple[Sequence[int], Row]]) -> list[DecodingStep]:
        """Reads prompts, one after the other."""
        return [self._begin(prompt, row) for prompt, row in asked]

    def _begin(self, prompt: Sequence[int], row: Row) -> DecodingStep:
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


def _begins_with(prompt: Sequence[int], ids: Sequence[int]) -> bool:
    return len(ids) < len(prompt) and tuple(prompt[: len(ids)]) == tuple(ids)


def _says(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _first_logits(guard: Guard, batch: Sequence[tuple[int, ...]]) -> Tensor:
    """Logits [token, vocab] after the first prompt's tokens, in the company of the others."""
    passes = SharedPasses(guard)
    rows = [Row(Sampling()) for _ in batch]
    passes.begin(list(zip(batch, rows, strict=True)))
    for row in rows:
        passes.put(row)
    seen = [passes.read_next([token] * len(batch))[1][0] for token in batch[0][:TRIED_TOKENS]]
    return torch.stack(seen)


def _is_greedy(sampling: Sampling) -> bool:
    return sampling.temperature == 0 and sampling.repetition_penalty == 1
