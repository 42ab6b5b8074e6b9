"""Has a direction been erased from the weights? A check that needs no prompt and no base model.

Directional ablation ("abliteration", Arditi et al. 2024) replaces every matrix W that writes to the
residual stream by (I - r rᵀ) W. Whatever r was, it is now a direction that no layer can write:
the Gram matrix W Wᵀ has an eigenvalue of (almost) zero, where the smallest eigenvalues of an
untouched matrix lie close together. So the fingerprint is the ratio of neighbouring small
eigenvalues of the summed, normalised Gram matrices. It is looked for in what attention writes, in
what MLPs write (tools often change one of the two only) and in both together; in each layer and
in all of them.

The smallest eigenvalue of a random square matrix is near zero by itself (the hard edge of the
Marchenko-Pastur law), so matrices are judged only where their columns are well more than the hidden
size: attention outputs, which often are square, with those of the neighbouring layers.

A direction that is weakened in a band of layers, by any strength near 1 and with rows scaled back
to their norms, leaves no hole and is *suspected* (`suspicion`), with a p-value.

What is certain: full ablation of one to four directions, in all layers or a band of them, with one
direction for all or, where a layer has columns enough, one for each, also after rounding to bf16 or
8 bits. What it cannot see without the base: partial ablation (W - ½ r rᵀ W leaves an ordinary
small eigenvalue; at a strength of 0.8 and with one direction for all layers the sum over layers
still shows it), reflection (W - 2 r rᵀ W leaves all eigenvalues as they were), ablation at run
time, an adapter that is not merged, and any fine-tune.

Matrices come and go one at a time. Large models are searched by runs of neighbours only, and very
large ones in a sample of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import chain
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.measures.spectra import LARGE, gram_of, smallest_pairs
from modelassay.measures.suspicion import (
    FLOOR,
    UNWRITTEN,
    Band,
    BandSearch,
    Suspicion,
    judge_band,
    neighbours,
    rows_scaled,
    suspect,
)
from modelassay.models import LoadedModel
from modelassay.models.layers import LAYER_INDEX, OTHER_TOWERS, text_config
from modelassay.models.loading import has_gpu
from modelassay.models.names import loaded_places
from modelassay.models.quantization import unpacked
from modelassay.models.writers import OUTPUTS, Kind, Writer, find_writers
from modelassay.progress import OnProgress, told

ERASED_RATIO = 0.05
"""A neighbouring-eigenvalue ratio below this is a hole. Untouched matrices measured lie above 0.4
(docs/method.md), erased ones below 0.001 in fp32 and bf16 and 0.02 in int8."""
ERASED_RATIO_IN_SUM = 0.1
"""The same for the sum over all layers, which is smoother (0.975 untouched), so that a direction
that all layers share shows after coarse rounding too."""
MAX_ERASED_DIRECTIONS, NULL = 4, 1e-5
"""A larger null space is padding or a low-rank design, not an erased concept: more directions with
less than this share of the mean, which is what float32 arithmetic leaves of nothing."""
MIN_ERASED_LAYERS = 2
"""One layer alone may be odd by nature (the first and last ones are)."""
MIN_COLUMNS = 1.5
"""Times the hidden size. Of 2,000 random matrices of hidden size 32, the smallest ratio was 0.16
with 1.5 times as many columns, 0.06 with 1.25 times and 0.0000 with as many; wider ones are
smoother (docs/method.md)."""
COPIED = 0.3
"""Relative difference of the cosines between rows below which a layer is a copy of another, trained
or not; those of unrelated matrices differ by about 1.4."""
MAX_TOGETHER = 4
"""Neighbouring layers that are added up, at most, to have columns enough."""
ERASED_SHARE = 0.005
"""Of the mean eigenvalue: an erased direction keeps less than 0.001 in 8 bits and 1e-5 in bf16.
That all directions keep more takes a Cholesky decomposition to show, which costs a tenth of the
smallest eigenvalues."""
SHARED_COSINE = 0.9
VAST, SAMPLED = 6144, 4
"""Hidden size from which a sample of the layers is searched unless all are asked for, so many runs
of neighbours: a layer takes ten seconds."""


@dataclass(frozen=True)
class AblationEvidence:
    """Outcome of the search for erased directions."""

    detected: bool | None
    """None when the weights could not be searched; `reason` says why."""
    eigenvalue_ratio: float | None
    """Smallest ratio of neighbouring small eigenvalues of the Gram matrix over all layers."""
    layers: tuple[int, ...]
    """Layers in which a direction is erased."""
    ratio_by_layer: dict[int, float]
    n_directions: int
    """Erased directions in the affected layer where most are."""
    shared: bool | None
    """Whether the affected layers lack the same direction; None when none is affected."""
    reason: str | None = None
    by_kind: dict[Kind, tuple[int, ...]] = field(default_factory=dict)
    """Layers of `layers` in which only what attention, or only what the MLP writes lacks a
    direction; empty where no kind lacks one by itself."""
    limits: tuple[str, ...] = ()
    """What could not be judged, in words."""
    suspected: Suspicion | None = None
    """A weaker sign, with its p-value; None where there is none, or where `detected` says more."""

    @property
    def suspicion_text(self) -> str | None:
        """What is suspected and how to make sure, as a sentence; None where nothing is."""
        return self.suspected.text if self.suspected and not self.detected else None

    @property
    def blocks(self) -> tuple[int, ...]:
        """`layers` under the name that it had in 0.1."""
        return self.layers

    @property
    def erased_from(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """What was changed, in words, each with its layers."""
        alone = {layer for layers in self.by_kind.values() for layer in layers}
        parts = [("weights", tuple(layer for layer in self.layers if layer not in alone))]
        parts += [(OUTPUTS[kind], layers) for kind, layers in self.by_kind.items()]
        return tuple((what, layers) for what, layers in parts if layers)


@dataclass(frozen=True)
class _Spectrum:
    ratio: float
    n_erased: int
    """How many eigenvalues lie below the gap."""
    vectors: Tensor
    """[hidden, n_erased] their unit eigenvectors."""


def search_ablation(
    model: LoadedModel, on_progress: OnProgress | None = None, *, all_layers: bool = False
) -> AblationEvidence:
    """Searches the weights of a loaded model for erased directions.

    The weights in memory are searched, which are those that act. Where they were packed on loading
    or left on the disk, the files are read.

    Args:
        model: A loaded model.
        on_progress: Told (layers done, layers in all).
        all_layers: Search all layers of a very large model too, not a sample of them.
    """
    writers = find_writers(model.network)
    if writers.unsure:
        return unsearched(writers.unsure)
    with ExitStack() as stack:
        readers = writer_readers(model, writers.found, stack)
        hidden = text_config(model.network.config).hidden_size
        return search_writers(readers, hidden, all_layers=all_layers, on_progress=on_progress)


Tensors = Iterable[tuple[str, Callable[[], Tensor]]]
"""Names, each with a function that reads its tensor."""


def stored_tensors(model: LoadedModel, stack: ExitStack) -> Tensors:
    """Names and readers of a model's weights: of its files where these hold plain weights.

    For adapters, GGUF files and checkpoints that are stored quantised, the weights in memory.

    Args:
        model: A loaded model.
        stack: Closes the files.
    """
    files = plain_files(model)
    return memory_tensors(model) if files is None else open_shards(files, stack)


def plain_files(model: LoadedModel) -> list[Path] | None:
    """The files that hold a model's plain weights; None for adapters, GGUF and stored packed.

    None as well where two weights in them differ by a prefix alone: which of the two the model
    computes with, and which is there to be looked at, only its memory tells.
    """
    packed = model.info.quantization not in (None, "8bit", "4bit")
    if model.adapter is not None or model.source.gguf_file or packed:
        return None
    files = model.source.weight_files()
    with ExitStack() as stack:
        names = [name for name, _ in open_shards(files, stack) if not OTHER_TOWERS.search(name)]
    return files if len(names) == len({plain_name(name) for name in names}) else None


def plain_name(name: str) -> str:
    """A weight's name without the prefixes that differ between copies of a model."""
    if (index := LAYER_INDEX.search(name)) is not None:
        return f"{index.group(1)}.{name[index.end() :]}"
    return ".".join(name.split(".")[-2:])


def memory_tensors(model: LoadedModel) -> Tensors:
    """Names and readers of the weights that a loaded model computes with."""
    for name, value in model.network.named_parameters():
        module = model.network.get_submodule(name.rpartition(".")[0])
        yield name, partial(unpacked, value, module)


def writer_readers(
    model: LoadedModel, writers: Sequence[Writer], stack: ExitStack
) -> dict[Writer, list[Callable[[], Tensor]]]:
    """Readers of each writer: of its parameter, or of what files hold of it, maybe in parts.

    Args:
        model: A loaded model.
        writers: Its writers.
        stack: Closes the files.
    """
    memory = dict(memory_tensors(model))
    parameters = dict(model.network.named_parameters())
    wanted = {w.name for w in writers if not _is_plain(parameters[w.name])}
    stored: dict[str, list[Callable[[], Tensor]]] = {}
    files = plain_files(model) if wanted else None
    if files is not None:
        place_of = loaded_places(model.network)
        for name, read in open_shards(files, stack):
            if (loaded := place_of(name).name) in wanted:
                stored.setdefault(loaded, []).append(read)
    return {w: stored.get(w.name) or [memory[w.name]] for w in writers}


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is there as numbers: one byte and a scale beside it (fp8) is packed too."""
    return weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta


def open_shards(files: Sequence[Path], stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Names and readers of all tensors in safetensors files; nothing is read yet."""
    from safetensors import safe_open

    for file in files:
        shard = stack.enter_context(safe_open(str(file), framework="pt"))
        for name in shard.keys():  # noqa: SIM118 (not a dict)
            yield name, partial(shard.get_tensor, name)


def search_writers(
    readers: Mapping[Writer, Sequence[Callable[[], Tensor]]],
    hidden_size: int,
    *,
    all_layers: bool = False,
    on_progress: OnProgress | None = None,
) -> AblationEvidence:
    """Searches writing matrices for directions that they cannot write.

    Args:
        readers: What reads each writer; several readers where it is stored in parts.
        hidden_size: Width of the residual stream.
        all_layers: Search all layers of a model of hidden size `VAST` and more, not a sample.
        on_progress: Told (layers done, layers in all).
    """
    layers: dict[int, dict[Kind, list[Writer]]] = {}
    for writer in readers:
        layers.setdefault(writer.layer, {}).setdefault(writer.kind, []).append(writer)
    search = _search_large if hidden_size >= LARGE else _search_small
    source = _Source(readers, layers, hidden_size, "cuda" if has_gpu() else "cpu")
    try:
        return search(source, all_layers, on_progress)
    except _UnsearchedError as error:
        return unsearched(str(error))


class _UnsearchedError(Exception):
    """Why the weights cannot be searched."""


@dataclass(frozen=True)
class _Source:
    """Where the Gram matrices come from."""

    readers: Mapping[Writer, Sequence[Callable[[], Tensor]]]
    layers: Mapping[int, Mapping[Kind, Sequence[Writer]]]
    hidden: int
    device: str

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of writers, in order."""
        return sorted({kind for by_kind in self.layers.values() for kind in by_kind})

    def having(self, kind: Kind) -> list[int]:
        """Layers with writers of a kind, in order."""
        return [layer for layer in sorted(self.layers) if kind in self.layers[layer]]

    def gram(self, layer: int, kind: Kind) -> tuple[Tensor, int]:
        """What the writers of a kind in a layer make: their Gram matrix, and its columns.

        Each writer's has a mean eigenvalue of 1.
        """
        total, columns = None, 0
        for writer in self.layers[layer].get(kind, ()):
            parts = [read() for read in self.readers[writer]]
            if any(part.is_meta for part in parts):
                raise _UnsearchedError(
                    f"{writer.name} was left on the disk and is stored otherwise"
                )
            if not all(_is_plain(part) and self.hidden in part.shape for part in parts):
                raise _UnsearchedError("the weights are stored packed (quantised)")
            gram, n = gram_of([writer.rows(part) for part in parts], self.device)
            if not gram.diagonal().isfinite().all():
                raise InputError(
                    f"Layer {layer} has weights that are not numbers (NaN or infinite)."
                )
            gram *= self.hidden / max(float(gram.trace()), 1e-30)
            total, columns = gram if total is None else total.add_(gram), columns + n
        if total is None:
            total = torch.zeros(self.hidden, self.hidden, device=self.device)
        return total, columns


def _search_small(
    source: _Source, all_layers: bool, on_progress: OnProgress | None
) -> AblationEvidence:
    """All layers, by themselves and in every band, both kinds apart and together."""
    del all_layers
    hidden, kinds = source.hidden, source.kinds
    both = _Group(hidden, screen=False)
    alone: dict[Kind, _Group] = {
        kind: _Group(hidden, screen=True) for kind in kinds if len(kinds) > 1
    }
    bands = {kind: BandSearch(kind, source.having(kind), MIN_COLUMNS * hidden) for kind in kinds}
    for layer in told(sorted(source.layers), on_progress):
        grams = {kind: source.gram(layer, kind) for kind in kinds}
        summed = torch.stack([gram for gram, _ in grams.values()]).sum(dim=0)
        new = both.add(layer, summed, sum(columns for _, columns in grams.values()))
        for kind, (gram, columns) in grams.items():
            if columns and kind in alone:
                new = alone[kind].add(layer, gram, columns)
            if kind in source.layers[layer]:
                bands[kind].add(layer, gram, new)
    found = _evidence(both, alone)
    judged = [band for search in bands.values() for band in search.bands]
    return replace(found, suspected=None if found.detected else suspect(judged))


def _search_large(
    source: _Source, all_layers: bool, on_progress: OnProgress | None
) -> AblationEvidence:
    """Neighbours together, one kind after the other; a sample of them unless all are wanted.

    Holds four Gram matrices at a time, which at a hidden size of 8192 are a gigabyte.
    """
    alone: dict[Kind, _Group] = {}
    judged: list[Band] = []
    sampled = None if all_layers or source.hidden < VAST else SAMPLED
    runs = {kind: neighbours(source.having(kind), sampled) for kind in source.kinds}
    done, to_do = 0, sum(len(run) for each in runs.values() for run in each)
    for kind in source.kinds:
        group = alone[kind] = _Group(source.hidden, screen=False)
        for run in runs[kind]:
            total = scaled = None
            columns = 0
            for layer in run:
                if on_progress:
                    on_progress(done, to_do)
                done += 1
                gram, n = source.gram(layer, kind)
                columns += n
                total = gram.clone() if total is None else total.add_(gram)
                gram = rows_scaled(gram)
                scaled = gram if scaled is None else scaled.add_(gram)
            if total is None or scaled is None or columns < MIN_COLUMNS * source.hidden:
                continue
            group.take(run, total)
            del total
            judged.append(judge_band(kind, run, scaled))
    if on_progress:
        on_progress(done, to_do)
    found = _evidence(None, alone)
    n_read, n_all = len({*chain(*chain(*runs.values()))}), len(source.layers)
    if n_read < n_all:
        read = f"{n_read} of {n_all} layers were searched; --mode full searches all"
        found = replace(found, limits=(*found.limits, read))
    return replace(found, suspected=None if found.detected else suspect(judged))


class _Group:
    """The search in what some of the writers write, fed one layer after the other."""

    def __init__(self, hidden: int, *, screen: bool) -> None:
        self._screen = screen
        self._needed = MIN_COLUMNS * hidden
        self._recent: list[tuple[int, Tensor, int]] = []
        self._patterns: list[Tensor] = []
        self._total: Tensor | None = None
        self._columns = 0
        self.layers: list[int] = []
        self.judged: list[tuple[int, ...]] = []
        """Layers, or the neighbours that have columns enough together."""
        self.spectra: dict[tuple[int, ...], _Spectrum] = {}
        """Of those, or with `screen` of those among them that may have a hole."""

    def add(self, layer: int, gram: Tensor, columns: int) -> int:
        """Takes in a layer's Gram matrix [hidden, hidden] of so many columns.

        Returns:
            How many of the columns are its own: none where it repeats one of the layers before.
        """
        # Stacked models repeat layers, and a copy adds no columns of its own.
        pattern = _pattern(gram)
        least = COPIED * float(pattern.norm())
        if any(float(torch.dist(pattern, other)) < least for other in self._patterns):
            columns = 0
        self._patterns = [*self._patterns, pattern][-MAX_TOGETHER:]
        self.layers.append(layer)
        self._total = gram.clone() if self._total is None else self._total.add_(gram)
        self._columns += columns
        self._recent = [*self._recent, (layer, gram, columns)][-MAX_TOGETHER:]
        for n in range(1, len(self._recent) + 1):
            last = self._recent[-n:]
            if sum(columns for _, _, columns in last) >= self._needed:
                grams = torch.stack([gram for _, gram, _ in last])
                self._judge(tuple(layer for layer, _, _ in last), grams.sum(dim=0))
                break
        return columns

    def take(self, layers: tuple[int, ...], gram: Tensor) -> None:
        """Takes in what some layers make together, whose columns suffice."""
        self.layers += layers
        self._judge(layers, gram)

    def _judge(self, layers: tuple[int, ...], gram: Tensor) -> None:
        self.judged.append(layers)
        if not (self._screen and _whole(gram)):
            self.spectra[layers] = _spectrum(gram)

    @cached_property
    def in_sum(self) -> _Spectrum | None:
        """Of all layers together; None where even these have too few columns, or were not added."""
        if self._total is None or self._columns < self._needed:
            return None
        return _spectrum(self._total)

    @property
    def holes(self) -> list[_Spectrum]:
        """Spectra with a hole."""
        return [spectrum for spectrum in self.spectra.values() if spectrum.ratio < ERASED_RATIO]

    @property
    def shared_hole(self) -> bool:
        """A direction missing from the sum is missing from every layer."""
        return self.in_sum is not None and self.in_sum.ratio < ERASED_RATIO_IN_SUM

    @property
    def erased(self) -> tuple[int, ...]:
        """Layers that lack a direction."""
        if self.shared_hole:
            return tuple(self.layers)
        if not self.holes or len(self.holes) < min(MIN_ERASED_LAYERS, len(self.judged)):
            return ()
        held = [key for key, spectrum in self.spectra.items() if spectrum.ratio < ERASED_RATIO]
        return tuple(sorted({layer for key in held for layer in key}))

    @property
    def ratio_by_layer(self) -> dict[int, float]:
        """The smallest ratio that each layer has a part in."""
        found: dict[int, float] = {}
        for key, spectrum in self.spectra.items():
            for layer in key:
                found[layer] = min(spectrum.ratio, found.get(layer, inf))
        return found

    def limits(self, what: str) -> tuple[str, ...]:
        """What cannot be judged of these writers, in words."""
        if self.in_sum is None and not self.judged:
            return (f"the {what} have too few columns to be searched",)
        if any(len(key) > 1 for key in self.judged) or not self.judged:
            return (
                f"the {what} of single layers have too few columns to be searched, so that a"
                " direction of its own in each layer is not seen",
            )
        return ()


def _evidence(both: _Group | None, alone: Mapping[Kind, _Group]) -> AblationEvidence:
    """What the searches in all writers, if any, and in those of each kind say together."""
    everywhere = both.erased if both else ()
    by_kind: dict[Kind, tuple[int, ...]] = {
        kind: tuple(layer for layer in group.erased if layer not in everywhere)
        for kind, group in alone.items()
    }
    by_kind = {kind: layers for kind, layers in by_kind.items() if layers}
    first = [both] if both else list(alone.values())
    deciding = first if everywhere or not by_kind else []
    deciding += [alone[kind] for kind in by_kind]
    limits: tuple[str, ...] = both.limits("weights") if both else ()
    for kind, group in alone.items():
        limits += group.limits(OUTPUTS[kind])
    if not any(group.judged or group.in_sum for group in first):
        return unsearched(next(iter(limits), "no matrix writes to the residual stream"))
    holes = [hole for group in deciding for hole in group.holes]
    shared = [group.in_sum for group in deciding if group.in_sum and group.shared_hole]
    erased = tuple(sorted({*everywhere, *(x for layers in by_kind.values() for x in layers)}))
    sums = [group.in_sum.ratio for group in deciding[:1] if group.in_sum]
    ratios = {layer: r for group in first for layer, r in group.ratio_by_layer.items()}
    for group in first:  # the smaller one where both kinds have a layer
        ratios |= {x: min(r, ratios[x]) for x, r in group.ratio_by_layer.items()}
    return AblationEvidence(
        detected=bool(erased),
        eigenvalue_ratio=sums[0] if sums else min(ratios.values(), default=None),
        layers=erased,
        ratio_by_layer=ratios,
        n_directions=max((s.n_erased for s in shared or holes), default=0) if erased else 0,
        shared=bool(shared) or _share_subspace([s.vectors for s in holes]) if erased else None,
        by_kind=by_kind,
        limits=limits,
    )


def _share_subspace(bases: Sequence[Tensor]) -> bool:
    """Whether most pairs of orthonormal bases span the same space (mean squared cosine near 1)."""
    overlaps = [
        float((bases[i].T @ bases[j]).square().sum()) / min(bases[i].shape[1], bases[j].shape[1])
        for i in range(len(bases))
        for j in range(i)
    ]
    return median(overlaps) > SHARED_COSINE**2 if overlaps else True


def _pattern(gram: Tensor) -> Tensor:
    """The cosines between rows: what tells layers apart whose rows have like sizes."""
    return rows_scaled(gram).fill_diagonal_(0.0)


def _spectrum(gram: Tensor) -> _Spectrum:
    """The smallest ratio of neighbouring eigenvalues among the first few."""
    # A coordinate that nothing writes was padded or pruned: no method erases one alone.
    diagonal = gram.diagonal()
    written = diagonal > UNWRITTEN * diagonal.mean()
    if not written.any():
        return _Spectrum(1.0, 1, gram.new_zeros(len(gram), 1))
    if not written.all():
        found = _spectrum(gram[written][:, written])
        vectors = gram.new_zeros(len(gram), found.n_erased)
        vectors[written] = found.vectors
        return replace(found, vectors=vectors)
    spectrum = _smallest(gram)
    n = len(gram)
    ones = gram.new_full((n,), n**-0.5)
    if spectrum.ratio < ERASED_RATIO_IN_SUM and (ones @ spectrum.vectors).square().sum() > 0.5:
        # LayerNorm takes the mean over features away, so nothing ever trains the writers along the
        # all-ones direction and weight decay empties it. Such a hole is natural: fill it and look
        # for another.
        spectrum = _smallest(gram.addr(ones, ones * gram.diagonal().mean()))
    return spectrum


def _smallest(gram: Tensor) -> _Spectrum:
    mean = float(gram.diagonal().mean())
    values, vectors = smallest_pairs(gram, MAX_ERASED_DIRECTIONS + 1)
    if not values[-1] > NULL * mean:
        return _Spectrum(1.0, 1, vectors[:, :1])
    # Negative values are rounding; the floor keeps two of them from making a ratio.
    values = values.clamp_min(FLOOR * mean)
    ratios = values[:-1] / values[1:]
    hole = int(ratios.argmin())
    return _Spectrum(float(ratios[hole]), hole + 1, vectors[:, : hole + 1])


def _whole(gram: Tensor) -> bool:
    """Whether every direction gets well more than an erased one is left with."""
    shifted = gram.clone()
    shifted.diagonal().sub_(ERASED_SHARE * float(gram.diagonal().mean()))
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def unsearched(reason: str) -> AblationEvidence:
    """What is said where no search was made."""
    return AblationEvidence(None, None, (), {}, 0, None, reason)
