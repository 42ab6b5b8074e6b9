"""Weight sketches: a model's weights in a few thousand numbers that still tell how they changed.

Every weight is projected from both sides on directions drawn from a fixed seed (16 numbers each),
which keeps the size of a difference (Johnson & Lindenstrauss 1984): two sketches tell by how much
each matrix was changed, layer by layer. Matrices that write to the residual stream are projected
from the right only, W Ω, which also keeps what directional ablation does to them: it makes the
change -s·r(rᵀWΩ), of rank one, along r on the left and along rᵀWΩ on the right. No fine-tune does
that, so even half an ablation is told from one, and its strength s is read off.

The directions are public: somebody who knows them could change weights so that no sketch shows it.
The activations would still show it; that is why neither is trusted alone.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.measures.ablation_mark import Written, find_mark
from modelassay.measures.directional_edits import AblationMark
from modelassay.measures.erased_directions import (
    Tensors,
    memory_tensors,
    plain_name,
    stored_tensors,
)
from modelassay.models import LoadedModel
from modelassay.models.layers import OTHER_TOWERS
from modelassay.models.writers import Kind, Writer, find_writers

SIDE = 4
"""Directions on each side of a weight: 16 numbers."""
COLUMNS = 2
"""Columns of Ω kept of each writing matrix."""
SEED = 20_26
GROUP = 32
"""Weights that a 4-bit format rounds together, at least."""
EXPERT = re.compile(r"experts\.\d+\.")
VOCABULARY = re.compile(r"embed_tokens|embed_in|embed_out|wte|word_embeddings|lm_head")
"""Outside the layers: matrices with a row for each token."""


Grid = Literal["4bit", "8bit", "bfloat16", "float16"]
LEVELS: dict[Grid, float] = {"4bit": 17.0, "8bit": 30.8}
"""Most distinct values among 32 neighbours: 16 in 4 bits, about 28 in 8, nearly 32 in others."""


@dataclass(frozen=True)
class WeightSketch:
    """Projections of all weights of a language model, and of those that write to the stream."""

    names: tuple[str, ...]
    """Of the weights, `BLOCK.…` inside layers; the experts of a layer count as one weight."""
    thumbprints: Tensor
    """float32 [weight, 16], weights projected from both sides."""
    writers: tuple[str, ...]
    """Of the writing matrices."""
    written: Tensor
    """float32 [writer, hidden, 2], writing matrices projected from the right."""
    grids: tuple[Grid, ...]
    """Formats whose numbers the weights could be, whatever they are stored in."""
    kinds: tuple[Kind, ...] = ()
    """Of the writing matrices; empty where the sketch was read from a file."""
    buffers: tuple[str, ...] = ()
    """Names of those that no training step changes: a router's corrections, scales of layers."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Of the embeddings and the output layer."""
    token_rows: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Thumbprints of the rows that have tokens, where there are more rows."""
    by_row: Mapping[str, Tensor] = field(default_factory=dict)
    """float32 [row, 4], embeddings and output layer projected from the right: only in memory."""


def sketch_weights(model: LoadedModel) -> WeightSketch | None:
    """Sketches the weights that a loaded model computes with; None where they cannot be read.

    Those in memory, so that nothing else in the files is looked at; where they were packed on
    loading or left on the disk, those of the files that have their names.
    """
    writers = find_writers(model.network).found
    loaded = {weight_key(name) for name, _ in model.network.named_parameters()}
    stored_with_them = model.network.state_dict(keep_vars=True)
    buffers = {
        name: partial(Tensor.detach, buffer)
        for name, buffer in model.network.named_buffers()
        if name in stored_with_them and buffer.is_floating_point() and not buffer.is_meta
    }
    with ExitStack() as stack:
        tensors = memory_tensors(model)
        left_out = any(weight.is_meta for weight in model.network.parameters())
        if left_out or model.info.quantization in ("8bit", "4bit"):
            stored = stored_tensors(model, stack)
            tensors = ((name, read) for name, read in stored if weight_key(name) in loaded)
        found = sketch(tensors, writers, len(model.tokenizer))
        return found and _with_buffers(found, buffers)


def _with_buffers(found: WeightSketch, buffers: Mapping[str, Callable[[], Tensor]]) -> WeightSketch:
    """The same sketch with what acts like a weight and is none."""
    prints = {
        weight_key(name): _thumbprint(read().float().cpu().reshape(-1, 1))
        for name, read in sorted(buffers.items())
        if not OTHER_TOWERS.search(name)
    }
    if not prints:
        return found
    thumbprints = torch.cat([found.thumbprints, torch.stack(list(prints.values()))])
    names = (*found.names, *prints)
    return replace(found, names=names, thumbprints=thumbprints, buffers=tuple(prints))


def sketch(tensors: Tensors, writers: Sequence[Writer], vocabulary: int = 0) -> WeightSketch | None:
    """Sketches named weight tensors; None if one of them is packed or not in memory.

    Args:
        tensors: Names and readers, in any order.
        writers: Those among them that write to the residual stream.
        vocabulary: How many tokens there are, 0 if that is not known.
    """
    writer_of = {weight_key(writer.name): writer for writer in writers}
    by_row: dict[str, Tensor] = {}
    thumbprints: dict[str, Tensor] = {}
    written: dict[str, Tensor] = {}
    sampled: list[Tensor] = []
    for name, read in tensors:
        if OTHER_TOWERS.search(name):
            continue
        weight = read()
        # One byte and a scale beside it (fp8) is packed as well.
        if not weight.is_floating_point() or weight.itemsize == 1 or weight.is_meta:
            return None
        weight = weight.detach().float().cpu()
        key = weight_key(name)
        # Experts are summed with signs of their own, so that none hides another.
        sign = -1 if EXPERT.search(name) and zlib.crc32(name.encode()) % 2 else 1
        thumb = sign * _thumbprint(weight)
        thumbprints[key] = thumbprints[key] + thumb if key in thumbprints else thumb
        if layer_of(key) is None and VOCABULARY.search(key) and weight.dim() == 2:
            by_row[key] = weight @ _directions(weight.shape[1], 1)
        if (writer := writer_of.get(key)) is not None:
            matrix = writer.rows(weight)
            columns = sign * (matrix @ _directions(matrix.shape[1], 1)[:, :COLUMNS])
            written[key] = written[key] + columns if key in written else columns
            sampled.append(weight.reshape(-1)[: GROUP * 64])
    if not thumbprints or not written:
        return None
    names, writing = sorted(thumbprints), sorted(written)
    return WeightSketch(
        names=tuple(names),
        thumbprints=torch.stack([thumbprints[name] for name in names]),
        writers=tuple(writing),
        written=torch.stack([written[name] for name in writing]),
        grids=_grids(sampled),
        kinds=tuple(writer_of[name].kind for name in writing),
        rows={key: len(rows) for key, rows in by_row.items()},
        token_rows={
            key: tuple(_first_rows(rows, vocabulary).tolist())
            for key, rows in by_row.items()
            if 0 < vocabulary < len(rows)
        },
        by_row=by_row,
    )


def weight_key(name: str) -> str:
    """A weight's name without what differs between copies of a model: prefixes, expert numbers."""
    return plain_name(EXPERT.sub("experts.", name))


def layer_of(key: str) -> int | None:
    """The layer that a weight of this key belongs to, None for embeddings and the like."""
    head = key.partition(".")[0]
    return int(head) if head.isdigit() else None


def _thumbprint(weight: Tensor) -> Tensor:
    """The weight between random directions, [16]; its expected square is the mean square."""
    matrix = weight.reshape(weight.shape[0], -1)
    rows, columns = matrix.shape
    left, right = _directions(rows, 0), _directions(columns, 1)
    return (left.T @ (matrix @ right)).flatten()


def _first_rows(by_row: Tensor, count: int) -> Tensor:
    """Thumbprint of a matrix's first rows, [16], as if it had no more."""
    # Directions are drawn row by row: those of fewer rows are the first ones, at another scale.
    left = _directions(len(by_row), 0)[:count].double() * np.sqrt(len(by_row) / count)
    return (left.T @ by_row[:count].double()).flatten()


def _grids(sampled: Sequence[Tensor]) -> tuple[Grid, ...]:
    """Formats whose numbers samples of weights are, in all or most of the matrices."""
    levels = float(np.median([_levels(values) for values in sampled]))
    found: list[Grid] = [grid for grid, most in LEVELS.items() if levels <= most]
    if all(bool((values == values.bfloat16().float()).all()) for values in sampled):
        found.append("bfloat16")
    if all(bool((values == values.half().float()).all()) for values in sampled):
        found.append("float16")
    return tuple(found)


def _levels(values: Tensor) -> float:
    """Distinct values among 32 neighbours, on average."""
    groups = values[: len(values) // GROUP * GROUP].reshape(-1, GROUP).sort(dim=1).values
    return float((groups.diff(dim=1) != 0).sum(dim=1).double().mean()) + 1


@lru_cache(maxsize=64)
def _directions(n: int, side: int) -> Tensor:
    """[n, 4] directions of unit expected length, the same for ever."""
    # RandomState's stream is frozen; those of numpy's and torch's newer generators aren't.
    drawn = np.random.RandomState(SEED + side).standard_normal((n, SIDE)) / np.sqrt(n)
    return torch.from_numpy(drawn).float()


@dataclass(frozen=True)
class Resized:
    """Embeddings or an output layer that have another number of rows."""

    before: int | None
    after: int
    same: bool | None
    """Whether the rows that both have are the same; None if that cannot be told."""


@dataclass(frozen=True)
class WeightChange:
    """How a model's weights differ from those of another, by two sketches."""

    by_layer: dict[int, float]
    """Relative change of each layer: 0 for none, about 1.4 for unrelated weights."""
    elsewhere: float
    """The same for the most changed of the embeddings and the rest."""
    mark: AblationMark | None
    changed: Mapping[str, float] = field(default_factory=dict)
    """Relative change of each weight that was changed, by its key."""
    buffers: Mapping[str, float] = field(default_factory=dict)
    """The same of what no training step changes: corrections of routers, scales of layers."""
    resized: Mapping[str, Resized] = field(default_factory=dict)
    writers: frozenset[str] = frozenset()
    """Keys of the weights that write to the residual stream."""

    @property
    def writers_alone(self) -> bool:
        """Whether nothing changed but weights that write to the residual stream.

        Edits that take directions out do it so, and training hardly ever.
        """
        return bool(self.changed) and not self.buffers and self.changed.keys() <= self.writers

    @property
    def nothing(self) -> bool:
        """Whether no weight was changed; rows may have been added or left out."""
        return self.elsewhere == 0 and not any(self.by_layer.values())


SAME = 1e-5
"""Smaller changes of a thumbprint are those of another order or machine of the same sums: 4e-6."""


def compare_sketches(before: WeightSketch, after: WeightSketch) -> WeightChange | None:
    """How weights changed, or None where the two have other weights.

    Args:
        before: Of the baseline.
        after: Of the candidate.
    """
    if before.written.shape[1:] != after.written.shape[1:]:
        return None
    rows = {name: row for row, name in enumerate(before.names)}
    others = {name: row for row, name in enumerate(after.names)}
    state = {*before.buffers, *after.buffers}
    ours, theirs = before.thumbprints.double(), after.thumbprints.double()
    # What only one of the two sketches has of buffers is of another version.
    buffers = {
        name: _distance(ours[rows[name]], theirs[others[name]])
        for name in state & rows.keys() & others.keys()
    }
    rows = {name: row for name, row in rows.items() if name not in state}
    others = {name: row for name, row in others.items() if name not in state}
    # Layers must be there whole; an output layer may be tied, and is then the embeddings.
    if any(layer_of(name) is not None for name in rows.keys() ^ others.keys()):
        return None
    found: dict[str, float] = {}
    resized: dict[str, Resized] = {}
    for name in sorted(rows.keys() | others.keys()):
        mine = [name] if name in rows else [n for n in rows if _outer(n)]
        their = [name] if name in others else [n for n in others if _outer(n)]
        pairs = [(m, t) for m in mine for t in their]
        found[name] = min(
            (_distance(ours[rows[m]], theirs[others[t]]) for m, t in pairs), default=2
        )
        if found[name] > SAME and name in after.by_row and name in rows:
            size, found[name] = _resized(before, after, name, ours[rows[name]], found[name])
            resized |= {name: size} if size is not None else {}
    found = {name: change if change > SAME else 0.0 for name, change in found.items()}
    by_layer: dict[int, list[float]] = {}
    for name, change in found.items():
        if (layer := layer_of(name)) is not None:
            by_layer.setdefault(layer, []).append(change**2)
    return WeightChange(
        {layer: float(np.sqrt(np.mean(by_layer[layer]))) for layer in sorted(by_layer)},
        max((change for name, change in found.items() if _outer(name)), default=0.0),
        find_mark(_written(before, after)),
        {name: change for name, change in found.items() if change},
        {name: change for name, change in buffers.items() if change > SAME},
        resized,
        frozenset(before.writers),
    )


def _distance(before: Tensor, after: Tensor) -> float:
    """Relative change between two thumbprints."""
    size = float(before.square().sum())
    change = float((after - before).square().sum())
    if size == 0:  # nothing can be relative to it
        return 0.0 if change == 0 else 2.0
    return float(np.sqrt(change / size))


def _resized(
    before: WeightSketch, after: WeightSketch, name: str, ours: Tensor, change: float
) -> tuple[Resized | None, float]:
    """Whether a matrix has other rows rather than changed ones, and how those of both changed."""
    by_row, count = after.by_row[name], before.rows.get(name)
    if count == len(by_row):
        return None, change
    # The thumbprints of all its beginnings: that of the baseline's rows is one of them.
    left = _directions(len(by_row), 0).double() * np.sqrt(len(by_row))
    sums = torch.einsum("rs,rc->rsc", left, by_row.double()).flatten(1).cumsum(dim=0)
    beginnings = sums / torch.arange(1, len(by_row) + 1).double().sqrt()[:, None]

    def nearest(known: Tensor) -> int:
        return int((beginnings - known).square().sum(dim=1).argmin())

    if count is None:  # of a baseline that does not state it
        row = nearest(ours)
        if (left_over := _distance(ours, beginnings[row])) > change / 2:
            return None, change
        return Resized(row + 1, len(by_row), left_over <= SAME), left_over
    if count < len(by_row):
        change = _distance(ours, beginnings[count - 1])
    elif name in before.token_rows:
        known = torch.tensor(before.token_rows[name]).double()
        change = _distance(known, beginnings[nearest(known)])
    else:
        return Resized(count, len(by_row), same=None), 0.0
    return Resized(count, len(by_row), change <= SAME), change


def _outer(name: str) -> bool:
    return layer_of(name) is None


def _written(before: WeightSketch, after: WeightSketch) -> list[Written]:
    """The writing matrices inside layers that both sketches have."""
    kinds: dict[str, Kind] = dict(zip(before.writers, before.kinds, strict=False))
    kinds |= dict(zip(after.writers, after.kinds, strict=False))
    rows = {name: row for row, name in enumerate(after.writers)}
    written = []
    for name, base in zip(before.writers, before.written.double().numpy(), strict=True):
        if (layer := layer_of(name)) is not None and name in rows:
            change = after.written[rows[name]].double().numpy() - base
            written.append(Written(layer, kinds.get(name), base, change))
    return written
