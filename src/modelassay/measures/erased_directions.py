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

What it can see: full ablation of one to four directions, in all layers or a band of them, with one
direction for all or, where a layer has columns enough, one for each, also after rounding to bf16 or
8 bits. What it cannot see without the base: partial ablation (W - ½ r rᵀ W leaves an ordinary
small eigenvalue; at a strength of 0.8 and with one direction for all layers the sum over layers
still shows it), ablation at run time, an adapter that is not merged, and any fine-tune.

Matrices come and go one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.measures.suspicion import Suspicion
from modelassay.models import LoadedModel
from modelassay.models.layers import LAYER_INDEX, OTHER_TOWERS, text_config
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
"""Relative difference of Gram matrices below which a layer is a copy of another, trained or not;
those of unrelated matrices differ by about 1."""
MAX_TOGETHER = 4
"""Neighbouring layers that are added up, at most, to have columns enough."""
ERASED_SHARE = 0.005
"""Of the mean eigenvalue: an erased direction keeps less than 0.001 in 8 bits and 1e-5 in bf16.
That all directions keep more takes a Cholesky decomposition to show, which costs a tenth of the
smallest eigenvalues."""
UNWRITTEN = 1e-9
"""Share of the mean that a coordinate gets which nothing writes: padding, or pruned away."""
SHARED_COSINE = 0.9


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
    vectors: np.ndarray
    """[hidden, n_erased] their unit eigenvectors."""


def search_ablation(model: LoadedModel, on_progress: OnProgress | None = None) -> AblationEvidence:
    """Searches the weights of a loaded model for erased directions.

    The weights in memory are searched, which are those that act. Where they were packed on loading
    or left on the disk, the files are read.

    Args:
        model: A loaded model.
        on_progress: Told (layers done, layers in all).
    """
    writers = find_writers(model.network)
    if writers.unsure:
        return unsearched(writers.unsure)
    with ExitStack() as stack:
        readers = writer_readers(model, writers.found, stack)
        hidden = text_config(model.network.config).hidden_size
        return search_writers(readers, hidden, on_progress=on_progress)


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
    on_progress: OnProgress | None = None,
) -> AblationEvidence:
    """Searches writing matrices for directions that they cannot write.

    Args:
        readers: What reads each writer; several readers where it is stored in parts.
        hidden_size: Width of the residual stream.
        on_progress: Told (layers done, layers in all).
    """
    layers: dict[int, list[Writer]] = {}
    for writer in readers:
        layers.setdefault(writer.layer, []).append(writer)
    kinds: list[Kind] = sorted({writer.kind for writer in readers})
    device = "cuda" if torch.cuda.is_available() else "cpu"
    both = _Group(hidden_size, screen=False)
    alone: dict[Kind, _Group] = {
        kind: _Group(hidden_size, screen=True) for kind in kinds if len(kinds) > 1
    }
    for layer in told(sorted(layers), on_progress):
        grams = {kind: np.zeros((hidden_size, hidden_size)) for kind in kinds}
        columns = dict.fromkeys(kinds, 0)
        for writer in layers[layer]:
            parts = [read() for read in readers[writer]]
            if any(part.is_meta for part in parts):
                return unsearched(f"{writer.name} was left on the disk and is stored otherwise")
            if not all(_is_plain(part) and hidden_size in part.shape for part in parts):
                return unsearched("the weights are stored packed (quantised)")
            if not all(part.isfinite().all() for part in parts):
                raise InputError(
                    f"Layer {layer} has weights that are not numbers (NaN or infinite)."
                )
            matrices = [writer.rows(part).to(device).float() for part in parts]
            grams[writer.kind] += _normalised_gram(matrices)
            columns[writer.kind] += sum(_full_columns(matrix) for matrix in matrices)
        both.add(layer, sum(grams.values()), sum(columns.values()))
        for kind, group in alone.items():
            if columns[kind]:
                group.add(layer, grams[kind], columns[kind])
    return _evidence(both, alone)


class _Group:
    """The search in what some of the writers write, fed one layer after the other."""

    def __init__(self, hidden: int, *, screen: bool) -> None:
        self._screen = screen
        self._needed = MIN_COLUMNS * hidden
        self._recent: list[tuple[int, np.ndarray, int]] = []
        self._total = np.zeros((hidden, hidden))
        self._columns = 0
        self.layers: list[int] = []
        self.judged: list[tuple[int, ...]] = []
        """Layers, or the neighbours that have columns enough together."""
        self.spectra: dict[tuple[int, ...], _Spectrum] = {}
        """Of those, or with `screen` of those among them that may have a hole."""

    def add(self, layer: int, gram: Any, columns: int) -> None:
        """Takes in a layer's Gram matrix [hidden, hidden] of so many columns."""
        # Stacked models repeat layers, and a copy adds no columns of its own.
        if any(_alike(gram, other) for _, other, _ in self._recent):
            columns = 0
        self.layers.append(layer)
        self._total += gram
        self._columns += columns
        self._recent = [*self._recent, (layer, gram, columns)][-MAX_TOGETHER:]
        for n in range(1, len(self._recent) + 1):
            last = self._recent[-n:]
            if sum(columns for _, _, columns in last) >= self._needed:
                self._judge(tuple(layer for layer, _, _ in last), sum(gram for _, gram, _ in last))
                break

    def _judge(self, layers: tuple[int, ...], gram: Any) -> None:
        self.judged.append(layers)
        if not (self._screen and _whole(gram)):
            self.spectra[layers] = _spectrum(gram)

    @cached_property
    def in_sum(self) -> _Spectrum | None:
        """Of all layers together; None where even these have too few columns."""
        return _spectrum(self._total) if self._columns >= self._needed else None

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
                found[layer] = min(spectrum.ratio, found.get(layer, np.inf))
        return found

    def limits(self, what: str) -> tuple[str, ...]:
        """What cannot be judged of these writers, in words."""
        if self.in_sum is None:
            return (f"the {what} have too few columns to be searched",)
        if any(len(key) > 1 for key in self.judged) or not self.judged:
            return (
                f"the {what} of single layers have too few columns to be searched, so that a"
                " direction of its own in each layer is not seen",
            )
        return ()


def _evidence(both: _Group, alone: Mapping[Kind, _Group]) -> AblationEvidence:
    """What the searches in all writers and in those of each kind say together."""
    everywhere = both.erased
    by_kind: dict[Kind, tuple[int, ...]] = {
        kind: tuple(layer for layer in group.erased if layer not in everywhere)
        for kind, group in alone.items()
    }
    by_kind = {kind: layers for kind, layers in by_kind.items() if layers}
    deciding = [both] if everywhere or not by_kind else []
    deciding += [alone[kind] for kind in by_kind]
    limits = both.limits("weights")
    for kind, group in alone.items():
        limits += group.limits(OUTPUTS[kind])
    if both.in_sum is None:
        return unsearched(limits[0])
    holes = [hole for group in deciding for hole in group.holes]
    shared = [group.in_sum for group in deciding if group.in_sum and group.shared_hole]
    erased = tuple(sorted({*everywhere, *(x for layers in by_kind.values() for x in layers)}))
    first = deciding[0].in_sum
    return AblationEvidence(
        detected=bool(erased),
        eigenvalue_ratio=first.ratio if first else None,
        layers=erased,
        ratio_by_layer=both.ratio_by_layer,
        n_directions=max((s.n_erased for s in shared or holes), default=0) if erased else 0,
        shared=bool(shared) or _share_subspace([s.vectors for s in holes]) if erased else None,
        by_kind=by_kind,
        limits=limits,
    )


def _share_subspace(bases: Sequence[np.ndarray]) -> bool:
    """Whether most pairs of orthonormal bases span the same space (mean squared cosine near 1)."""
    overlaps = [
        float(np.square(bases[i].T @ bases[j]).sum()) / min(bases[i].shape[1], bases[j].shape[1])
        for i in range(len(bases))
        for j in range(i)
    ]
    return bool(np.median(overlaps) > SHARED_COSINE**2) if overlaps else True


def _normalised_gram(matrices: Sequence[Tensor]) -> np.ndarray:
    """W Wᵀ of a matrix in parts [hidden, columns], its mean eigenvalue 1; [hidden, hidden]."""
    gram = np.zeros(2 * matrices[0].shape[:1])
    for matrix in matrices:
        gram += (matrix @ matrix.T).double().cpu().numpy()
    return gram * (len(gram) / max(float(np.trace(gram)), 1e-30))


def _full_columns(matrix: Tensor) -> int:
    """How many columns hold anything."""
    return int((matrix != 0).any(dim=0).sum())


def _alike(gram: np.ndarray, other: np.ndarray) -> bool:
    # Without numpy's BLAS: its threads and torch's wait for each other, at three times the time.
    return bool(np.square(gram - other).sum() < COPIED**2 * np.square(gram).sum())


def _spectrum(gram: np.ndarray) -> _Spectrum:
    """The smallest ratio of neighbouring eigenvalues among the first few."""
    # A coordinate that nothing writes was padded or pruned: no method erases one alone.
    diagonal = np.diag(gram)
    written = diagonal > UNWRITTEN * diagonal.mean()
    if not written.any():
        return _Spectrum(1.0, 1, np.zeros((len(gram), 1)))
    if not written.all():
        found = _spectrum(gram[np.ix_(written, written)])
        vectors = np.zeros((len(gram), found.n_erased))
        vectors[written] = found.vectors
        return replace(found, vectors=vectors)
    spectrum = _smallest(gram)
    n = len(gram)
    ones = np.full(n, n**-0.5)
    if spectrum.ratio < ERASED_RATIO_IN_SUM and np.sum((ones @ spectrum.vectors) ** 2) > 0.5:
        # LayerNorm takes the mean over features away, so nothing ever trains the writers along the
        # all-ones direction and weight decay empties it. Such a hole is natural: fill it and look
        # for another.
        spectrum = _smallest(gram + np.trace(gram) / n * np.outer(ones, ones))
    return spectrum


def _smallest(gram: np.ndarray) -> _Spectrum:
    from scipy.linalg import eigh

    n = len(gram)
    values, vectors = eigh(gram, subset_by_index=[0, min(MAX_ERASED_DIRECTIONS, n - 1)])
    mean = np.trace(gram) / n
    if not values[-1] > NULL * mean:
        return _Spectrum(1.0, 1, vectors[:, :1])
    # Negative values are rounding; the floor keeps two of them from making a ratio.
    values = np.maximum(values, 1e-9 * mean)
    ratios = values[:-1] / values[1:]
    hole = int(np.argmin(ratios))
    return _Spectrum(float(ratios[hole]), hole + 1, vectors[:, : hole + 1])


def _whole(gram: np.ndarray) -> bool:
    """Whether every direction gets well more than an erased one is left with."""
    least = ERASED_SHARE * np.trace(gram) / len(gram)
    shifted = torch.from_numpy(gram - least * np.eye(len(gram)))
    return int(torch.linalg.cholesky_ex(shifted).info) == 0


def unsearched(reason: str) -> AblationEvidence:
    """What is said where no search was made."""
    return AblationEvidence(None, None, (), {}, 0, None, reason)
