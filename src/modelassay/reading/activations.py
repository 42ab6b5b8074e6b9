"""Reading the residual stream: many prompts, several layers, one pass.

`read_activations()` gives the output of each asked layer at the last token of each prompt (or over
its response tokens). What makes it fast changes no value beyond rounding:

* each distinct prompt is read once, sorted by length, in batches of a fixed number of *tokens*;
* no layer above the last asked one runs, and no language-model head, unless a readout of the logits
  is asked for, and then the head sees one position per prompt;
* tokens that all prompts begin with (the chat template's system prompt) are computed once and
  shared through the KV cache, after a check on one prompt that this is exact for the model at hand;
* where the activations of some layer are known (`modelassay.reading.resuming`), no layer up to it
  runs.

Batches are padded on the right. Under a causal mask no real token sees what follows it, so padding
cannot touch a value, and the last token is at the prompt's own length.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.components import Site
from modelassay.models.layers import resolve_layers, rope_switch
from modelassay.progress import OnProgress
from modelassay.reading.batching import (
    TOLERANCE,
    Batching,
    batch_budget,
    batching_of,
    pad,
    relative_difference,
    run_in_batches,
)
from modelassay.reading.hooks import capture, head_at
from modelassay.reading.interventions import observe_sites
from modelassay.reading.prompts import Encoded
from modelassay.reading.resuming import ResumePoint, begin_after

log = logging.getLogger(__name__)

Position = Literal["last", "mean", "all"]
Readout = Callable[[Tensor], Tensor]
"""Reduces next-token logits [prompt, vocabulary] to what is kept [prompt, k]."""

MIN_SHARED_PREFIX = 8  # tokens; below that the bookkeeping costs more than it saves


@dataclass(frozen=True)
class Activations:
    """Residual-stream vectors of prompts at several layers."""

    values: Tensor
    """float32 on the CPU; [prompt, layer, hidden], or [token, layer, hidden] for position `all`."""
    layers: tuple[int, ...]
    """Indices along the second axis; layer i is the output of the i-th decoder layer."""
    position: Position
    offsets: tuple[int, ...] | None = None
    """For position `all`: rows offsets[p]:offsets[p + 1] are the response tokens of prompt p."""
    readout: Tensor | None = None
    """float32 [prompt, k], what the readout kept of the logits after the last token."""


def read_activations(
    model: LoadedModel,
    prompts: Sequence[Encoded],
    layers: Sequence[int],
    *,
    position: Position = "last",
    sites: Sequence[Site] = (),
    readout: Readout | None = None,
    batch_tokens: int | None = None,
    batch_size: int | None = None,
    share_prefix: bool = True,
    resume: ResumePoint | None = None,
    on_progress: OnProgress | None = None,
) -> Activations:
    """Reads the residual stream after the given layers.

    Args:
        model: The model to read.
        prompts: Token ids, see `modelassay.reading.prompts`. Order and repetitions are free.
        layers: Indices in 0 … n_layers - 1; negative ones count from the end.
        position: `last` token of each prompt; `mean` over, or `all` of, its response tokens.
        sites: Places inside these layers, as wide as the stream, that are read besides; they come
            after the layers on the second axis.
        readout: Reduces the next-token logits after the last token of each prompt; asking for it
            runs the whole model.
        batch_tokens: Upper bound on tokens in a batch, padding included.
        batch_size: Upper bound on prompts in a batch.
        share_prefix: Compute the tokens that all prompts begin with only once.
        resume: Activations to begin at, of a layer not above the lowest of `layers`. They are used
            where they reach down to the shared prefix, and only once a check on one prompt has
            shown that a pass from them ends where a whole pass does.
        on_progress: Told how many distinct prompts are done.

    Raises:
        InputError: no prompts or layers, an index out of range, no response tokens where they are
            asked for, or a layer that gives NaN or infinite values.
        UnavailableError: not even one prompt fits into memory.
    """
    if not prompts or not layers:
        raise InputError("There is nothing to read: give at least one prompt and one layer.")
    layers = resolve_layers(layers, len(model.layers))
    if position != "last" and any(p.response_start >= len(p.ids) for p in prompts):
        raise InputError(
            f"Position {position!r} reads response tokens, but a prompt has no response."
        )
    if sites:
        resume = None  # which may begin above them
    if resume is not None and resume.layer > min(layers):
        raise InputError(f"A pass that begins above layer {resume.layer} cannot read lower ones.")
    distinct = sorted(set(prompts), key=lambda p: (len(p.ids), p.ids, p.response_start))
    with torch.inference_mode():
        reader = _Reader(model, layers, position, tuple(sites), readout, resume)
        reader.find_batching(distinct)
        if share_prefix:
            reader.share_prefix_of(distinct)
        rows = run_in_batches(
            reader.read_batch,
            distinct,
            reader.size,
            batch_tokens or batch_budget(model),
            noun="prompt",
            most=batch_size,
            alike=reader.alike,
            on_progress=on_progress,
        )
    index = {prompt: i for i, prompt in enumerate(distinct)}
    order = [index[prompt] for prompt in prompts]
    values = [rows[i].values for i in order]
    if position == "all":
        ends = torch.tensor([len(value) for value in values]).cumsum(0).tolist()
        stacked, offsets = torch.cat(values), (0, *ends)
    else:
        stacked, offsets = torch.stack(values), None
    kept = None if readout is None else torch.stack([rows[i].readout for i in order])
    return Activations(stacked, layers, position, offsets, kept)


@dataclass(frozen=True)
class _Row:
    """What was read of one prompt."""

    values: Tensor
    readout: Tensor
    """Empty where none is asked for."""


@dataclass
class _Reader:
    """One `read_activations` call: holds what its batches have in common."""

    model: LoadedModel
    layers: tuple[int, ...]
    position: Position
    sites: tuple[Site, ...]
    readout: Readout | None
    resume: ResumePoint | None
    prefix: tuple[int, ...] = ()
    prefix_cache: Any = None
    batching: Batching = Batching.PADDED

    @cached_property
    def switch(self) -> int | None:
        """Prompt length above which positions are turned by other angles."""
        return rope_switch(self.model.network.config)

    @cached_property
    def _at(self) -> dict[int, Site]:
        """Sites by keys that no layer has."""
        return {-1 - i: site for i, site in enumerate(self.sites)}

    def find_batching(self, prompts: Sequence[Encoded]) -> None:
        """Finds out which of these prompts, from short to long, may be read at once."""
        by_ids = {prompt.ids: prompt for prompt in prompts if not self._beyond(prompt)}
        if len(by_ids) < 2:
            return
        ids = list(by_ids)
        tried = (ids[0], ids[len(ids) // 2], ids[-1])

        def first(batch: Sequence[tuple[int, ...]]) -> Tensor:
            row = self.read_batch([by_ids[ids] for ids in batch])[0]
            return row.values

        resume, self.resume = self.resume, None
        self.batching = batching_of(self.model, "activations", first, *tried)
        self.resume = resume

    def alike(self, prompt: Encoded) -> object:
        """Prompts for which this is equal may be read in one batch."""
        return self._beyond(prompt), self.batching.key(prompt.ids)

    def _beyond(self, prompt: Encoded) -> bool:
        """Whether the prompt is long enough to change the positions of what it is read with."""
        return self.switch is not None and len(prompt.ids) > self.switch

    def share_prefix_of(self, prompts: Sequence[Encoded]) -> None:
        """Computes the tokens common to all prompts once, if that is exact and worth it."""
        length = common_prefix_length(prompts)
        probe = prompts[0]  # the shortest
        if self.resume is not None:
            fit = (prompt for prompt in prompts if self.resume.covers([prompt], length))
            if (found := next(fit, None)) is None:
                self.resume = None
            else:
                probe = found
        least = MIN_SHARED_PREFIX if self.resume is None else 1
        if length < least or len(prompts) < 3 or self._beyond(prompts[-1]):
            return
        from transformers import DynamicCache

        plain = self.read_batch([probe])[0]
        try:
            cache = DynamicCache(config=self.model.network.config)
            self._forward(
                self.model.network,
                [list(probe.ids[:length])],
                cache,
                lambda _layer, _hidden: None,
                None,
            )
            self.prefix, self.prefix_cache = probe.ids[:length], cache
            shared = self.read_batch([probe, probe])[0]
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            log.debug("no shared prefix: %s", error)  # this model keeps its cache in another way
            shared = None
        tolerance = TOLERANCE.get(self.model.network.dtype, 5e-2)
        if shared is None or _relative_difference(plain, shared) > tolerance:
            self.prefix, self.prefix_cache = (), None
            if self.resume is not None:  # it may be that, and not the prefix
                self.resume = None
                self.share_prefix_of(prompts)

    def size(self, prompt: Encoded) -> int:
        """Tokens of a prompt that are read."""
        return len(prompt.ids) - len(self.prefix)

    def read_batch(self, batch: Sequence[Encoded]) -> list[_Row]:
        """Reads prompts that fit into one batch."""
        skip = len(self.prefix)
        remainders = [list(prompt.ids[skip:]) for prompt in batch]
        last = torch.tensor([len(ids) - 1 for ids in remainders])
        first = torch.tensor([prompt.response_start - skip for prompt in batch])
        captured: dict[int, Any] = {}

        def keep(layer: int, hidden: Tensor) -> None:
            captured[layer] = self._select(hidden, first, last)

        cache = None
        if self.prefix_cache is not None:
            cache = copy.deepcopy(self.prefix_cache)
            cache.batch_repeat_interleave(len(batch))
        model = self.model.network
        # Without a shared prefix nothing has shown that known activations fit this model.
        if self.resume is not None and self.prefix and self.resume.covers(batch, skip):
            hidden = self.resume.padded(batch, skip)
            model = begin_after(self.model, self.resume.layer, hidden)
        logits = self._forward(model, remainders, cache, keep, last)
        per_layer = [captured[key] for key in (*self.layers, *self._at)]
        if self.position == "all":
            values = [
                torch.stack([hidden[i] for hidden in per_layer], dim=1).float().cpu()
                for i in range(len(batch))
            ]
        else:
            device = per_layer[-1].device  # layers may sit on several cards
            stacked = torch.stack([hidden.to(device) for hidden in per_layer], dim=1)
            values = list(stacked.float().cpu().unbind(0))
        self._check_finite(values)
        readouts = torch.empty(len(batch), 0)
        if self.readout is not None and logits is not None:
            readouts = self.readout(logits.float()).cpu()
        return [_Row(*pair) for pair in zip(values, readouts, strict=True)]

    def _select(self, hidden: Tensor, first: Tensor, last: Tensor) -> Any:
        """[batch, token, hidden] at the wanted positions."""
        last, first = last.to(hidden.device), first.to(hidden.device)
        if self.position == "last":
            return hidden[torch.arange(len(last), device=hidden.device), last]
        if self.position == "mean":
            steps = torch.arange(hidden.shape[1], device=hidden.device)
            mask = (steps >= first[:, None]) & (steps <= last[:, None])
            weights = mask.float() / mask.sum(dim=1, keepdim=True)
            return torch.einsum("bt,bth->bh", weights, hidden.float())
        return [row[a : b + 1].clone() for row, a, b in zip(hidden, first, last, strict=True)]

    def _forward(
        self,
        model: Any,
        rows: list[list[int]],
        cache: Any,
        on_output: Callable[[int, Tensor], None],
        last: Tensor | None,
    ) -> Tensor | None:
        """One forward pass over right-padded rows; logits at `last` if a readout wants them."""
        inputs = {"input_ids": pad(rows).to(self.model.device), "use_cache": cache is not None}
        if cache is not None:
            inputs["past_key_values"] = cache
        with observe_sites(self._at, on_output):
            return self._run(model, inputs, on_output, last)

    def _run(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        on_output: Callable[[int, Tensor], None],
        last: Tensor | None,
    ) -> Tensor | None:
        modules = self.model.layers
        if self.readout is None or last is None:
            # With a readout to come, the prefix pass has to fill the cache of every layer.
            layers = self.layers if self.readout is None else (*self.layers, len(modules) - 1)
            with capture(modules, sorted(set(layers)), on_output, stop=True):
                model(**inputs)
            return None
        with capture(modules, self.layers, on_output), head_at(model, last):
            return model(**inputs).logits[:, 0]

    def _check_finite(self, values: list[Tensor]) -> None:
        for value in values:
            if not torch.isfinite(value).all():
                read = (*self.layers, *(max(self.layers) for _ in self.sites))
                by_place = torch.isfinite(value).all(dim=-1).reshape(-1, len(read)).all(0)
                broken = read[int((~by_place).nonzero()[0])]
                raise InputError(
                    f"Layer {broken} of {self.model.info.id} gives NaN or infinite activations; the"
                    " weights are broken, or the dtype overflows (try --dtype float32)."
                )


def common_prefix_length(prompts: Sequence[Encoded]) -> int:
    """Number of tokens that all prompts begin with, leaving each at least one token to read."""
    first, final = min(p.ids for p in prompts), max(p.ids for p in prompts)
    length = 0
    for a, b in zip(first, final, strict=False):
        if a != b:
            break
        length += 1
    return min(length, *(min(p.response_start, len(p.ids) - 1) for p in prompts))


def _relative_difference(a: _Row, b: _Row) -> float:
    pairs = ((a.values, b.values), (a.readout, b.readout))
    return max((relative_difference(x, y) for x, y in pairs if x.numel()), default=0.0)
