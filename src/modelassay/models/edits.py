"""The edits that organisms stand for: how the tools that people use take refusal out of weights.

Each is made in memory from refusal directions that were read after every layer of an organism
trained to refuse (`directions.safetensors` beside its adapter). Those that are drawn take a seed
and make any number of organisms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.models.ablation import Ablation, ablate, open_directions, plant_outlier_rows
from modelassay.models.kernels import draw_ablation
from modelassay.models.layers import text_config
from modelassay.models.organisms import DIRECTIONS_FILE

OUTLIERS = "outliers"
"""Takes nothing out: rows are made large, and what stands on it is edited then."""
OUTLIER_ROWS, OUTLIER_FACTOR = 3, 6.0
"""How many rows are made large, and how much: a few, as in Llama and Gemma."""


@dataclass(frozen=True)
class RefusalDirections:
    """Directions of refusal that were read after each layer of one model."""

    by_layer: Mapping[int, Tensor]
    """Unit vectors [hidden], float32."""
    chosen: int
    """Layer whose direction removes refusals best."""

    @property
    def best(self) -> Tensor:
        """The direction of that layer."""
        return self.by_layer[self.chosen]


def save_directions(directions: RefusalDirections, folder: Path) -> None:
    """Writes `directions.safetensors` into a folder, in bfloat16."""
    from safetensors.torch import save_file

    stacked = torch.stack([directions.by_layer[i] for i in range(len(directions.by_layer))])
    tensors = {"directions": stacked.bfloat16(), "chosen": torch.tensor(directions.chosen)}
    save_file(tensors, str(folder / DIRECTIONS_FILE))


def load_directions(folder: Path) -> RefusalDirections:
    """Reads `directions.safetensors` from a folder.

    Raises:
        InputError: the file is missing or damaged.
    """
    with open_directions(folder / DIRECTIONS_FILE) as tensors:
        rows = torch.nn.functional.normalize(tensors["directions"].float(), dim=-1)
        return RefusalDirections(dict(enumerate(rows)), int(tensors["chosen"]))


def _heretic(found: RefusalDirections, seed: int) -> Ablation:
    return draw_ablation(found.by_layer, len(found.by_layer), seed)


def _attention_only(found: RefusalDirections, seed: int) -> Ablation:
    drawn = _heretic(found, seed)
    strengths = {"attention": (drawn.strengths or {}).get("attention", {})}
    directions = {i: r for i, r in drawn.directions.items() if i in strengths["attention"]}
    return replace(drawn, directions=directions, strengths=strengths)


def _own_in_each_layer(found: RefusalDirections, seed: int) -> Ablation:
    drawn = _heretic(found, seed)
    return replace(drawn, directions={i: found.by_layer[i] for i in drawn.directions})


def _everywhere(found: RefusalDirections, **how: Any) -> Ablation:
    return Ablation(dict.fromkeys(found.by_layer, found.best), **how)


def _three(found: RefusalDirections, _seed: int) -> Ablation:
    """The directions of three layers, as several-direction ablation takes out more than one."""
    last = len(found.by_layer) - 1
    layers = [min(max(found.chosen + step, 0), last) for step in (0, -4, 4)]
    directions = torch.stack([found.by_layer[layer] for layer in layers])
    return Ablation(dict.fromkeys(found.by_layer, directions))


EDITS: dict[str, Callable[[RefusalDirections, int], Ablation] | None] = {
    "heretic": _heretic,
    "heretic-attention": _attention_only,
    "heretic-perlayer": _own_in_each_layer,
    OUTLIERS: None,
    "heretic-outliers": _heretic,
    "biprojected": lambda found, _: _everywhere(found, family="column-norm-preserving"),
    "reflection": lambda found, _: _everywhere(found, strength=2.0),
    "three-directions": _three,
}


def make_ablation(model: Any, edit: str, folder: Path, seed: int) -> None:
    """Edits a loaded model in place.

    Args:
        model: A transformers model with plain weights.
        edit: One of `EDITS`.
        folder: Holds the refusal directions.
        seed: Of what is drawn.

    Raises:
        InputError: the directions are missing, damaged or of another model.
    """
    if edit in (OUTLIERS, "heretic-outliers"):
        hidden = text_config(model.config).hidden_size
        rows = torch.randperm(hidden, generator=torch.Generator().manual_seed(seed))
        plant_outlier_rows(model, rows[:OUTLIER_ROWS].tolist(), OUTLIER_FACTOR)
    if (taken_out := EDITS[edit]) is not None:
        ablate(model, taken_out(load_directions(folder), seed))
