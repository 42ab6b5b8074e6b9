"""Edits of weights that take directions out of a loaded model, in memory only.

Abliteration (Arditi et al. 2024) replaces each matrix W that writes to the residual stream by
W - strength · r rᵀ W, after which the layer cannot write the unit direction r (or less of it). The
tools that people use vary this, and `edit_matrix` does what each of them does. The project needs
damaged models to test its claims on. What it keeps of one on disk is the directions; the damaged
weights exist in memory for as long as the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from modelassay.errors import InputError, first_line
from modelassay.models.layers import find_layers, text_config
from modelassay.models.organisms import ABLATION_FILE
from modelassay.models.writers import OUTPUTS, Kind, find_writers

Family = Literal["plain", "row-normalised", "norm-preserving", "column-norm-preserving"]
Other = Literal["readers", "embeddings"]
RANK = 3
"""To which heretic cuts its norm-preserving edit, which it ships as an adapter."""
READERS = re.compile(r"(^|\.)(q|k|v|qkv|query|key|value|query_key_value)(_proj)?$")
"""Modules that make queries, keys and values, by their names, as the tools find them."""


@dataclass(frozen=True)
class Ablation:
    """Which directions are taken out of which matrices, how, and how much of them."""

    directions: Mapping[int, Tensor]
    """Layer index to unit vector [hidden], or several of them [k, hidden], float32."""
    strength: float = 1.0
    """1 takes the whole component out, 0.5 half of it, 2 turns it round."""
    family: Family = "plain"
    strengths: Mapping[Kind, Mapping[int, float]] | None = None
    """Multiples of `strength` by kind and layer, where what is missing is left alone; None is 1
    everywhere."""
    shares: tuple[float, ...] = ()
    """Multiples of it for each of several directions; empty is 1 for all."""
    others: frozenset[Other] = frozenset()
    """What else is edited, always by the plain formula: the matrices that make queries, keys and
    values, on the side where they read the stream, and the embeddings."""

    def strength_at(self, kind: Kind, layer: int) -> float:
        """How much is taken out of the matrices of a kind in a layer; 0 leaves them alone."""
        if layer not in self.directions:
            return 0.0
        share = 1.0 if self.strengths is None else self.strengths.get(kind, {}).get(layer, 0.0)
        return self.strength * share


def ridge_directions(directions: Tensor, ridge: float) -> tuple[Tensor, tuple[float, ...]]:
    """The ridge projector R(RᵀR + λI)⁻¹Rᵀ as orthonormal directions and the share of each.

    Gabliteration and several-direction (SOM) ablation take top-k directions out partially this way.

    Args:
        directions: [k, hidden]; need not be orthogonal or of unit length.
        ridge: λ, in squared units of the directions.

    Returns:
        `Ablation.directions` of a layer [k, hidden], and `Ablation.shares`.
    """
    _, sizes, basis = torch.linalg.svd(directions.double(), full_matrices=False)
    shares = sizes.square() / (sizes.square() + ridge)
    return basis.to(directions.dtype), tuple(shares.tolist())


@torch.no_grad()
def edit_matrix(
    weight: Tensor,
    directions: Tensor,
    strength: float,
    family: Family = "plain",
    *,
    shares: Sequence[float] = (),
    rank: int | None = RANK,
) -> Tensor:
    """Takes directions out of one matrix as a family of tools does, in float64 and rounded once.

    With P = strength · Σ share · r rᵀ and N the diagonal of the norms of W's rows:

    - `plain`: W - PW (Arditi et al., FailSpy, heretic's `none`); strength 2 is a reflection.
    - `row-normalised`: N(N⁻¹W - PN⁻¹W) (heretic's `pre`).
    - `norm-preserving`: as before with each row scaled back to its norm, and the change cut to the
      first singular vectors (heretic's `full`, its default).
    - `column-norm-preserving`: the same of columns, nothing cut, and projected twice so that no
      rounding is left of r at strength 1 (grimjim's biprojected).

    Args:
        weight: [hidden, columns], floating point; rows write to the stream.
        directions: Unit vector [hidden], or several [k, hidden], which are made orthonormal.
        strength: 1 takes the whole component out; tools go up to 6.
        family: Which formula.
        shares: Multiples of the strength for each of several directions; empty is 1.
        rank: Of the `norm-preserving` change; None cuts nothing.

    Returns:
        The edited matrix in the weight's dtype.
    """
    kept = weight.double()
    basis = directions.to(kept).reshape(-1, len(kept))
    if len(basis) > 1:
        q, r = torch.linalg.qr(basis.T)
        basis = (q * r.diagonal().sign()).T  # the first stays itself, not turned round

    def without(matrix: Tensor) -> Tensor:
        for share, r in zip(shares or [1.0] * len(basis), basis, strict=True):
            matrix = matrix - strength * share * torch.outer(r, r @ matrix)
        return matrix

    if family == "plain":
        return without(kept).to(weight.dtype)
    if family == "column-norm-preserving":
        edited = normalize(without(normalize(kept, dim=0)), dim=0)
        if strength == 1 and not shares:
            edited = normalize(without(edited), dim=0)
        return (edited * kept.norm(dim=0)).to(weight.dtype)
    norms = kept.norm(dim=1, keepdim=True)
    edited = without(normalize(kept, dim=1))
    if family == "row-normalised":
        return (norms * edited).to(weight.dtype)
    change = norms * normalize(edited, dim=1) - kept
    if rank is not None and rank < min(change.shape):
        change = _cut(change, rank)
    return (kept + change).to(weight.dtype)


def _cut(change: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank, found as heretic finds it, with a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(change, q=min(2 * rank + 4, *change.shape), niter=6)
    return (u[:, :rank] * s[:rank]) @ v[:, :rank].T


def save_ablation(ablation: Ablation, folder: Path) -> None:
    """Writes `ablation.safetensors` into a folder."""
    from safetensors.torch import save_file

    layers = sorted(ablation.directions)
    tensors = {
        "blocks": torch.tensor(layers),
        "directions": torch.stack([ablation.directions[layer] for layer in layers]).contiguous(),
        "strength": torch.tensor(ablation.strength),
    }
    if ablation.family != "plain":
        tensors["family"] = torch.tensor(get_args(Family).index(ablation.family))
    if ablation.shares:
        tensors["shares"] = torch.tensor(ablation.shares, dtype=torch.float64)
    for kind, by_layer in (ablation.strengths or {}).items():
        values = [by_layer.get(layer, 0.0) for layer in layers]
        tensors[kind] = torch.tensor(values, dtype=torch.float64)
    for other in ablation.others:
        tensors[other] = torch.tensor(True)
    save_file(tensors, str(folder / ABLATION_FILE))


def load_ablation(folder: Path) -> Ablation:
    """Reads `ablation.safetensors` from a folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    with open_directions(folder / ABLATION_FILE) as tensors:
        layers = tensors["blocks"].tolist()
        strengths: dict[Kind, dict[int, float]] = {
            kind: {i: w for i, w in zip(layers, tensors[kind].tolist(), strict=True) if w}
            for kind in OUTPUTS
            if kind in tensors
        }
        return Ablation(
            dict(zip(layers, tensors["directions"].float(), strict=True)),
            float(tensors["strength"]),
            get_args(Family)[int(tensors.get("family", torch.tensor(0)))],
            strengths or None,
            tuple(tensors.get("shares", torch.tensor([])).tolist()),
            frozenset(other for other in get_args(Other) if other in tensors),
        )


@contextmanager
def open_directions(file: Path) -> Iterator[dict[str, Tensor]]:
    """The tensors of a file of directions, for a block that makes something of them.

    Raises:
        InputError: the file is missing or damaged, or lacks what the block looks for.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        yield load_file(str(file))
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"Cannot read the directions in {file} ({first_line(error)}); build the organism again."
        ) from error


@torch.no_grad()
def ablate(model: Any, ablation: Ablation) -> None:
    """Takes directions out of what the layers of a model write, in place.

    Args:
        model: A transformers model with plain (not packed) weights.
        ablation: Directions by layer. An expert of a stack is edited as a matrix of its own.

    Raises:
        InputError: a direction has another width than the model, names a layer that it does not
            have, or its weights are packed.
    """
    hidden = text_config(model.config).hidden_size
    left = set(ablation.directions)
    if not left <= set(range(len(find_layers(model)))) or any(
        r.shape[-1:] != (hidden,) or r.dim() > 2 for r in ablation.directions.values()
    ):
        raise InputError("These directions belong to another model: layers or width do not fit.")
    writers = find_writers(model)
    if writers.unsure:
        raise InputError(f"This model cannot be ablated: {writers.unsure}.")
    for writer in writers.found:
        left.discard(writer.layer)
        strength = ablation.strength_at(writer.kind, writer.layer)
        if not strength:
            continue
        weight = _plain(model.get_parameter(writer.name))
        r, axis = ablation.directions[writer.layer], writer.axis - (writer.dims - 2)
        for matrix in weight.flatten(0, -3) if writer.dims > 2 else [weight]:
            shape = matrix.movedim(axis, 0).shape
            edited = edit_matrix(
                writer.rows(matrix), r, strength, ablation.family, shares=ablation.shares
            )
            matrix.copy_(edited.reshape(shape).movedim(0, axis))
    if left:
        raise InputError(f"Layer {min(left)} has no weights that could be ablated.")
    for weight, r, strength in _others(model, ablation):
        edited = edit_matrix(_plain(weight).T, r, strength, shares=ablation.shares)
        weight.copy_(edited.T)


def _others(model: Any, ablation: Ablation) -> Iterable[tuple[Tensor, Tensor, float]]:
    """Matrices beside the writers [..., hidden], each with its directions and strength."""
    if "embeddings" in ablation.others:
        first = ablation.directions[min(ablation.directions)]
        yield model.get_input_embeddings().weight, first, ablation.strength
    if "readers" in ablation.others:
        for layer, module in enumerate(find_layers(model)):
            if strength := ablation.strength_at("attention", layer):
                for name, part in module.named_modules():
                    if isinstance(part, nn.Linear) and READERS.search(name):
                        yield part.weight, ablation.directions[layer], strength


def _plain(weight: Tensor) -> Tensor:
    if not weight.is_floating_point():
        raise InputError("A quantised model cannot be ablated; load it without quantization.")
    return weight


@torch.no_grad()
def add_biases(model: Any, vectors: Mapping[int, Tensor]) -> None:
    """Activation addition: a bias on what the MLP of a layer writes, by layer [hidden], in place.

    Raises:
        InputError: the MLP of a layer does not write by a linear module.
    """
    layers = dict(vectors)
    for writer in find_writers(model).found:
        module = model.get_submodule(writer.name.rpartition(".")[0])
        if writer.kind == "mlp" and writer.layer in layers and isinstance(module, nn.Linear):
            vector = layers.pop(writer.layer).to(module.weight)
            module.bias = nn.Parameter(vector if module.bias is None else module.bias + vector)
    if layers:
        raise InputError(f"Layer {min(layers)} has no MLP that a bias could be added to.")


@torch.no_grad()
def plant_outlier_rows(model: Any, coordinates: Sequence[int], factor: float) -> None:
    """Scales what every layer writes to some coordinates, in place.

    Makes an intact model whose rows differ in size, as those of Llama and Gemma do: a base to edit.
    """
    for writer in find_writers(model).found:
        rows = model.get_parameter(writer.name).movedim(writer.axis, 0)
        rows[list(coordinates)] *= factor


@torch.no_grad()
def round_to_int8(model: Any) -> None:
    """Rounds every linear layer of the layers to 8 bits a row, in place.

    Symmetric, one scale an output row (the largest magnitude is 127): the values that weight-only
    int8 files hold, kept as floating-point numbers so that every device can run them.
    """
    for weight in _linear_weights(model):
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
        weight.copy_((weight / scale).round().clamp(-127, 127) * scale)


@torch.no_grad()
def round_to_int4(model: Any, group: int = 32) -> None:
    """Rounds every linear layer of the layers to 4 bits, in place.

    Sixteen even steps from the least to the greatest of each group of columns in a row, as common
    4-bit files hold (GGUF's Q4_1, GPTQ, AWQ), kept as floating-point numbers.
    """
    for weight in _linear_weights(model):
        for part in weight.split(group, dim=1):
            low = part.amin(dim=1, keepdim=True)
            step = (part.amax(dim=1, keepdim=True) - low).clamp_min(1e-12) / 15
            part.copy_(((part - low) / step).round() * step + low)


def _linear_weights(model: Any) -> Iterable[Tensor]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            yield module.weight


@torch.no_grad()
def round_to_bfloat16(model: Any) -> None:
    """Rounds all weights to bfloat16, in place, and keeps the model's own numbers to compute in.

    Processors without bfloat16 arithmetic take minutes for what they do in seconds otherwise.
    """
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
