"""What a feature does over a stream of text: how often it fires, where it fires most, what follows.

Memory does not grow with the text. Features are made a context at a time, and of each only its
strongest token in a context goes on to compete for a place among the few that are kept, so that
one text that repeats itself cannot fill them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.reading.activations import read_activations
from modelassay.reading.logit_lens import unembed
from modelassay.sae.files import SAE
from modelassay.sae.stream import encode_contexts

TEXTS_AT_ONCE = 32
SEED = 0


@dataclass(frozen=True)
class Fired:
    """A context and the features of its tokens, but for the first, which is not read."""

    text: int
    """Number of the text in the stream."""
    ids: tuple[int, ...]
    features: Tensor
    """float32 [token, width] on the CPU; row i belongs to ids[i + 1]."""


@dataclass(frozen=True)
class Evidence:
    """Of all features of a dictionary."""

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
    examples: int,
    around: int,
    context: int,
    on_progress: OnProgress | None = None,
) -> Evidence:
    """Reads a stream of texts until enough tokens were seen.

    Args:
        model: The model.
        sae: Whose features.
        texts: The stream.
        tokens: Read up to the end of the context in which this many are reached.
        examples: Strongest tokens to keep of each feature, at most one a context; as many are drawn
            at random, by a fixed seed.
        around: Tokens to keep on each side of them.
        context: Tokens that are read together.
        on_progress: Told (tokens read, tokens in all).

    Raises:
        InputError: there is no text that makes two tokens.
    """
    strongest = _Strongest(sae.width, examples, around)
    drawn, draw = _Strongest(sae.width, examples, 1), torch.Generator().manual_seed(SEED)
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
    return Evidence(fired.double() / seen, values, windows, drawn.kept()[1][:, :, :2], seen)


class _Strongest:
    """The strongest tokens of every feature so far: a heap for each, all in one tensor."""

    def __init__(self, width: int, examples: int, around: int) -> None:
        self.around = around
        self.values = torch.zeros((width, examples))
        self.windows = torch.full((width, examples, 2 * around + 1), -1, dtype=torch.int32)
        self.waiting: list[tuple[Tensor, Tensor, tuple[int, ...]]] = []

    def add(self, features: Tensor, ids: tuple[int, ...]) -> None:
        """Takes the strongest token of each feature in a context, see `Fired`."""
        values, at = features.max(dim=0)
        self.waiting.append((values, at + 1, ids))
        if len(self.waiting) == TEXTS_AT_ONCE:
            self._merge()

    def kept(self) -> tuple[Tensor, Tensor]:
        """Values and windows, as in `Evidence`."""
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
