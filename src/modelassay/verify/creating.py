"""Measures a model and makes a baseline of it."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import Unpack

from modelassay.artifacts import slug
from modelassay.data.concepts import concepts_for
from modelassay.files.provenance import utc_now
from modelassay.measures.activation_signature import Signature
from modelassay.measures.examination import Evidence, examine
from modelassay.measures.weight_sketch import WeightSketch
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.progress import OnPhase, silent
from modelassay.verify.baseline import (
    BASELINES,
    Baseline,
    BaselineIndex,
    ConceptRecord,
    RefusalRecord,
    SignatureRecord,
    SketchRecord,
)
from modelassay.verify.hashing import hash_model


def create_baseline(
    model: str | ModelRef | LoadedModel,
    *,
    name: str | None = None,
    model_id: str | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> Baseline:
    """Scans a model in full and keeps what identifies it.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        name: What the baseline is called in a store; made from the model's id if left out.
        model_id: The id to publish when the model is a local folder.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: the model cannot be read, or the name cannot be one.
        UnavailableError: something needed is not there now.
    """
    model = open_model(model, on_progress=on_progress, **load_options)
    published = model_id or public_id(model.info.id)
    name = BASELINES.kind.check_name(name or slug(published))
    found = examine(
        model, mode="full", concepts=concepts_for("full"), identity=True, on_progress=on_progress
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
        concepts=concept_records(found),
        refusal=_refusal_record(found),
        ablation_detected=found.ablation.detected,
        signature=signature_record(signature),
        sketch=sketch_record(found.sketch) if found.sketch else None,
        versions={k: v for k, v in found.provenance["versions"].items() if v},
        vectors_sha256="0" * 64,  # set when the vectors are written
    )
    return Baseline(index, found.directions, signature, found.sketch)


def concept_records(found: Evidence) -> dict[str, ConceptRecord]:
    """What was measured of each concept, as a baseline keeps it."""
    hashes = found.provenance["concept_sha256"]
    return {
        name: ConceptRecord(
            sha256=hashes[name],
            n_pairs=separation.n_pairs,
            layers=tuple(separation.by_layer),
            by_layer=tuple(separation.by_layer.values()),
            interval_by_layer=tuple(separation.interval_by_layer.values()),
            layer=separation.layer,
            separation=separation.separation,
            interval=separation.interval,
            p_value=separation.p_value,
            auroc=separation.auroc,
        )
        for name, separation in found.separations.items()
    }


def _refusal_record(found: Evidence) -> RefusalRecord | None:
    if (refusal := found.refusal) is None:
        return None
    return RefusalRecord(**{name: getattr(refusal, name) for name in RefusalRecord.model_fields})


def signature_record(signature: Signature) -> SignatureRecord:
    """The shape of a signature."""
    _, n_probes, dimensions = signature.values.shape
    return SignatureRecord(
        depths=signature.depths,
        n_probes=n_probes,
        dimensions=dimensions,
        probes_sha256=signature.probes_sha256,
    )


def sketch_record(sketch: WeightSketch) -> SketchRecord:
    """The shape of a weight sketch."""
    return SketchRecord(names=sketch.names, writers=sketch.writers, grids=sketch.grids)


def public_id(model_id: str) -> str:
    """A model id without the folders of this machine."""
    path = Path(model_id).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else model_id
