"""What a fine-tune did to the weights: the spectrum of ΔW = W_candidate - W_base, matrix by matrix.

No prompt is needed, and the kind of training shows:

* an adapter that was merged leaves a difference of its own rank r in every matrix it touched;
* full fine-tuning leaves one of full rank, rounding one that is noise alone;
* taking a direction out leaves what the direction wrote, by one of few formulas
  (`measures.directional_edits`);
* a sparsified merge leaves exact zeros, pruning others.

Matrices come and go one at a time, as they are stored, and are read in blocks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.diff.declared import hold_against, read_declared
from modelassay.diff.lora import LoraChange, read_lora
from modelassay.diff.pair import Pair, Role, Traits
from modelassay.errors import InputError, UnavailableError
from modelassay.measures.change_traces import Traces, find_traces
from modelassay.measures.directional_edits import (
    AblationMark,
    Component,
    DirectionalEdits,
    EditedMatrix,
    layers_in_words,
    summarise,
    unmarked,
)
from modelassay.measures.erased_directions import (
    Tensors,
    memory_tensors,
    open_shards,
    plain_files,
    plain_name,
)
from modelassay.measures.matrix_edits import Fit, measure_edit, strength_along
from modelassay.measures.weight_changes import Spectrum, WeightChange, energy_of
from modelassay.measures.weight_sketch import layer_of
from modelassay.models import LoadedModel
from modelassay.models.layers import OTHER_TOWERS, find_layers, text_config
from modelassay.models.loading import has_gpu
from modelassay.models.names import loaded_places
from modelassay.models.writers import Writer, find_writers
from modelassay.progress import OnProgress, told
from modelassay.report.json import published

LEADING, FIRST_LEADING = 80, 24
"""Singular values computed of a matrix: an adapter of rank 64 shows whole, with room to see that
nothing follows. Most changes need fewer, which are tried first."""
UNCHANGED = 1e-7
"""Relative change below which a matrix counts as the same."""
MIN_SIGNAL = 0.5
"""Of a change's energy must lie in its leading directions, for these to be called its rank."""
MAX_RANK = 64
"""More is not a rank that an adapter would have."""
PRUNED = 0.1
"""Share of weights that became zero, from which a matrix counts as pruned."""
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
    edits: DirectionalEdits
    """Directions that were taken out."""
    unsearched: str | None = None
    """Why directional edits could not be looked for; None where they were."""
    observations: tuple[str, ...] = ()
    """What else the weights show, in plain words."""
    declared: tuple[str, ...] = ()
    """What the candidate's repository says that was done, beside what was measured."""
    contradicted: bool = False
    """Whether the two differ."""

    @property
    def mark(self) -> AblationMark | None:
        """A direction taken out of what layers write; None where none was."""
        return self.edits.mark

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
            **asdict(replace(self, edits=DirectionalEdits(None, None))),
            "matrices": [published(asdict(change), layer="block") for change in self.matrices],
            "mark": None if self.mark is None else self.mark.to_dict(),
            "edits": self.edits.to_dict(),
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
    edited: tuple[EditedMatrix, ...] = ()
    """Of matrices on the residual stream; several where they are experts."""
    traces: Traces | None = None


def diff_weights(
    base: Tensors,
    candidate: Tensors,
    writer_of: Callable[[str], Writer | None],
    *,
    hidden: int | None = None,
    unsearched: str | None = None,
    on_progress: OnProgress | None = None,
) -> WeightDiff:
    """Compares two sets of named weights.

    Args:
        base: Names and readers, in any order.
        candidate: The same of the fine-tune; prefixes of names may differ.
        writer_of: Which writer to the residual stream a weight of that name in the base is, if any.
        hidden: Width of the residual stream: what reads it and the embeddings are searched for
            directions too, where it is known.
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
    widths = _Widths(hidden, writer_of, [ours[key][0] for key in common])
    for key in told(common, on_progress):
        if ours[key][1] is theirs[key][1]:  # known to be the same
            name, read = ours[key]
            weight = read()
            base_energy += _finite(name, energy_of(weight), weight, "base")
            continue
        before, after = _read(key, ours, theirs)
        side = widths.side(key, ours[key][0], before)
        change, scale = _change(key, ours[key][0], side, before, after)
        base_energy += scale
        changes += [change] if change else []
    edited = [each for change in changes for each in change.edited]
    n_layers = 1 + max((layer_of(key) or 0 for key in common), default=0)
    edits = summarise(edited, n_layers)
    along: dict[tuple[int | None, Component], list[Fit]] = defaultdict(list)
    for each, direction in unmarked(edits, edited):  # a second look, at few matrices
        key = each.name
        assert edits.family is not None  # noqa: S101 (there are directions)
        before, after = _read(key, ours, theirs)
        side = widths.side(key, ours[key][0], before)
        whole = WeightChange(side.rows(before), side.rows(after))
        along[each.layer, each.component].append(strength_along(whole, edits.family, direction))
    edits = summarise(edited, n_layers, along) if along else edits
    changed_energy: dict[int | None, float] = defaultdict(float)
    for change in changes:
        changed_energy[change.matrix.layer] += change.energy
    total = sum(changed_energy.values())
    only_in_candidate = tuple(sorted(theirs.keys() - ours.keys()))
    return WeightDiff(
        matrices=tuple(change.matrix for change in changes),
        n_compared=len(common),
        only_in_base=tuple(sorted(ours.keys() - theirs.keys())),
        only_in_candidate=only_in_candidate,
        energy_by_layer={
            layer: changed_energy[layer] / total
            for layer in sorted(b for b in changed_energy if b is not None)
        },
        energy_elsewhere=changed_energy.get(None, 0.0) / total if total else 0.0,
        relative=float(np.sqrt(total / max(base_energy, 1e-30))),
        adapter_rank=_adapter_rank(changes),
        shared_cosine=_shared_cosine(changes),
        edits=edits,
        unsearched=unsearched,
        observations=_observations(changes, edits, only_in_candidate, unsearched is None),
    )


@dataclass(frozen=True)
class _Side:
    """How a weight lies along the residual stream."""

    component: Component | None
    """None for those that do not."""
    writer: Writer | None = None
    turned: bool = False

    def rows(self, weight: Tensor) -> Tensor:
        """The weight as a matrix, its rows along the stream; vectors become one row."""
        if self.writer is not None:
            return self.writer.rows(weight)
        matrix = weight.reshape(1 if weight.dim() < 2 else weight.shape[0], -1)
        return matrix.T if self.turned else matrix

    def parts(self, weight: Tensor) -> list[Tensor]:
        """The matrices that an edit changes one by one: each expert of a stack."""
        if self.writer is not None and weight.dim() == 3 and self.writer.axis > 0:
            return [self.writer.rows(expert) for expert in weight]
        return [self.rows(weight)]


class _Widths:
    """Tells how weights lie along the residual stream."""

    def __init__(
        self, hidden: int | None, writer_of: Callable[[str], Writer | None], names: Sequence[str]
    ) -> None:
        self._hidden, self._writer_of = hidden, writer_of
        found = [writer for name in names if (writer := writer_of(name)) is not None]
        # Checkpoints that lay weights down as [in, out] do so in all of them.
        self._in_axis = 0 if found and all(w.dims == 2 and w.axis == 1 for w in found) else 1

    def side(self, key: str, name: str, weight: Tensor) -> _Side:
        """Of a weight by its key and its name in the base."""
        if (writer := self._writer_of(name)) is not None:
            return _Side(writer.kind, writer)
        if self._hidden is None or weight.dim() != 2:
            return _Side(None)
        if key in EMBEDDINGS and weight.shape[1] == self._hidden:
            return _Side("embeddings", turned=True)
        axes = [self._in_axis, 1 - self._in_axis]
        axis = next((axis for axis in axes if weight.shape[axis] == self._hidden), None)
        if layer_of(key) is None or axis is None:
            return _Side(None)
        return _Side("readers", turned=axis == 1)


def _read(key: str, ours: _Named, theirs: _Named) -> tuple[Tensor, Tensor]:
    """A weight in both models, as it is stored.

    Raises:
        InputError: it has another shape, is packed, or has values that are not numbers.
    """
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
    return before, after


def _change(
    key: str, name: str, side: _Side, before: Tensor, after: Tensor
) -> tuple[_Change | None, float]:
    """The change of one weight, None if there is none; and ‖W_base‖²."""
    if before.dtype == after.dtype and torch.equal(before, after):
        return None, _finite(name, energy_of(before), before, "base")
    change = WeightChange(side.rows(before), side.rows(after))
    energy = _finite(name, change.energy, after, "candidate")
    scale = _finite(name, change.scale, before, "base")
    relative = float(np.sqrt(energy / max(scale, 1e-30)))
    if relative <= UNCHANGED:
        return None, scale
    layer = layer_of(key)
    if min(change.shape) == 1:  # a norm's gain or a bias has no spectrum
        return _Change(MatrixChange(key, layer, relative, None, 0.0, 1.0), energy), scale
    spectrum = change.spectrum(FIRST_LEADING)
    rank = spectrum.rank
    if rank == FIRST_LEADING < min(change.shape):
        spectrum = change.spectrum(LEADING, spectrum)
        rank = spectrum.rank
    signal = spectrum.signal(rank) / energy
    edited = _edited(key, side, (before, after), change, spectrum)
    matrix = MatrixChange(
        name=key,
        layer=layer,
        relative=relative,
        rank=rank if 0 < rank <= MAX_RANK and signal > MIN_SIGNAL else None,
        signal_share=min(signal, 1.0),
        rank1_share=min(spectrum.signal(1) / energy, 1.0),
    )
    traces = find_traces(change.before, change.after)
    if side.writer is None:
        return _Change(matrix, energy, None, edited, traces), scale
    nearest = max((each.found for each in edited), key=lambda found: found.cosine)
    fit = nearest.fits.get("plain")
    matrix = replace(
        matrix,
        ablation_cosine=nearest.cosine,
        ablation_strength=None if fit is None else fit.strength,
    )
    left = spectrum.left[:, 0].double().cpu().numpy()
    return _Change(matrix, energy, left, edited, traces), scale


def _edited(
    key: str,
    side: _Side,
    weights: tuple[Tensor, Tensor],
    change: WeightChange,
    spectrum: Spectrum,
) -> tuple[EditedMatrix, ...]:
    if side.component is None:
        return ()
    parts = list(zip(*(side.parts(weight) for weight in weights), strict=True))
    if len(parts) == 1:
        found = [measure_edit(change, spectrum)]
    else:
        experts = [WeightChange(*part) for part in parts]
        found = [measure_edit(x, x.spectrum(FIRST_LEADING)) for x in experts if x.energy]
    return tuple(EditedMatrix(key, layer_of(key), side.component, each) for each in found)


def _observations(
    changes: Sequence[_Change],
    edits: DirectionalEdits,
    only_in_candidate: Sequence[str],
    searched: bool,
) -> tuple[str, ...]:
    """What else the weights show, in plain words."""
    said = []
    traced = [change.traces for change in changes if change.traces is not None]
    sparse = [traces for traces in traced if traces.sparsified]
    if traced and len(sparse) > len(traced) / 2:
        share = float(np.median([traces.unchanged for traces in sparse]))
        said.append(
            f"In most changed matrices {share:.0%} of the weights are exactly those of the base and"
            " the others moved by more than rounding: a sparsified merge (DARE, DELLA, TIES)."
        )
    pruned = [traces for traces in traced if traces.pruned > PRUNED]
    if pruned:
        share = float(np.median([traces.pruned for traces in pruned]))
        said.append(
            f"{len(pruned)} matrices were pruned: {share:.0%} of their weights became zero."
        )
    if biases := [name for name in only_in_candidate if name.endswith(".bias")]:
        said.append(
            f"{len(biases)} biases were added ({biases[0]}, …): constant vectors that are added to"
            " what layers write, as activation addition does."
        )
    if edits.rows_scaled:
        said.append(f"{edits.rows_scaled} rows of writing matrices were scaled or emptied.")
    emptied = len(pruned) > len(traced) / 2
    if searched and edits.mark is None and not (edits.turned or emptied):
        said += _written_only(changes)
    return tuple(said)


def _written_only(changes: Sequence[_Change]) -> list[str]:
    """A remark where only what writes to the stream was changed, without a direction."""
    matrices = [change for change in changes if change.traces is not None]
    if len(matrices) < 2 or any(change.left is None for change in matrices):
        return []
    layers = sorted({c.matrix.layer for c in matrices if c.matrix.layer is not None})
    ranks = sorted({c.matrix.rank for c in matrices if c.matrix.rank is not None})
    rank = "full rank"
    if ranks:
        rank = f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "")
    return [
        f"Only what writes to the residual stream was changed, in {layers_in_words(layers)}, with"
        f" {rank} and no direction in common with what it wrote: tools that optimise an edit of"
        " refusals do so, and some adapters."
    ]


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
    directions = list(first.values())
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
    device = "cuda" if has_gpu() else "cpu"
    return weight.detach().to(device)


def _finite(name: str, energy: float, weight: Tensor, whose: str) -> float:
    """The energy of a weight, if its values are numbers."""
    if not math.isfinite(energy) and not weight.isfinite().all():
        raise InputError(
            f"{name} of the {whose} has values that are not numbers (NaN or infinite)."
        )
    return energy


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
    loaded, its weights in memory count. Of a LoRA adapter over the base, its own matrices are read
    and those of the base that it touches.

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
    with ExitStack() as stack:

        def tensors(role: Role) -> Tensors:
            found = files[role]
            return memory_tensors(pair.get(role)) if found is None else open_shards(found, stack)

        base = list(tensors("base"))
        lora = _lora_over_base(pair, network, stack)
        if lora and lora.keys() <= {plain_name(name) for name, _ in base}:
            compared = _with_lora(base, lora, pair.get(pair.in_turn[0]))
        elif files["base"] is None and files["candidate"] is None and not pair.fits():
            raise UnavailableError(
                "Both models would have to be in memory to compare their weights, and there is no"
                " room."
            )
        else:
            compared = base, tensors("candidate")
        found = diff_weights(
            *compared,
            writer_of,
            hidden=text_config(network.config).hidden_size,
            unsearched=writers.unsure,
            on_progress=on_progress,
        )
    declared, contradicted = hold_against(
        read_declared(pair.candidate), found.edits, len(find_layers(network))
    )
    return replace(found, declared=declared, contradicted=contradicted)


def _lora_over_base(pair: Pair, network: Any, stack: ExitStack) -> dict[str, LoraChange]:
    """What the candidate's adapter does to the base's weights; empty where it has to be merged."""
    base, candidate = pair.base, pair.candidate
    adapter = candidate.adapter
    same = base.source == candidate.source and base.adapter is None
    made = base.source.after_load or (adapter and adapter.after_load)
    if pair.given or adapter is None or made or not same:
        return {}
    return read_lora(adapter, network, stack)


def _with_lora(
    base: Tensors, lora: Mapping[str, LoraChange], loaded: LoadedModel
) -> tuple[Tensors, Tensors]:
    """Weights of a base and of an adapter over it.

    Args:
        base: Names and readers.
        lora: What the adapter changes.
        loaded: One of the two models. Of what the adapter leaves alone only the size is asked,
            which its memory tells.
    """
    there = all(not p.is_meta for p in loaded.network.parameters())
    plain = there and loaded.info.quantization is None
    memory = _named(memory_tensors(loaded)) if plain else {}
    ours: list[tuple[str, Callable[[], Tensor]]] = []
    theirs: list[tuple[str, Callable[[], Tensor]]] = []
    for name, read in base:
        key = plain_name(name)
        change = lora.get(key)
        if change is None and key in memory:
            read = memory[key][1]
        ours.append((name, read))
        theirs.append((name, read if change is None else partial(_changed, read, change)))
    return ours, theirs


def _changed(read: Callable[[], Tensor], change: LoraChange) -> Tensor:
    return change.apply(read())


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
