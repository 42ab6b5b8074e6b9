"""What a feature does over a stream of text: how often it fires, where it fires most, what follows.

Memory does not grow with the text. Features are made a context at a time, and of each only its
strongest token in a context goes on to compete for a place among the few that are kept, so that
one text that repeats itself cannot fill them all.

Labels that are made of this are held against other text. A label names tokens. It predicts that the
feature fires on them (or after them) and nowhere else. Its reliability is the balanced accuracy of
that prediction over held-out tokens: the mean of the share of firings that it foresaw and the share
of silences that it foresaw. For a prediction that says yes or no this is the AUROC as well: 0.5 is
chance, 1 is perfect, whatever the density.

What it cannot tell: whether a feature that is not about single tokens (a topic, a tone, a place in
a text) is sensible; its label of tokens is then poor, and the number says so of the label, not of
the feature. It says nothing about what the feature does to the model, and holds for text like the
held-out text only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.reading.activations import read_activations
from modelassay.reading.logit_lens import unembed
from modelassay.sae.files import SAE
from modelassay.sae.stream import encode_contexts
from modelassay.statistics import N_CLUSTER_RESAMPLES, SEED

TEXTS_AT_ONCE = 32
EXAMPLES = 12
"""Strongest tokens to keep of each feature, at most one a context; as many are drawn at random."""
AROUND = 6
"""Tokens to keep on each side of the strongest."""
GROUPS = 50
"""Held-out texts are dealt into so many groups, which are what an interval draws from: tokens of
one text are not independent."""
MIN_GROUPS = 5
"""A feature that fires in fewer of them has no interval."""
FEATURES_AT_ONCE = 4096


@dataclass(frozen=True)
class Fired:
    """A context and the features of its tokens, but for the first, which is not read."""

    text: int
    """Number of the text in the stream."""
    ids: tuple[int, ...]
    features: Tensor
    """float32 [token, width] on the CPU; row i belongs to ids[i + 1]."""


@dataclass(frozen=True)
class FeatureEvidence:
    """Of all features of an SAE."""

    density: Tensor
    """float64 [width], share of tokens on which a feature fires."""
    values: Tensor
    """float32 [width, examples], activations from strong to weak; 0 where there is none."""
    windows: Tensor
    """int64 [width, examples, 2 · around + 1], token ids with the one that fired in the middle;
    -1 where there is none."""
    sampled: Tensor
    """int64 [width, examples, 2], ids of the token before and of the one that fired, drawn from all
    firings alike; -1 where there is none."""
    n_tokens: int


@torch.inference_mode()
def read_features(
    model: LoadedModel, sae: SAE, texts: Iterable[str], context: int
) -> Iterator[Fired]:
    """Features of a stream of texts, a context at a time.

    Args:
        model: The model, which the SAE fits.
        sae: What to take its activations apart with.
        texts: The stream.
        context: Tokens that are read together.
    """
    module, count, stream = sae.module, 0, iter(texts)
    while chunk := list(islice(stream, TEXTS_AT_ONCE)):
        owners, contexts = [], []
        for number, text in enumerate(chunk, count):
            found = encode_contexts(model, [text], context)
            owners += [number] * len(found)
            contexts += found
        count += len(chunk)
        if not contexts:
            continue
        read = read_activations(model, contexts, [sae.layer], position="all")
        offsets = read.offsets or ()
        for i, (owner, encoded) in enumerate(zip(owners, contexts, strict=True)):
            rows = read.values[offsets[i] : offsets[i + 1], 0]
            yield Fired(owner, encoded.ids, module.encode(rows.to(module.device)).float().cpu())


def gather_evidence(
    model: LoadedModel,
    sae: SAE,
    texts: Iterable[str],
    *,
    tokens: int,
    context: int,
    on_progress: OnProgress | None = None,
) -> FeatureEvidence:
    """Reads a stream of texts until enough tokens were seen.

    Args:
        model: The model.
        sae: Whose features.
        texts: The stream.
        tokens: Read up to the end of the context in which this many are reached.
        context: Tokens that are read together.
        on_progress: Told (tokens read, tokens in all).

    Raises:
        InputError: there is no text that makes two tokens.
    """
    strongest = _Strongest(sae.width, AROUND)
    drawn, draw = _Strongest(sae.width, 1), torch.Generator().manual_seed(SEED)
    fired, seen = torch.zeros(sae.width, dtype=torch.long), 0
    for part in read_features(model, sae, texts, context):
        strongest.add(part.features, part.ids)
        fires = part.features > 0
        fired += fires.sum(dim=0)
        # Of numbers drawn for every firing, the largest are a fair sample of the firings.
        lots = torch.zeros_like(part.features)
        lots[fires] = torch.rand(int(fires.sum()), generator=draw).clamp_min(1e-9)
        drawn.add(lots, part.ids)
        seen += len(part.features)
        if on_progress:
            on_progress(min(seen, tokens), tokens)
        if seen >= tokens:
            break
    if not seen:
        raise InputError("The texts to label features with are empty.")
    values, windows = strongest.kept()
    return FeatureEvidence(fired.double() / seen, values, windows, drawn.kept()[1][:, :, :2], seen)


class _Strongest:
    """The strongest tokens of every feature so far: a heap for each, all in one tensor."""

    def __init__(self, width: int, around: int) -> None:
        self.around = around
        self.values = torch.zeros((width, EXAMPLES))
        self.windows = torch.full((width, EXAMPLES, 2 * around + 1), -1, dtype=torch.int32)
        self.waiting: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []

    def add(self, features: Tensor, ids: tuple[int, ...]) -> None:
        """Takes the strongest token of each feature in a context, see `Fired`."""
        values, at = features.max(dim=0)
        self.waiting.append((values, at + 1, ids))
        if len(self.waiting) == TEXTS_AT_ONCE:
            self._merge()

    def kept(self) -> tuple[Tensor, Tensor]:
        """Values and windows, as in `FeatureEvidence`."""
        self._merge()
        there = self.values > 0
        return self.values, torch.where(there[:, :, None], self.windows, -1).long()

    def _merge(self) -> None:
        if not self.waiting:
            return
        longest, reach = max(len(ids) for _, _, ids in self.waiting), self.around
        ids = torch.full((len(self.waiting), longest + 2 * reach), -1, dtype=torch.int32)
        for i, (_, _, row) in enumerate(self.waiting):
            ids[i, reach : reach + len(row)] = torch.tensor(row, dtype=torch.int32)
        new = torch.stack([values for values, _, _ in self.waiting], dim=1)
        at = torch.stack([position for _, position, _ in self.waiting], dim=1)
        self.waiting = []
        old = self.values.shape[1]
        self.values, chosen = torch.cat([self.values, new], dim=1).topk(old, dim=1)
        kept = chosen.clamp(max=old - 1)[..., None].expand(-1, -1, 2 * reach + 1)
        self.windows = self.windows.gather(1, kept)
        feature, place = ((chosen >= old) & (self.values > 0)).nonzero(as_tuple=True)
        source = chosen[feature, place] - old
        first = at[feature, source]  # what lies `reach` before it, in the padded row
        steps = torch.arange(2 * reach + 1)
        self.windows[feature, place] = ids[source[:, None], first[:, None] + steps]


@torch.inference_mode()
def promoted_ids(model: LoadedModel, sae: SAE, top: int) -> Tensor:
    """The tokens that a feature's direction speaks for, by the logit lens.

    What the model's final layers make of the direction, less what they make of nothing (the bias of
    a layer norm is the same for all features).

    Returns:
        int64 [width, top].
    """
    rows = sae.module.W_dec.detach().float()
    # Norms add a small number to what they divide by; at a usual length it does not count.
    rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12) * rows.shape[1] ** 0.5
    nothing = next(unembed(model, torch.zeros_like(rows[:1])))
    parts = unembed(model, rows)
    return torch.cat([(logits - nothing).topk(top, dim=1).indices.cpu() for logits in parts])


@dataclass(frozen=True)
class Counts:
    """Held-out tokens, by group of texts and feature."""

    tokens: np.ndarray
    """int64 [group]."""
    fired: np.ndarray
    """int32 [group, width]."""
    predicted: np.ndarray
    """int32 [group, width], tokens on which the label says that the feature fires."""
    both: np.ndarray
    """int32 [group, width]."""


@dataclass(frozen=True)
class Scores:
    """Reliability of every label; NaN where it could not be measured."""

    value: np.ndarray
    """float64 [width]."""
    low: np.ndarray
    high: np.ndarray
    """95% bootstrap interval over groups of texts."""
    n_fired: np.ndarray
    """int64 [width], held-out tokens on which the feature fires."""
    n_tokens: int


def count_predictions(
    parts: Iterable[Fired], kinds: np.ndarray, on: Any, after: Any, width: int
) -> Counts:
    """Holds labels against what features do on held-out text.

    Args:
        parts: The text.
        kinds: int [vocabulary], tokens that count as one have the same number.
        on: Sparse bool [kind, width], whether a feature is said to fire on tokens of a kind.
        after: The same, of the token before.
        width: Features.
    """
    tokens = np.zeros(GROUPS, dtype=np.int64)
    fired, predicted, both = (np.zeros((GROUPS, width), dtype=np.int32) for _ in range(3))
    for part in parts:
        group = part.text % GROUPS
        read = kinds[np.array(part.ids)]
        said = on[read[1:]].maximum(after[read[:-1]])
        firing = csr_matrix((part.features > 0).numpy())
        tokens[group] += len(part.features)
        fired[group] += _per_feature(firing, width)
        predicted[group] += _per_feature(said, width)
        both[group] += _per_feature(said.multiply(firing).tocsr(), width)
    return Counts(tokens, fired, predicted, both)


def _per_feature(cells: Any, width: int) -> np.ndarray:
    return np.bincount(cells.indices[cells.data != 0], minlength=width).astype(np.int32)


def score_labels(counts: Counts) -> Scores:
    """Balanced accuracy of every label, with its interval.

    A feature that never fires, fires always, or has a label that names no token has no score.
    """
    n = int(counts.tokens.sum())
    n_fired = counts.fired.sum(axis=0, dtype=np.int64)
    width = len(n_fired)
    scored = (n_fired > 0) & (n_fired < n) & (counts.predicted.sum(axis=0) > 0)
    value = np.where(scored, _balanced(counts, np.ones((1, len(counts.tokens))))[0], np.nan)
    low, high = np.full(width, np.nan), np.full(width, np.nan)
    drawn_from = int((counts.tokens > 0).sum())
    enough = scored & ((counts.fired > 0).sum(axis=0) >= MIN_GROUPS)
    if drawn_from >= MIN_GROUPS:
        there = np.flatnonzero(counts.tokens > 0)
        rng = np.random.default_rng(SEED)
        share = np.full(drawn_from, 1 / drawn_from)
        draws = rng.multinomial(drawn_from, share, size=N_CLUSTER_RESAMPLES).astype(np.float32)
        for columns in np.array_split(
            np.flatnonzero(enough), max(1, enough.sum() // FEATURES_AT_ONCE)
        ):
            part = Counts(
                counts.tokens[there],
                counts.fired[np.ix_(there, columns)],
                counts.predicted[np.ix_(there, columns)],
                counts.both[np.ix_(there, columns)],
            )
            # A draw without a firing cannot be scored; with firings in five groups it is rare.
            low[columns], high[columns] = np.nanquantile(
                _balanced(part, draws), [0.025, 0.975], axis=0
            )
    return Scores(value, low, high, n_fired, n)


def _balanced(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """Balanced accuracy [draw, width] with groups weighted [draw, group]; NaN without firings."""
    tokens = weights @ counts.tokens[:, None]
    fired, predicted, both = (
        weights @ part.astype(np.float32) for part in (counts.fired, counts.predicted, counts.both)
    )
    silent = tokens - fired
    with np.errstate(invalid="ignore", divide="ignore"):
        return (both / fired + 1 - (predicted - both) / silent) / 2
