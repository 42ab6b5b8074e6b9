"""Makes baselines: of a model that is measured, or of one that ams-scanner wrote.

The JSON of ams-scanner holds a direction and an in-sample separation for each concept, at one
layer, and the shape of the model; no hash, no interval and nothing of behaviour. So an imported
baseline can tell another architecture, and shows its directions beside ours; it cannot prove an
identity.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Unpack

from modelassay.artifacts import slug
from modelassay.data.concepts import concepts_for
from modelassay.errors import InputError, first_line
from modelassay.files.provenance import utc_now
from modelassay.files.records import LayerIndex, Line, Name, first_problem
from modelassay.measures.examination import Evidence, examine
from modelassay.models import LoadedModel, ModelIdentity, ModelOptions, ModelRef, open_model
from modelassay.progress import OnPhase, silent
from modelassay.verify.baseline import (
    BASELINES,
    UNWRITTEN,
    Baseline,
    BaselineIndex,
    ConceptRecord,
    RefusalRecord,
    SignatureRecord,
    SketchRecord,
)
from modelassay.verify.files import hash_model

log = logging.getLogger(__name__)

MAX_BYTES = 50_000_000
INSTRUMENT = "ams-scanner"

Vector = Annotated[list[float], Field(min_length=1, max_length=200_000)]


def create_baseline(
    model: str | ModelRef | LoadedModel,
    *,
    name: str | None = None,
    model_id: str | None = None,
    mode: str = "quick",
    batch_size: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> Baseline:
    """Measures a model and keeps what identifies it.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        name: What the baseline is called in a store; made from the model's id if left out.
        model_id: The id to publish when the model is a local folder.
        mode: `quick` keeps all that verifications go by, `standard` and `full` also how often the
            model refuses, and further concepts.
        batch_size: Most prompts in a batch.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: no such mode, the model cannot be read, or the name cannot be one.
        UnavailableError: something needed is not there now.
    """
    concepts = concepts_for(mode)  # before any loading: bad input should fail at once
    model = open_model(model, on_progress=on_progress, **load_options)
    published = model_id or public_id(model.info.id)
    name = BASELINES.kind.check_name(name or slug(published))
    found = examine(
        model,
        mode=mode,
        concepts=concepts,
        batch_size=batch_size,
        identity=True,
        on_progress=on_progress,
    )
    return baseline_of(model, found, name, published)


def baseline_of(model: LoadedModel, found: Evidence, name: str, model_id: str) -> Baseline:
    """A baseline from what was measured."""
    signature = found.signature
    if signature is None:
        raise ValueError("the examination took no signature")
    info = model.info
    index = BaselineIndex(
        name=BASELINES.kind.check_name(name),
        created=utc_now(),
        model=info.keep(
            "revision",
            "architecture",
            "n_layers",
            "hidden_size",
            "dtype",
            "quantization",
            id=model_id,
            adapter=public_id(info.adapter) if info.adapter else None,
        ),
        files=hash_model(model),
        chat_template_used=bool(found.provenance["chat_template"]),
        concept_set_sha256=found.provenance["concept_set_sha256"],
        concepts={
            name: ConceptRecord.of(
                separation,
                sha256=found.provenance["concept_sha256"][name],
                layers=tuple(separation.by_layer),
                by_layer=tuple(separation.by_layer.values()),
                interval_by_layer=tuple(separation.interval_by_layer.values()),
            )
            for name, separation in found.separations.items()
        },
        refusal=found.refusal and RefusalRecord.of(found.refusal),
        ablation_detected=found.ablation.detected,
        signature=SignatureRecord.of(
            signature, n_probes=signature.values.shape[1], dimensions=signature.values.shape[2]
        ),
        sketch=found.sketch and SketchRecord.of(found.sketch),
        versions={k: v for k, v in found.provenance["versions"].items() if v},
        vectors_sha256=UNWRITTEN,
    )
    return Baseline(index, found.directions, signature, found.sketch)


def public_id(model_id: str) -> str:
    """A model id without the folders of this machine."""
    path = Path(model_id).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else model_id


class _ModelInfo(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_type: Line
    num_layers: int = Field(gt=0, lt=2000)
    hidden_size: int = Field(gt=0, lt=200_000)


class _AmsBaseline(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model_id: Line
    directions: dict[Name, Vector] = Field(min_length=1, max_length=64)
    separations: dict[Name, float]
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


def import_baseline(path: str | Path, *, name: str | None = None) -> Baseline:
    """Reads a baseline of ams-scanner; what of it is not used is logged as a warning.

    Args:
        path: Its JSON file.
        name: What it is called in a store; made from the model's id if left out.

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
    if unused := _unused(found):
        log.warning("%s: not used: %s.", path, ", ".join(unused)[:300])
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
