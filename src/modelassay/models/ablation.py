"""Directional ablation of a loaded model, in memory only.

Abliteration (Arditi et al. 2024) replaces each matrix W that writes to the residual stream by
W - strength · r rᵀ W, after which the layer cannot write the unit direction r (or less of it). The
project needs damaged models to test its claims on. What it keeps of one on disk is the directions;
the damaged weights exist in memory for as long as the model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import InputError, first_line
from modelassay.models.layers import find_layers, text_config
from modelassay.models.writers import find_writers

ABLATION_FILE = "ablation.safetensors"


@dataclass(frozen=True)
class Ablation:
    """Which direction is taken out of which layer, and how much of it."""

    directions: Mapping[int, Tensor]
    """Layer index to unit vector [hidden], float32."""
    strength: float = 1.0
    """1 takes the whole component out, 0.5 half of it."""


def save_ablation(ablation: Ablation, folder: Path) -> None:
    """Writes `ablation.safetensors` into a folder."""
    from safetensors.torch import save_file

    layers = sorted(ablation.directions)
    tensors = {
        "blocks": torch.tensor(layers),
        "directions": torch.stack([ablation.directions[layer] for layer in layers]).contiguous(),
        "strength": torch.tensor(ablation.strength),
    }
    save_file(tensors, str(folder / ABLATION_FILE))


def load_ablation(folder: Path) -> Ablation:
    """Reads `ablation.safetensors` from a folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / ABLATION_FILE
    try:
        tensors = load_file(str(file))
        layers = tensors["blocks"].tolist()
        directions = dict(zip(layers, tensors["directions"].float(), strict=True))
        return Ablation(directions, float(tensors["strength"]))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"Cannot read the directions in {file} ({first_line(error)}); build the organism again."
        ) from error


@torch.no_grad()
def ablate(model: Any, ablation: Ablation) -> None:
    """Takes directions out of what the layers of a model write, in place.

    Args:
        model: A transformers model with plain (not packed) weights.
        ablation: Directions by layer.

    Raises:
        InputError: a direction has another width than the model, names a layer that it does not
            have, or its weights are packed.
    """
    hidden = text_config(model.config).hidden_size
    left = set(ablation.directions)
    if not left <= set(range(len(find_layers(model)))) or any(
        r.shape != (hidden,) for r in ablation.directions.values()
    ):
        raise InputError("These directions belong to another model: layers or width do not fit.")
    writers = find_writers(model)
    if writers.unsure:
        raise InputError(f"This model cannot be ablated: {writers.unsure}.")
    for writer in writers.found:
        if writer.layer not in ablation.directions:
            continue
        weight = model.get_parameter(writer.name)
        if not weight.is_floating_point():
            raise InputError("A quantised model cannot be ablated; load it without quantization.")
        # In float64 and rounded once, so that the direction is gone to the last digit kept.
        rows = writer.rows(weight).double()
        r = ablation.directions[writer.layer].to(rows)
        rows -= ablation.strength * torch.outer(r, r @ rows)
        shape = weight.movedim(writer.axis, 0).shape
        weight.copy_(rows.reshape(shape).movedim(0, writer.axis).to(weight.dtype))
        left.discard(writer.layer)
    if left:
        raise InputError(f"Layer {min(left)} has no weights that could be ablated.")


@torch.no_grad()
def round_to_int8(model: Any) -> None:
    """Rounds every linear layer of the layers to 8 bits a row, in place.

    Symmetric, one scale an output row (the largest magnitude is 127): the values that weight-only
    int8 files hold, kept as floating-point numbers so that every device can run them.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "lm_head" not in name:
            weight = module.weight
            scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            weight.copy_((weight / scale).round().clamp(-127, 127) * scale)


@torch.no_grad()
def round_to_bfloat16(model: Any) -> None:
    """Rounds all weights to bfloat16, in place, and keeps the model's own numbers to compute in.

    Processors without bfloat16 arithmetic take minutes for what they do in seconds otherwise.
    """
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
