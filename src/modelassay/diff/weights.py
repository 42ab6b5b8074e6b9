"""What a fine-tune did to the weights: the spectrum of ΔW = W_candidate - W_base, matrix by matrix.

No prompt is needed, and the kind of training shows:

* an adapter that was merged leaves a difference of its own rank r in every matrix it touched;
* full fine-tuning leaves one of full rank, rounding one that is noise alone;
* directional ablation (Arditi et al. 2024) leaves -s·r(rᵀW): one direction r on the left, and on
  the right not any vector but rᵀW_base itself. No training makes that, so even half an ablation is
  told from an adapter of rank one (measured cosines: 1.00 against 0.1), and s is read off.

Only the leading singular values are computed (Halko et al. 2011); the energy of the rest is what
the Frobenius norm leaves. Matrices come and go one at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.diff.pair import Pair, Role, Traits
from modelassay.errors import InputError, UnavailableError
from modelassay.measures.erased_directions import (
    Tensors,
    memory_tensors,
    open_shards,
    plain_files,
    plain_name,
)
from modelassay.measures.weight_sketch import AblationMark, layer_of
from modelassay.models.layers import OTHER_TOWERS
from modelassay.models.names import loaded_places
from modelassay.models.writers import Kind, Writer, find_writers
from modelassay.progress import OnProgress, told
from modelassay.report.json import published

LEADING = 80
"""Singular values computed of a matrix: an adapter of rank 64 shows whole, with room to see that
nothing follows."""
POWER_ITERATIONS = 3
UNCHANGED = 1e-7
"""Relative change below which a matrix counts as the same."""
EDGE = 1.1
"""A singular value is signal above this multiple of the noise's largest, √m + √n times its rms."""
MIN_SIGNAL = 0.5
"""Of a change's energy must lie in its leading directions, for these to be called its rank."""
MAX_RANK = 64
"""More is not a rank that an adapter would have."""
MARK_COSINE = 0.95
"""Between the change's right side and u₁ᵀW_base: 1.00 for ablation, 0.1 for most of what is
trained, up to 0.9 where training took back what an adapter had written."""
MARK_SHARE = 0.5
"""Of the change must lie along u₁; rounding on top of an ablation takes the rest."""
MARK_CONCENTRATION = 3.0
"""Times as much of the change as of the weights must lie along u₁: scaling a whole matrix has
the mark's form too, but changes every direction alike."""
MARK_STRENGTH = (0.05, 1.5)
MARKED_SHARE = 0.2
"""Of the changed writing matrices must bear the mark, in two layers at least."""
SHARED_COSINE = 0.9
OUTPUT = "lm_head.weight"
EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
"""Also the output layer where it is tied; files may leave that out or write it again."""


@dataclass(frozen=True)
class MatrixChange:
    """How one weight differs."""

    name: str
    layer: int | None
    relative: float
    """‖ΔW‖ / ‖W_base‖, Frobenius."""
    rank: int | None
    """Singular values that stand out of the noise; None when they are too many to be a rank."""
    signal_share: float
    """Of ΔW's energy, in those."""
    rank1_share: float
    """Of ΔW's energy, in the largest singular value."""
    ablation_cosine: float | None = None
    """|cos(v₁, u₁ᵀW_base)|, for matrices that write to the residual stream."""
    ablation_strength: float | None = None
    """The share of u₁'s component that is gone, if this is an ablation of it."""


@dataclass(frozen=True)
class WeightDiff:
    """How a candidate's weights differ from its base's."""

    matrices: tuple[MatrixChange, ...]
    """Of the weights that changed."""
    n_compared: int
    only_in_base: tuple[str, ...]
    only_in_candidate: tuple[str, ...]
    energy_by_layer: dict[int, float]
    """Share of all change, ‖ΔW‖² summed over a layer's weights."""
    energy_elsewhere: float
    """The share outside layers: embeddings, final norm, output layer."""
    relative: float
    """‖ΔW‖ / ‖W_base‖ over all weights."""
    adapter_rank: int | None
    """The rank that most of the changed matrices share; None when there is none."""
    shared_cosine: float | None
    """Median |cos u₁| between writing matrices of different layers; 1 for one direction in all."""
    mark: AblationMark | None
    unsearched: str | None = None
    """Why the mark of ablation could not be looked for; None where it was."""

    @property
    def identical(self) -> bool:
        """Whether every weight is the same number for number, as far as float32 tells."""
        return not (self.matrices or self.only_in_base or self.only_in_candidate)

    @property
    def first_change(self) -> int | None:
        """The first layer that differs, 0 where something outside layers does; None for none."""
        if self.only_in_base or self.only_in_candidate:
            return 0
        # A final norm or an output layer would do no harm, but embeddings have many names.
        return min((change.layer or 0 for change in self.matrices), default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {
            **asdict(self),
            "matrices": [published(asdict(change), layer="block") for change in self.matrices],
            "mark": None if self.mark is None else self.mark.to_dict(),
            "identical": self.identical,
        }
        return published(values, energy_by_layer="energy_by_block")


@dataclass(frozen=True)
class _Change:
    """One difference, and what is kept of it while the others are read."""

    matrix: MatrixChange
    energy: float
    left: np.ndarray | None = None
    """[out] u₁, for writing matrices along the residual stream."""
    marked: bool = False
    kind: Kind | None = None
    """Of writing matrices."""


def diff_weights(
    base: Tensors,
    candidate: Tensors,
    writer_of: Callable[[str], Writer | None],
    *,
    unsearched: str | None = None,
    on_progress: OnProgress | None = None,
) -> WeightDiff:
    """Compares two sets of named weights.

    Args:
        base: Names and readers, in any order.
        candidate: The same of the fine-tune; prefixes of names may differ.
        writer_of: Which writer to the residual stream a weight of that name in the base is, if any.
        unsearched: Why no weight is known as a writer, and no ablation can be told.
        on_progress: Told (weights done, weights in all).

    Raises:
        InputError: the two have no weight in common, shapes differ, one is packed (quantised), or
            one holds NaN or infinite values.
    """
    ours, theirs = _named(base), _named(candidate)
    _untie(ours, theirs)
    _untie(theirs, ours)
    common = sorted(ours.keys() & theirs.keys(), key=lambda key: (layer_of(key) or 0, key))
    if not common:
        raise InputError("The two models have no weight of the same name; they cannot be compared.")
    changes: list[_Change] = []
    base_energy = 0.0
    for key in told(common, on_progress):
        name, read = ours[key]
        before, after = _plain(name, read(), "base"), _plain(name, theirs[key][1](), "candidate")
        if key in (OUTPUT, *EMBEDDINGS):  # rows for added tokens are no change of the others
            rows = min(len(before), len(after))
            before, after = before[:rows], after[:rows]
        if before.shape != after.shape:
            raise InputError(
                f"{name} is {tuple(before.shape)} in the base and {tuple(after.shape)} in the"
                " candidate; these are not versions of one model."
            )
        base_energy += float(before.double().square().sum())
        writer = writer_of(name)
        change = _change(key, _matrix(before, writer), _matrix(after, writer), writer)
        changes += [change] if change else []
    changed_energy: dict[int | None, float] = defaultdict(float)
    for change in changes:
        changed_energy[change.matrix.layer] += change.energy
    total = sum(changed_energy.values())
    return WeightDiff(
        matrices=tuple(change.matrix for change in changes),
        n_compared=len(common),
        only_in_base=tuple(sorted(ours.keys() - theirs.keys())),
        only_in_candidate=tuple(sorted(theirs.keys() - ours.keys())),
        energy_by_layer={
            layer: changed_energy[layer] / total
            for layer in sorted(b for b in changed_energy if b is not None)
        },
        energy_elsewhere=changed_energy.get(None, 0.0) / total if total else 0.0,
        relative=float(np.sqrt(total / max(base_energy, 1e-30))),
        adapter_rank=_adapter_rank(changes),
        shared_cosine=_shared_cosine(changes),
        mark=_mark(changes),
        unsearched=unsearched,
    )


def _change(key: str, before: Tensor, after: Tensor, writer: Writer | None) -> _Change | None:
    """The change of one weight, as matrices [out, in]; None if there is none."""
    delta = after - before
    energy, scale = float(delta.double().square().sum()), float(before.double().square().sum())
    relative = float(np.sqrt(energy / max(scale, 1e-30)))
    if relative <= UNCHANGED:
        return None
    if min(delta.shape) == 1:  # a norm's gain or a bias has no spectrum
        return _Change(MatrixChange(key, layer_of(key), relative, None, 0.0, 1.0), energy)
    left, values = _leading_svd(delta)
    rank = _rank(values, energy, delta.shape)
    signal = float(np.square(values[:rank]).sum() / energy)
    cosine = strength = None
    marked = False
    if writer is not None:
        # The parts of the weights and of their change along u₁, [in].
        there, gone = left @ before, -(left @ delta)
        overlap, length = float(there @ gone), float(there.norm())
        cosine = abs(overlap) / max(length * float(gone.norm()), 1e-30)
        strength = overlap / max(length**2, 1e-30)
        low, high = MARK_STRENGTH
        marked = bool(
            cosine > MARK_COSINE
            and low < strength < high
            and values[0] ** 2 / energy > MARK_SHARE
            and values[0] ** 2 / energy > MARK_CONCENTRATION * length**2 / max(scale, 1e-30)
        )
    matrix = MatrixChange(
        name=key,
        layer=layer_of(key),
        relative=relative,
        rank=rank if 0 < rank <= MAX_RANK and signal > MIN_SIGNAL else None,
        signal_share=min(signal, 1.0),
        rank1_share=min(float(values[0] ** 2 / energy), 1.0),
        ablation_cosine=cosine,
        ablation_strength=strength,
    )
    if writer is None:
        return _Change(matrix, energy)
    return _Change(matrix, energy, left.double().cpu().numpy(), marked, writer.kind)


def _leading_svd(delta: Tensor) -> tuple[Tensor, np.ndarray]:
    """u₁ [out] and the leading singular values in falling order."""
    count = min(LEADING, *delta.shape)
    devices = [delta.device] if delta.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)  # the same numbers on every run
        left, values, _ = torch.svd_lowrank(delta, q=count, niter=POWER_ITERATIONS)
    return left[:, 0], values.double().cpu().numpy()


def _rank(values: np.ndarray, energy: float, shape: tuple[int, ...] | torch.Size) -> int:
    """How many singular values stand out of noise as strong as what they leave over."""
    rows, columns = shape
    rank = 0
    while True:  # each pass sees the noise with less signal in it
        rest = max(energy - float(np.square(values[:rank]).sum()), 0.0)
        edge = EDGE * np.sqrt(rest / (rows * columns)) * (np.sqrt(rows) + np.sqrt(columns))
        # What float32 arithmetic leaves of an exact zero.
        found = int((values > max(edge, 1e-5 * values[0])).sum())
        if found <= rank:
            return rank
        rank = found


def _adapter_rank(changes: list[_Change]) -> int | None:
    ranks = [change.matrix.rank for change in changes if change.matrix.ablation_cosine is not None]
    if not ranks:
        return None
    rank, count = Counter(ranks).most_common(1)[0]
    return rank if rank is not None and count > len(ranks) / 2 else None


def _shared_cosine(changes: list[_Change]) -> float | None:
    first: dict[int, np.ndarray] = {}
    for change in changes:
        if change.matrix.layer is not None and change.left is not None:
            first.setdefault(change.matrix.layer, change.left)
    return _median_cosine(list(first.values()))


def _mark(changes: list[_Change]) -> AblationMark | None:
    writers = [change for change in changes if change.left is not None]
    marked = [change for change in writers if change.marked]
    layers = sorted({x.matrix.layer for x in marked if x.matrix.layer is not None})
    if len(layers) < 2 or len(marked) < MARKED_SHARE * len(writers):
        return None
    strengths = [x.matrix.ablation_strength for x in marked]
    kinds: set[Kind | None] = {x.kind for x in marked}
    between = _median_cosine([x.left for x in marked if x.left is not None])
    return AblationMark(
        strength=float(np.median(np.array(strengths, float))),
        layers=tuple(layers),
        shared=between is not None and between > SHARED_COSINE,
        kind=kinds.pop() if len(kinds) == 1 else None,
    )


def _median_cosine(directions: list[np.ndarray]) -> float | None:
    if len(directions) < 2:
        return None
    stacked = np.stack(directions)
    cosines = np.abs(stacked @ stacked.T)
    return float(np.median(cosines[np.triu_indices(len(stacked), 1)]))


def _plain(name: str, weight: Tensor, whose: str) -> Tensor:
    if not weight.is_floating_point() or weight.itemsize == 1 or weight.is_meta:
        raise InputError(
            f"{name} of the {whose} is stored packed (quantised); give the unquantised model."
        )
    if not weight.isfinite().all():
        raise InputError(
            f"{name} of the {whose} has values that are not numbers (NaN or infinite)."
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return weight.detach().to(device).float()


def _matrix(weight: Tensor, writer: Writer | None) -> Tensor:
    """[out, in] with the residual stream's axis first; vectors become one row."""
    if writer is not None:
        return writer.rows(weight)
    return weight.reshape(1 if weight.dim() < 2 else weight.shape[0], -1)


_Named = dict[str, tuple[str, Callable[[], Tensor]]]


def _named(tensors: Tensors) -> _Named:
    """Weights of the language tower by a name that copies of a model share."""
    return {
        plain_name(name): (name, read) for name, read in tensors if not OTHER_TOWERS.search(name)
    }


def _untie(weights: _Named, other: _Named) -> None:
    """An output layer that only the other model has written out is the embeddings here."""
    if OUTPUT in other and OUTPUT not in weights:
        embeddings = next((name for name in EMBEDDINGS if name in weights), None)
        if embeddings is not None:
            weights[OUTPUT] = weights[embeddings]


def diff_pair(pair: Pair, on_progress: OnProgress | None = None) -> WeightDiff:
    """Compares the weights of base and candidate.

    Plain files are streamed, and their model need not be in memory then; of a model that was given
    loaded, its weights in memory count.

    Args:
        pair: The models.
        on_progress: Told (weights done, weights in all).

    Raises:
        InputError: as `diff_weights`.
        UnavailableError: both would have to be in memory, and there is no room.
    """
    network = pair.get(pair.in_turn[0]).network  # of the same architecture in both
    writers = find_writers(network)
    by_name = {plain_name(writer.name): writer for writer in writers.found}
    place_of = loaded_places(network)

    def writer_of(name: str) -> Writer | None:
        return by_name.get(plain_name(name)) or by_name.get(plain_name(place_of(name).name))

    files: dict[Role, list[Path] | None] = {
        "base": None if "base" in pair.given else plain_files(pair.base),
        "candidate": None if "candidate" in pair.given else plain_files(pair.candidate),
    }
    in_memory = [role for role, found in files.items() if found is None]
    if len(in_memory) == 2 and not pair.fits():
        raise UnavailableError(
            "Both models would have to be in memory to compare their weights, and there is no room."
        )
    with ExitStack() as stack:

        def tensors(role: Role) -> Tensors:
            found = files[role]
            return memory_tensors(pair.get(role)) if found is None else open_shards(found, stack)

        return diff_weights(
            tensors("base"),
            tensors("candidate"),
            writer_of,
            unsearched=writers.unsure,
            on_progress=on_progress,
        )


def count_alike(weights: WeightDiff | None, base: Traits, candidate: Traits) -> int:
    """How many first layers of two models, with the embeddings, make the same of the same tokens.

    Args:
        weights: How the weights differ; None, where that is not known, makes it none.
        base: Of one model.
        candidate: Of the other.
    """
    if weights is None or base.computes != candidate.computes:
        return 0
    return base.model.n_layers if weights.first_change is None else weights.first_change
