"""Is all there that an audit needs? Looked at without loading a model's weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.artifacts import REFERENCE
from modelassay.audit.config import AuditConfig, SAEFile
from modelassay.audit.log import LOG_FILE, verify_log
from modelassay.diff.calibration import CALIBRATIONS
from modelassay.diff.suites import load_suite
from modelassay.errors import AssayError, InputError
from modelassay.models import ModelRef
from modelassay.models.embedded import BASES
from modelassay.models.finding import check_named, find_sources
from modelassay.models.organisms import is_organism
from modelassay.models.sources import read_json
from modelassay.triage import read_rows

CHECK_SCHEMA = "modelassay.audit-check/1"
SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "n_embd", "n_layer")
"""What of a config a fine-tune has from its base."""


@dataclass(frozen=True)
class Check:
    """One thing that an audit needs."""

    what: str
    ok: bool
    told: str
    """What was found, or what is wrong and what to do."""


@dataclass(frozen=True)
class ConfigCheck:
    """All that a config names."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """What of a file in another layout has no counterpart here."""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or damaged."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        checks = [asdict(check) for check in self.checks]
        return {"schema": CHECK_SCHEMA, "ok": self.ok, "checks": checks, "notes": list(self.notes)}


def check_config(config: AuditConfig) -> ConfigCheck:
    """Looks for everything that a config names.

    Models on the Hub are looked up there and their weights are left there; those that come with
    modelassay are known.
    """
    notes = list(config.notes)
    return ConfigCheck(tuple(_checks(config, notes)), tuple(notes))


def _checks(config: AuditConfig, notes: list[str]) -> Iterator[Check]:
    shapes: dict[str, dict[str, Any]] = {}
    for name, ref in config.models.items():
        yield _check(f"model {name}", lambda name=name, ref=ref: _model(name, ref, shapes))
    for number, sae in enumerate(config.saes, 1):
        yield _check(f"SAE {number}", lambda sae=sae: _sae(sae))
    for name, where in config.suites.items():
        yield _check(f"suite {name}", lambda where=where: _suite(where, notes))
    if config.training_data is not None:
        yield _check("training data", lambda: _rows(config.training_data or ""))
    if config.calibration is not None:
        yield _check("calibration", lambda: _calibration(config.calibration or ""))
    if config.labels.export is not None:
        yield _check("labels.export", lambda: _exists(Path(config.labels.export or "")))
    yield _check("folder", lambda: _folder(Path(config.folder)))


def _check(what: str, look: Callable[[], str]) -> Check:
    try:
        return Check(what, True, look())
    except AssayError as error:
        return Check(what, False, str(error))


def _model(name: str, ref: ModelRef, shapes: dict[str, dict[str, Any]]) -> str:
    if (ref.id in BASES or is_organism(ref.id)) and ref.adapter is None:
        check_named(ref)
        if ref.revision is not None:
            raise InputError(f"{ref.id} has one revision only; leave the revision out.")
        return f"{ref.id} comes with modelassay"
    source, adapter = find_sources(ref, weights=False)
    config = {} if source.gguf_file else read_json(source.folder / "config.json")
    own = {key: value for key in SHAPE if (value := config.get(key)) is not None}
    for other, shape in shapes.items():
        if wrong := next((key for key in own if shape.get(key, own[key]) != own[key]), None):
            raise InputError(
                f"{ref.id} has {wrong} {own[wrong]}, and {other} has {shape[wrong]}: they are not"
                " versions of one model."
            )
    shapes[name] = own
    return f"{source.id}{f' with the adapter {adapter.id}' if adapter else ''} is there"


def _sae(given: SAEFile | str) -> str:
    from modelassay.sae import SAES, check_installed
    from modelassay.sae.files import transcoder_text
    from modelassay.sae.finding import find_release
    from modelassay.sae.record import CONFIG_FILE

    check_installed()
    if isinstance(given, SAEFile):
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(given.path, "pt") as file:
                names = ", ".join(sorted(file.keys()))
        except (OSError, SafetensorError) as error:
            raise InputError(f"{given.path} is no safetensors file, or is not there.") from error
        return f"{given.path}, layer {given.layer} ({names[:100]})"
    if given.endswith(".safetensors"):
        raise InputError(
            f"{given} does not say where it reads; write `sae: {{path: {given}, layer: N}}`."
        )
    if (SAES.here(given) or SAES.of_model(given)) is not None:
        return f"{given} is there"
    if Path(given).expanduser().is_dir():
        _exists(Path(given).expanduser() / CONFIG_FILE)
        return f"{given} is there"
    if (release := find_release(given)) is not None:
        if release.refused is not None:
            raise InputError(f"{release.where} cannot be used: {release.refused}.")
        if release.transcoder:
            raise InputError(transcoder_text(release.where))
        return f"{release.where}, which sae-lens fetches"
    if not REFERENCE.fullmatch(given):
        raise InputError(f"No SAE {given[:120]!r}: `modelassay sae list` names some.")
    return f"{given}, on the Hub; it was not looked up"


def _suite(where: str, notes: list[str]) -> str:
    found = load_suite(Path(where))
    notes += [f"{Path(where).name}: {note}" for note in found.notes]
    return f"{len(found.prompts)} prompts and {len(found.contrasts)} contrasts"


def _rows(where: str) -> str:
    path = Path(where).expanduser()
    if not path.is_file() and REFERENCE.fullmatch(where):
        return f"{where}, on the Hub; it was not looked up"
    found = read_rows(where, skip_malformed=True)
    bad = f", {found.n_malformed} malformed" if found.n_malformed else ""
    return f"{len(found.rows)} rows{bad}"


def _calibration(where: str) -> str:
    found = CALIBRATIONS.find(where).record
    return f"{found.told()}, responses of {found.response_tokens} tokens"


def _exists(path: Path) -> str:
    if not path.exists():
        raise InputError(f"There is no {path}.")
    return f"{path} is there"


def _folder(folder: Path) -> str:
    if folder.is_symlink():
        raise InputError(f"The audit's folder {folder} is a symbolic link; give a real one.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"The audit's folder {folder} is a file; give a folder.")
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"{folder} cannot be written: {place} is not to be written into.")
    check = verify_log(folder / LOG_FILE)
    if check.problem is not None:
        raise InputError(
            f"{folder / LOG_FILE} is not as it was written ({check.problem}); keep it as evidence"
            " and give another folder."
        )
    return f"{folder}, with a log of {check.n} lines" if check.n else f"{folder}, new"
