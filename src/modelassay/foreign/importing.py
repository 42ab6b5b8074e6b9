"""`import_artifact()`: what another tool wrote, kept as an artifact of this one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Unpack

from modelassay.artifacts import ImportedFrom, slug
from modelassay.classifier.record import CLASSIFIERS
from modelassay.errors import InputError
from modelassay.foreign.classifier import CONFIG as CLASSIFIER_CONFIG
from modelassay.foreign.classifier import read_classifier, write_classifier
from modelassay.foreign.probe import CONFIG, WEIGHTS, bind_probe, read_probe
from modelassay.models import ModelOptions, ModelRef, open_model
from modelassay.probes.record import PROBES, store_probe
from modelassay.progress import OnPhase, silent

IMPORT_SCHEMA = "modelassay.import/1"
TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
OWN_RECORDS = ("probe.json", "classifier.json", "baseline.json", "dictionary.json", "monitor.json")
KNOWN = (
    "a folder of open-constitution with probe.pt and config.json, the file probe.pt, or a folder"
    " with classifier_config.json"
)
READ_AS_IT_IS = (
    "other files need no import here: give training rows to `modelassay triage`, prompts to"
    " `modelassay diff --suite` or `--data`, an audit's settings to `modelassay mcp --config`,"
    " and a baseline of ams-scanner to `modelassay baseline import`"
)


@dataclass(frozen=True)
class Imported:
    """An artifact that another tool made, as it is kept now."""

    kind: Literal["probe", "classifier"]
    name: str
    folder: Path
    model: str
    """Id of the model that it belongs to; of a classifier, of its encoder."""
    imported: ImportedFrom
    """What is unknown, done otherwise, and left out."""
    lines: tuple[str, ...]
    """What it is, for a person."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, schema `modelassay.import/1`."""
        own = {k: v for k, v in asdict(self).items() if k not in ("lines", "imported")}
        told = self.imported.model_dump(mode="json")
        return {"schema": IMPORT_SCHEMA, **own, "folder": str(self.folder), "imported": told}


def import_artifact(
    path: str | Path,
    *,
    config: Path | None = None,
    model: str | None = None,
    name: str | None = None,
    out: Path | None = None,
    force: bool = False,
    on_progress: OnPhase = silent,
    **options: Unpack[ModelOptions],
) -> Imported:
    """Converts what another tool wrote; it is kept whole or not at all.

    Args:
        path: A folder or file; see `KNOWN`.
        config: Settings of a probe, where they do not lie beside it as `config.json`.
        model: The model that a probe was fitted on; None for the one that its settings name.
        name: Under which it is kept in the user's store; None makes it of the path.
        out: Folder in place of the store's.
        force: Replace one that is there.
        on_progress: Told (phase, done, total) while the model loads.
        **options: Of the model, as `modelassay.load` takes them.

    Raises:
        InputError: nothing that is known is there, or it is damaged, hostile, or does not fit the
            model.
        UnavailableError: the model cannot be fetched, or no room on the disk.
    """
    place = Path(path).expanduser()
    kind = _kind_of(place)
    source = place.parent if place.is_file() else place
    given = name or slug((out or source).resolve().name)
    store = PROBES if kind == "probe" else CLASSIFIERS
    store.kind.check_name(given)
    out = out and out.expanduser()
    if kind == "classifier":
        if model is not None or config is not None:
            raise InputError("A classifier belongs to no model; leave --model and --config out.")
        judge = read_classifier(source)
        CLASSIFIERS.check_free(given, force=force, out=out)
        folder = CLASSIFIERS.save(
            lambda partial: write_classifier(judge, partial), given, force=force, out=out
        )
        record: Any = judge.record
        base = judge.record.base.id
    else:
        weights = place if place.is_file() and place.suffix in TORCH_FILES else source / WEIGHTS
        found = read_probe(weights, config or source / CONFIG)
        model_id = model or found.model_id
        if model_id is None:
            raise InputError(f"{config or source / CONFIG} names no model; give it with --model.")
        PROBES.check_free(given, force=force, out=out)
        loaded = open_model(ModelRef(model_id), on_progress=on_progress, **options)
        probe = bind_probe(found, loaded, given)
        folder = store_probe(probe.record, probe.heads, force=force, out=out)
        record, base = probe.record, loaded.info.id
    lines = store.kind.describe(record)
    return Imported(kind, given, folder, base, record.imported, tuple(lines))


def _kind_of(place: Path) -> Literal["probe", "classifier"]:
    """What lies there.

    Raises:
        InputError: nothing that can be imported.
    """
    try:
        is_folder, is_file = place.is_dir(), place.is_file()
    except OSError as error:
        raise InputError(f"Cannot look at {str(place)[:120]} ({error.strerror}).") from error
    if is_file:
        if place.suffix in TORCH_FILES:
            return "probe"
        if place.name == CLASSIFIER_CONFIG:
            return "classifier"
        if place.name == CONFIG and (place.parent / WEIGHTS).exists():
            return "probe"
        if place.suffix in (".json", ".jsonl", ".yaml", ".yml"):
            raise InputError(f"{place} is no probe or classifier, and {READ_AS_IT_IS}.")
    elif is_folder:
        if (place / CLASSIFIER_CONFIG).exists():
            return "classifier"
        if (place / WEIGHTS).exists() or (place / WEIGHTS).is_symlink():
            return "probe"
        own = next((each for each in OWN_RECORDS if (place / each).is_file()), None)
        if own is not None:
            raise InputError(f"{place} is one of modelassay's own ({own}); use it as it is.")
    else:
        raise InputError(f"There is no file or folder {str(place)[:200]}.")
    raise InputError(f"{place} cannot be imported; known are {KNOWN}.")
