"""Has a direction been erased from the weights? A check that needs no prompt and no base model.

Directional ablation ("abliteration", Arditi et al. 2024) replaces every matrix W that writes to the
residual stream by (I - r rᵀ) W. Whatever r was, it is now a direction that no layer can write:
the Gram matrix W Wᵀ has an eigenvalue of (almost) zero, where the smallest eigenvalues of an
untouched matrix lie close together. So the fingerprint is the ratio of neighbouring small
eigenvalues of the summed, normalised Gram matrices, per layer and over all layers.

What it can see: full ablation of one to four directions, in all layers or a band of them, with one
direction for all or one for each, also after rounding to bf16 or 8 bits. What it cannot see without
the base: partial ablation (W - ½ r rᵀ W leaves an ordinary small eigenvalue; at a strength of 0.8
and with one direction for all layers the sum over layers still shows it), ablation at run time, an
adapter that is not merged, and any fine-tune.

Tensors are streamed one at a time from the safetensors shards, so memory stays at one matrix and
one Gram matrix of the hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.layers import (
    LAYER_INDEX,
    OTHER_TOWERS,
    residual_axis,
    text_config,
    writing_layer,
)
from modelassay.models.quantization import unpacked
from modelassay.progress import OnProgress, told

ERASED_RATIO = 0.05
"""A neighbouring-eigenvalue ratio below this is a hole. Untouched matrices measured lie above 0.4
(docs/method.md), erased ones below 0.001 in fp32 and bf16 and 0.02 in int8."""
ERASED_RATIO_IN_SUM = 0.1
"""The same for the sum over all layers, which is smoother (0.975 untouched), so that a direction
that all layers share shows after coarse rounding too."""
MAX_ERASED_DIRECTIONS = 4
"""A larger null space is padding or a low-rank design, not an erased concept."""
MIN_ERASED_LAYERS = 2
"""One layer alone may be odd by nature (the first and last ones are)."""
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

    @property
    def blocks(self) -> tuple[int, ...]:
        """`layers` under the name that it had in 0.1."""
        return self.layers


@dataclass(frozen=True)
class _Spectrum:
    ratio: float
    n_erased: int
    """How many eigenvalues lie below the gap."""
    vectors: np.ndarray
    """[hidden, n_erased] their unit eigenvectors."""


def search_ablation(model: LoadedModel, on_progress: OnProgress | None = None) -> AblationEvidence:
    """Searches the weights of a loaded model for erased directions.

    The files are read where they hold plain weights; for adapters, GGUF files and pre-quantised
    checkpoints the weights in memory are.

    Args:
        model: A loaded model.
        on_progress: Told (layers done, layers in all).
    """
    config = text_config(model.network.config)
    with ExitStack() as stack:
        return search_tensors(
            stored_tensors(model, stack),
            config.hidden_size,
            config.model_type,
            on_progress=on_progress,
        )


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
    return ((name, partial(unpacked, value)) for name, value in model.network.named_parameters())


def open_shards(files: Sequence[Path], stack: ExitStack) -> Iterator[tuple[str, Any]]:
    """Names and readers of all tensors in safetensors files; nothing is read yet."""
    from safetensors import safe_open

    for file in files:
        shard = stack.enter_context(safe_open(str(file), framework="pt"))
        for name in shard.keys():  # noqa: SIM118 (not a dict)
            yield name, partial(shard.get_tensor, name)


def search_tensors(
    tensors: Tensors,
    hidden_size: int,
    model_type: str,
    *,
    on_progress: OnProgress | None = None,
) -> AblationEvidence:
    """Searches named weight tensors for directions that no layer can write.

    Args:
        tensors: Names and readers, in any order.
        hidden_size: Width of the residual stream.
        model_type: transformers model type; decides whether matrices are stored transposed.
        on_progress: Told (layers done, layers in all).
    """
    writers: dict[int, list[Callable[[], Tensor]]] = {}
    for name, read in tensors:
        if (layer := writing_layer(name)) is not None:
            writers.setdefault(layer, []).append(read)
    if not writers:
        return unsearched("none of the weights has the name of an output projection")

    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = np.zeros((hidden_size, hidden_size))
    spectra: dict[int, _Spectrum] = {}
    for layer in told(sorted(writers), on_progress):
        gram = np.zeros_like(total)
        for read in writers[layer]:
            weight = read()
            if not weight.is_floating_point() or hidden_size not in weight.shape:
                return unsearched("the weights are stored packed (quantised)")
            if not weight.isfinite().all():
                raise InputError(
                    f"Layer {layer} has weights that are not numbers (NaN or infinite)."
                )
            gram += _normalised_gram(weight, hidden_size, model_type, device)
        spectra[layer] = _spectrum(gram)
        total += gram

    in_sum = _spectrum(total)
    erased = tuple(layer for layer, spectrum in spectra.items() if spectrum.ratio < ERASED_RATIO)
    shared_hole = in_sum.ratio < ERASED_RATIO_IN_SUM
    if shared_hole:
        # A direction missing from the sum is missing from every layer.
        erased = tuple(spectra)
    return AblationEvidence(
        detected=shared_hole or len(erased) >= min(MIN_ERASED_LAYERS, len(spectra)),
        eigenvalue_ratio=in_sum.ratio,
        layers=erased,
        ratio_by_layer={layer: spectrum.ratio for layer, spectrum in spectra.items()},
        n_directions=in_sum.n_erased
        if shared_hole
        else max((spectra[layer].n_erased for layer in erased), default=0),
        shared=_share_subspace([spectra[layer].vectors for layer in erased]) or shared_hole
        if erased
        else None,
    )


def _share_subspace(bases: Sequence[np.ndarray]) -> bool:
    """Whether most pairs of orthonormal bases span the same space (mean squared cosine near 1)."""
    overlaps = [
        float(np.square(bases[i].T @ bases[j]).sum()) / min(bases[i].shape[1], bases[j].shape[1])
        for i in range(len(bases))
        for j in range(i)
    ]
    return bool(np.median(overlaps) > SHARED_COSINE**2) if overlaps else True


def _normalised_gram(weight: Tensor, hidden: int, model_type: str, device: str) -> np.ndarray:
    """W Wᵀ over the residual stream's axis, scaled to a mean eigenvalue of 1; [hidden, hidden]."""
    axis = residual_axis(weight, hidden, model_type)
    weight = weight.movedim(axis, 0).reshape(hidden, -1)
    weight = weight.to(device).float()
    gram = (weight @ weight.T).double().cpu().numpy()
    return gram * (hidden / max(float(np.trace(gram)), 1e-30))


def _spectrum(gram: np.ndarray) -> _Spectrum:
    """The smallest ratio of neighbouring eigenvalues among the first few."""
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
    # Negative values are rounding; the floor keeps two of them from making a ratio.
    values = np.maximum(values, 1e-9 * np.trace(gram) / n)
    ratios = values[:-1] / values[1:]
    hole = int(np.argmin(ratios))
    return _Spectrum(float(ratios[hole]), hole + 1, vectors[:, : hole + 1])


def unsearched(reason: str) -> AblationEvidence:
    """What is said where no search was made."""
    return AblationEvidence(None, None, (), {}, 0, None, reason)
