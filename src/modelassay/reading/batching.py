"""Batches that a memory holds: a fixed number of tokens, halved where even that is too many."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modelassay.errors import UnavailableError
from modelassay.models import LoadedModel
from modelassay.models.explain import is_out_of_memory
from modelassay.progress import OnProgress

log = logging.getLogger(__name__)

BATCH_TOKENS_CPU = 512  # what stays in a processor's cache; larger batches are slower
BATCH_TOKENS_GPU = 16384

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S", bound=Sequence[int])


class Batching(Enum):
    """Which prompts a model may be given at once without one changing what another gives."""

    PADDED = "any"
    EQUAL = "of equal length"
    ALONE = "none"

    def key(self, ids: Sequence[int]) -> object:
        """Prompts for which this is equal come into one batch."""
        return {Batching.PADDED: None, Batching.EQUAL: len(ids), Batching.ALONE: ids}[self]


# Largest relative difference that counts as rounding when a prompt is read in another company.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# What is known of a network, by what is read: the longest prompt that was tried, and the outcome.
_known: WeakKeyDictionary[Any, dict[str, tuple[int, Batching]]] = WeakKeyDictionary()


def batching_of(
    model: LoadedModel,
    what: str,
    read: Callable[[Sequence[S]], Tensor],
    short: S,
    *others: S,
) -> Batching:
    """Which prompts may share a batch, found out by reading one alone and beside another.

    Causal masks keep padding from touching a value in most families, but not in those that carry a
    state from token to token, choose tokens by rank, or normalise over a batch. A model is tried
    once, and again where prompts are more than twice as long as those tried.

    Args:
        model: The model.
        what: What is read; each kind is tried for itself.
        read: Gives the values of the first prompt of a batch.
        short: The shortest prompt.
        *others: Longer prompts, the last of them the longest.
    """
    known = _known.setdefault(model.network, {})
    longest = len(others[-1])
    length, found = known.get(what, (0, Batching.PADDED))
    if longest <= 2 * length or len(short) == longest or found is Batching.ALONE:
        return found
    try:
        alone = read([short])
        tolerance = TOLERANCE.get(model.network.dtype, 5e-2)
        beside = max(relative_difference(alone, read([short, other])) for other in others)
        if beside > tolerance:
            twice = relative_difference(alone, read([short, short]))
            # Half the precision or less rounds another way in every batch, experts most of all.
            rounding = model.network.dtype != torch.float32 and beside < 2 * twice
            if not rounding:
                found = Batching.EQUAL if twice <= tolerance else Batching.ALONE
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return Batching.ALONE
    if found is not Batching.PADDED:
        log.info("%s: batches of prompts %s, as others change values.", what, found.value)
    known[what] = (longest, found)
    return found


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Largest relative distance between vectors along the last axis."""
    scale = a.norm(dim=-1).clamp_min(1e-12)
    return float(((a - b).norm(dim=-1) / scale).max())


def batch_budget(model: LoadedModel) -> int:
    """Tokens in a batch that suit the device a model is on."""
    return BATCH_TOKENS_CPU if model.device.type == "cpu" else BATCH_TOKENS_GPU


def run_in_batches(
    run: Callable[[Sequence[T]], Sequence[R]],
    items: Sequence[T],
    size: Callable[[T], int],
    budget: int,
    *,
    noun: str,
    most: int | None = None,
    alike: Callable[[T], object] = lambda _: None,
    on_progress: OnProgress | None = None,
) -> list[R]:
    """What `run` makes of each item, given as many at once as fit.

    Args:
        run: Gives a result for each item of a batch.
        items: From short to long, so that batches hold little padding.
        size: Tokens of an item.
        budget: Upper bound on tokens in a batch, padding included; halved when memory runs out.
        noun: What an error calls an item.
        most: Upper bound on items in a batch; None for as many as the budget holds.
        alike: Only neighbours for which this is equal come into one batch.
        on_progress: Told how many items are done.

    Raises:
        UnavailableError: not even one item fits into memory.
    """
    done: list[R] = []
    if on_progress:
        on_progress(0, len(items))
    while (start := len(done)) < len(items):
        end = start + 1
        while (
            end < len(items)
            and (most is None or end - start < most)
            and size(items[end]) * (end + 1 - start) <= budget
            and alike(items[end]) == alike(items[start])
        ):
            end += 1
        longest = size(items[end - 1])
        try:
            done += run(items[start:end])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if end - start == 1:
                raise UnavailableError(
                    f"Not even one {noun} of {longest} tokens fits into memory beside the model;"
                    " try --load-4bit, --dtype bfloat16 or another device."
                ) from error
            budget = max(1, longest * (end - start) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning("Out of memory; going on with batches of %d tokens.", budget)
            continue
        if on_progress:
            on_progress(len(done), len(items))
    return done


def pad(
    rows: Sequence[Sequence[int]], value: int = 0, side: Literal["left", "right"] = "right"
) -> Tensor:
    """Rows of different lengths as one int64 tensor [row, position]."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value, padding_side=side)
