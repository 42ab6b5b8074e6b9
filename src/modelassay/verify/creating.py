"""Makes baselines of models that are measured."""

from __future__ import annotations

from typing_extensions import Unpack

from modelassay.artifacts import public_id, slug
from modelassay.data.concepts import concepts_for
from modelassay.files.provenance import utc_now
from modelassay.measures.examination import Evidence, examine
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.models.refs import require_template
from modelassay.progress import OnPhase, silent
from modelassay.reading.device import OnDevice, here
from modelassay.threads import sharing
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


@sharing
def create_baseline(
    model: str | ModelRef | LoadedModel,
    *,
    name: str | None = None,
    model_id: str | None = None,
    mode: str = "quick",
    batch_size: int | None = None,
    on_device: OnDevice = here,
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
        on_device: Where the model runs, for those who lend a GPU for as long as it does.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: no such mode, the model cannot be read, or the name cannot be one.
        UnavailableError: something needed is not there now.
    """
    require_template(load_options, "A baseline")
    if name is not None:
        BASELINES.kind.check_name(name)
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
        on_device=on_device,
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
