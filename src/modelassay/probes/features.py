"""What a probe sees: states of the residual stream, pooled over the tokens read so far.

Features are read where they will be served. At the prompt that is the span from the first token of
the user's text to the end of the prompt, before anything is answered; in the response it is the
span from its first token to the one just generated, so a response gives a sample at each of several
lengths. One pass reads all layers, and the result is kept on disk under a hash of everything that
it depends on.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.data.labelled import At, LabelledExchange
from modelassay.errors import first_line
from modelassay.files.atomic import cache_dir, new_file
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress, told
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_chat, encode_response, last_message_start

log = logging.getLogger(__name__)

POOLINGS: tuple[Literal["last", "mean"], ...] = ("last", "mean")
CHECKPOINTS = (4, 12, 32, 80)
"""Lengths of a response, in tokens, at which a sample is taken, beside its end."""
DENSE = (4, 8, 16, 24, 32, 48, 64, 96, 128)
"""The same where samples of one response teach different things."""
MAX_PROMPT_TOKENS = 2048
MAX_RESPONSE_TOKENS = 160
CHUNK_TOKENS = 4096  # whose states of all layers are in memory at once
MAX_CACHE_BYTES = 6_000_000_000
FORMAT = 2
"""Raised when the meaning of cached features changes."""
LARGEST = 6e4
"""What float16 holds; single dimensions of some models go beyond."""


@dataclass(frozen=True)
class Features:
    """Pooled states of samples; a sample is a prompt, or a response up to some length."""

    values: Tensor
    """float16 [sample, layer, pooling, hidden], poolings as in `POOLINGS`."""
    layers: tuple[int, ...]
    row: np.ndarray
    """For each sample, the index of its exchange."""
    last: np.ndarray
    """Whether this is the longest sample of its exchange."""
    end: np.ndarray
    """Tokens that were read of its span."""


def pooled_features(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    layers: Sequence[int] | None = None,
    max_response_tokens: int = MAX_RESPONSE_TOKENS,
    lengths: Sequence[int] = CHECKPOINTS,
    use_cache: bool = True,
    on_progress: OnProgress | None = None,
) -> Features:
    """Reads the pooled states of exchanges.

    Args:
        model: The model that will serve the probe.
        rows: Exchanges; longer texts than a probe needs are cut (prompts in the middle, responses
            at the end).
        at: At the end of the prompt, or along the response.
        layers: Block indices; None for all.
        max_response_tokens: Where responses are cut.
        lengths: In tokens, at which a response is sampled, beside its end.
        use_cache: Keep the result on disk, or take it from there.
        on_progress: Told how many chunks are read.

    Raises:
        InputError: a row cannot be encoded, or a layer is out of range.
    """
    every = tuple(range(len(model.layers)))
    chosen = tuple(layers) if layers is not None else every
    encoded = [_encode(model, row, at, max_response_tokens) for row in rows]
    if use_cache:
        for read in (chosen, every):  # what a sweep has read serves single layers too
            kept = _load(_path(model, encoded, at, read, lengths))
            if kept is not None and set(chosen) <= set(kept.layers):
                index = [kept.layers.index(layer) for layer in chosen]
                return replace(kept, values=kept.values[:, index], layers=chosen)
    features = _read(model, encoded, at, chosen, lengths, on_progress)
    if use_cache:
        _save(features, _path(model, encoded, at, chosen, lengths))
    return features


def prefixes(model: LoadedModel, rows: Sequence[LabelledExchange], features: Features) -> list[str]:
    """What had been said of the response at each sample, as text."""
    ids = [encode_response(model, row.response) for row in rows]
    return [
        model.tokenizer.decode(ids[row][:end], skip_special_tokens=True)
        for row, end in zip(features.row.tolist(), features.end.tolist(), strict=True)
    ]


def read_spans(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    layers: Sequence[int],
    *,
    max_response_tokens: int = MAX_RESPONSE_TOKENS,
    on_progress: OnProgress | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Every token's states, a row at a time: (row, float32 [token, layer, hidden]).

    Rows come shortest first, and few are in memory at once.

    Raises:
        InputError: as `pooled_features`.
    """
    encoded = [_encode(model, row, at, max_response_tokens) for row in rows]
    return _spans(model, encoded, tuple(layers), on_progress)


def _encode(model: LoadedModel, row: LabelledExchange, at: At, max_response_tokens: int) -> Encoded:
    """Token ids with `response_start` at the first token of the span that is pooled."""
    room = max_response_tokens if at == "answer" else 0
    limit = min(MAX_PROMPT_TOKENS, max(model.context_length - room, model.context_length // 2))
    turn = [{"role": "user", "content": row.prompt}]
    prompt = encode_chat(model, turn, max_tokens=limit)
    if at == "prompt":
        return Encoded(prompt, last_message_start(model, turn, prompt))
    response = encode_response(model, row.response)
    most = min(max_response_tokens, model.context_length - len(prompt))
    return Encoded((*prompt, *response[:most]), len(prompt))


def checkpoints(n_tokens: int, at: At, lengths: Sequence[int] = CHECKPOINTS) -> list[int]:
    """Lengths of a span at which it is sampled."""
    if at == "prompt":
        return [n_tokens]
    return [*(length for length in lengths if length < n_tokens), n_tokens]


def _read(
    model: LoadedModel,
    encoded: Sequence[Encoded],
    at: At,
    layers: tuple[int, ...],
    lengths: Sequence[int],
    on_progress: OnProgress | None,
) -> Features:
    samples: dict[int, list[Tensor]] = {}
    ends = [checkpoints(len(e.ids) - e.response_start, at, lengths) for e in encoded]
    for i, activations in _spans(model, encoded, layers, on_progress):
        samples[i] = pool_span(activations, ends[i])
    row = np.repeat(np.arange(len(encoded)), [len(each) for each in ends])
    return Features(
        values=torch.stack([sample for i in range(len(encoded)) for sample in samples[i]]),
        layers=layers,
        row=row,
        last=np.append(row[1:] != row[:-1], True),
        end=np.concatenate(ends),
    )


def _spans(
    model: LoadedModel,
    encoded: Sequence[Encoded],
    layers: tuple[int, ...],
    on_progress: OnProgress | None,
) -> Iterator[tuple[int, Tensor]]:
    """(row, float32 [token, layer, hidden]) of each span, shortest first, few in memory at once."""
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
    chunks: list[list[int]] = [[]]
    size = 0
    for i in order:
        if size + len(encoded[i].ids) > CHUNK_TOKENS and chunks[-1]:
            chunks.append([])
            size = 0
        chunks[-1].append(i)
        size += len(encoded[i].ids)
    for chunk in told(chunks, on_progress):
        read = read_activations(model, [encoded[i] for i in chunk], layers, position="all")
        assert read.offsets is not None  # noqa: S101 (position is `all`)
        for i, start, end in zip(chunk, read.offsets[:-1], read.offsets[1:], strict=True):
            yield i, read.values[start:end]


def pool_span(activations: Tensor, ends: Sequence[int]) -> list[Tensor]:
    """float16 [layer, pooling, hidden] of the first tokens of a span, for each number of them."""
    sums = activations.cumsum(0)
    pooled = [torch.stack([activations[end - 1], sums[end - 1] / end], dim=1) for end in ends]
    return [each.clamp(-LARGEST, LARGEST).half() for each in pooled]


def _path(
    model: LoadedModel,
    encoded: Sequence[Encoded],
    at: At,
    layers: tuple[int, ...],
    lengths: Sequence[int],
) -> Path:
    """Where features are kept: named by the sha256 of everything that they depend on."""
    digest = hashlib.sha256()
    info = model.info
    numbers = [info.weights_sha256, info.organism, info.dtype, info.quantization, str(model.device)]
    digest.update(json.dumps([FORMAT, numbers, at, layers, tuple(lengths)]).encode())
    for each in encoded:
        digest.update(np.array([each.response_start, len(each.ids), *each.ids], "<i8").tobytes())
    return cache_dir() / "features" / f"{digest.hexdigest()}.safetensors"


def _load(path: Path) -> Features | None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kept = load_file(path)
        path.touch()  # the oldest are removed first
        layers = tuple(kept["layers"].tolist())
        row, last, end = (kept[name].numpy() for name in ("row", "last", "end"))
        return Features(kept["values"], layers, row, last, end)
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or left damaged by a full disk: read again


def _save(features: Features, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    arrays = {
        "values": features.values.contiguous(),
        "layers": torch.tensor(features.layers),
        "row": torch.from_numpy(features.row),
        "last": torch.from_numpy(features.last),
        "end": torch.from_numpy(features.end),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            save_file(arrays, partial)
        sizes = {file: file.stat() for file in path.parent.glob("*.safetensors")}
        total = sum(each.st_size for each in sizes.values())
        for file in sorted(sizes, key=lambda file: sizes[file].st_mtime)[:-1]:
            if total <= MAX_CACHE_BYTES:
                break
            total -= sizes[file].st_size
            file.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # they are read again next time, that is all
        log.warning("Features could not be kept in %s: %s", path.parent, first_line(error))
