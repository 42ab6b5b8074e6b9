"""Baselines that ams-scanner wrote, as baselines of ours.

Its JSON holds a direction and an in-sample separation for each concept, at one layer, and the shape
of the model; no hash, no interval and nothing of behaviour. So such a baseline can tell another
architecture, and shows its directions beside ours; it cannot prove an identity.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelassay.artifacts import public_id, slug
from modelassay.errors import InputError, first_line
from modelassay.files.records import LayerIndex, Line, Name, first_problem
from modelassay.models import ModelIdentity
from modelassay.verify.baseline import (
    BASELINES,
    UNWRITTEN,
    Baseline,
    BaselineIndex,
    ConceptRecord,
    Number,
)

log = logging.getLogger(__name__)

MAX_BYTES = 50_000_000
INSTRUMENT = "ams-scanner"

Vector = Annotated[list[float], Field(min_length=1, max_length=200_000)]


class _ModelInfo(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_type: Line
    num_layers: int = Field(gt=0, lt=2000)
    hidden_size: int = Field(gt=0, lt=200_000)


class _AmsBaseline(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model_id: Line
    directions: dict[Name, Vector] = Field(min_length=1, max_length=64)
    separations: dict[Name, Number]
    optimal_layers: dict[Name, LayerIndex]
    model_info: _ModelInfo
    created_at: Line


def _unused(found: _AmsBaseline) -> list[str]:
    """What a baseline of ams-scanner says that nothing here is made of."""
    names = [*(found.model_extra or {}).items()]
    names += [(f"model_info.{key}", v) for key, v in (found.model_info.model_extra or {}).items()]
    for field in ("separations", "optimal_layers"):
        of_concept = getattr(found, field)
        names += [(f"{field}.{key}", 0) for key in of_concept if key not in found.directions]
    return [name for name, value in names if value is not None]


def import_baseline(path: str | Path, *, name: str | None = None, warn: bool = True) -> Baseline:
    """Reads a baseline of ams-scanner.

    Args:
        path: Its JSON file.
        name: What it is called in a store; made from the model's id if left out.
        warn: Log a warning that names what of the file is not used.

    Raises:
        InputError: no such file, or one that is not a baseline of ams-scanner.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise InputError(f"No file {path}; give a JSON file that `ams baseline create` wrote.")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path} is larger than a baseline of ams-scanner can be.")
    try:
        found = _AmsBaseline.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {first_line(error)}") from error
    except ValidationError as error:
        raise InputError(
            f"{path} is not a baseline of ams-scanner: {first_problem(error)}."
        ) from error
    if warn and (unused := _unused(found)):
        log.warning("%s: not used: %s.", path, ", ".join(unused)[:300])
    try:
        return _converted(path, found, name)
    except ValidationError as error:
        raise InputError(
            f"{path} is not a baseline of ams-scanner: {first_problem(error)}."
        ) from error


def _converted(path: Path, found: _AmsBaseline, name: str | None) -> Baseline:
    hidden = found.model_info.hidden_size
    concepts: dict[str, ConceptRecord] = {}
    directions: dict[str, torch.Tensor] = {}
    for concept, values in found.directions.items():
        if concept not in found.separations or concept not in found.optimal_layers:
            raise InputError(f"{path} has no separation or layer of {concept}.")
        if len(values) != hidden:
            raise InputError(
                f"{path} has a direction of {concept} with {len(values)} numbers for a model of"
                f" width {hidden}."
            )
        vector = torch.tensor(values)
        directions[concept] = (vector / vector.norm().clamp_min(1e-12))[None]
        separation, layer = found.separations[concept], found.optimal_layers[concept]
        if not vector.norm() > 0:
            raise InputError(f"{path} has an empty direction of {concept}.")
        concepts[concept] = ConceptRecord(
            layers=(layer,), by_layer=(separation,), layer=layer, separation=separation
        )
    model_id = public_id(found.model_id)
    index = BaselineIndex(
        name=BASELINES.kind.check_name(name or slug(model_id)),
        created=found.created_at,
        instrument=INSTRUMENT,
        model=ModelIdentity(
            id=model_id,
            revision=None,
            adapter=None,
            quantization=None,
            architecture=found.model_info.model_type,
            n_layers=found.model_info.num_layers,
            hidden_size=hidden,
            dtype="unknown",
        ),
        files=None,
        chat_template_used=False,
        concept_set_sha256=None,
        concepts=concepts,
        signature=None,
        versions={},
        vectors_sha256=UNWRITTEN,
    )
    return Baseline(index, directions, None)
