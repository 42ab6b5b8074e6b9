"""Configs of the fine-tune auditor (codex_mcp_finetune_auditor), brought to the keys of ours.

Its relative paths start where the command is run, or in FT_AUDIT_BASE_DIR. Each key that has no
counterpart here is told in a line of its own; none is dropped without a word.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator

from modelassay.errors import InputError
from modelassay.files.records import first_problem

BASE_FOLDER = "FT_AUDIT_BASE_DIR"
Role = Literal["base", "benign", "adversarial"]
ORGANISMS: dict[Role, str] = {
    "base": "organism:safe",
    "benign": "organism:benign",
    "adversarial": "organism:uncensored",
}
"""What stands in for mock models: real ones that come with modelassay."""
SUITES, MOST_SUITES = "prompt_suites/*.yaml", 100
"""Where its suites are, which its users ask by path."""
CANDIDATES: tuple[Role, ...] = ("adversarial", "benign")
NEURONPEDIA = "neuronpedia.org"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class _Project(_Section):
    name: str | None = None
    results_dir: str = "./runs"
    seed: int = 0
    score_method: str | None = None


class _Backend(_Section):
    type: Literal["mock", "hf"] = "mock"


class _Model(_Section):
    id_or_path: str = Field(
        min_length=1, max_length=1000, validation_alias=AliasChoices("id_or_path", "model_id")
    )
    revision: str | None = None
    trust_remote_code: bool = False
    device_map: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None


class _Dataset(_Section):
    training_jsonl: str | None = None


class _Weights(_Section):
    source: Literal["local", "hf_hub"] = "local"
    path: str | None = None
    repo_id: str | None = None
    filename: str | None = None


class _SAE(_Section):
    enabled: bool = False
    layer: int = Field(default=0, ge=0, lt=2000)
    module_path_template: str = "model.model.layers.{layer}"
    output_selector: Literal["first", "raw"] = "first"
    weights: _Weights | None = None
    repo_id: str | None = None
    """Of a shorter form: an SAE of the Hub by its repository."""
    filename: str | None = None


class _Neuronpedia(_Section):
    enabled: bool = False
    base_url: str = "http://127.0.0.1:3000"
    model_id: str = ""
    source: str = ""
    inference_base_url: str | None = None
    inference_secret_env_var: str | None = None


class _Interp(_Section):
    sae: _SAE = _SAE()
    neuronpedia: _Neuronpedia = _Neuronpedia()


class _Config(_Section):
    project: _Project = _Project()
    backend: _Backend = _Backend()
    models: dict[Role, _Model]
    dataset: _Dataset = _Dataset()
    interp: _Interp = _Interp()

    @field_validator("backend", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"type": given} if isinstance(given, str) else given


def base_folder() -> Path:
    """Where relative paths of the auditor's users start."""
    return Path(os.path.expanduser(os.environ.get(BASE_FOLDER) or ".")).absolute()


def is_auditors(data: Mapping[str, Any]) -> bool:
    """Whether a file is in the auditor's layout: its models stand under one key."""
    return isinstance(data.get("models"), dict) and "base" not in data


def from_auditor(data: Mapping[str, Any], source: str) -> tuple[dict[str, Any], list[str], Path]:
    """A config of the auditor's in our keys.

    Args:
        data: As the file has it, variables expanded.
        source: The file, for errors.

    Returns:
        Our keys; what has no counterpart, a line each; and where relative paths start.

    Raises:
        InputError: one line that names the key.
    """
    try:
        theirs = _Config.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{source}: {first_problem(error, model=_Config)}.") from error
    home = base_folder()
    if not home.is_dir():
        raise InputError(f"{BASE_FOLDER} names no folder: {str(home)[:200]}.")
    mock = theirs.backend.type == "mock"
    if "base" not in theirs.models:
        raise InputError(f"{source}: the key `models.base` is missing.")
    if len(theirs.models) < 2:
        raise InputError(f"{source}: give `models.adversarial`, `models.benign`, or both.")
    base = theirs.models["base"]
    ours: dict[str, Any] = {
        "base": ORGANISMS["base"] if mock else _here(base.id_or_path, home),
        "base_revision": None if mock else base.revision or None,
        "candidates": {
            role: {"id": ORGANISMS[role]}
            if mock
            else {"id": _here(each.id_or_path, home), "revision": each.revision or None}
            # The suspect comes first: tools that are told no model compare it with the base.
            for role in CANDIDATES
            if (each := theirs.models.get(role)) is not None
        },
        "dtype": base.dtype or "auto",
        "device": base.device_map or "auto",
        "training_data": theirs.dataset.training_jsonl or None,
        "folder": str(Path(theirs.project.results_dir).expanduser()),
        "suites": {path.stem: str(path) for path in sorted(home.glob(SUITES))[:MOST_SUITES]},
        "seed": theirs.project.seed,
    }
    notes = list(_notes(theirs))
    saes, more = _saes(theirs, source, home)
    if saes:
        ours["saes"] = saes
    asks = theirs.interp.neuronpedia
    if asks.enabled and _is_asked(asks.base_url):
        ours["labels"] = {"neuronpedia": True}
    return ours, [*notes, *more], home


def _notes(theirs: _Config) -> Iterator[str]:
    """What has no counterpart, a line each."""
    project, asks = theirs.project, theirs.interp.neuronpedia
    if project.name:
        yield "`project.name` is not used: an audit goes by its folder."
    if project.score_method:
        yield (
            "`project.score_method` is not used: the score is that of `modelassay diff`, held"
            " against benign fine-tunes."
        )
    if theirs.backend.type == "mock":
        yield (
            "`backend: mock` has no counterpart: real models that come with modelassay stand in"
            f" ({', '.join(ORGANISMS[role] for role in theirs.models)})."
        )
    base = theirs.models["base"]
    for role, each in theirs.models.items():
        if each.trust_remote_code:
            yield f"`models.{role}.trust_remote_code` is not followed: an audit runs no such code."
        if each.attn_implementation:
            yield f"`models.{role}.attn_implementation` is not used: transformers chooses."
        for key in ("device_map", "dtype"):
            if (given := getattr(each, key) or "auto") != (getattr(base, key) or "auto"):
                yield f"`models.{role}.{key}: {given[:40]}` is not used: that of the base counts."
    if theirs.interp.sae.output_selector == "raw":
        yield "`interp.sae.output_selector: raw` is not used: the output of the layer is read."
    if asks.enabled and not _is_asked(asks.base_url):
        yield (
            "`interp.neuronpedia.base_url` is not asked: set NEURONPEDIA_URL to the same address,"
            " or write a config of ours with `labels: {export: FOLDER}`."
        )
    for key in ("inference_base_url", "inference_secret_env_var"):
        if asks.enabled and getattr(asks, key):
            yield f"`interp.neuronpedia.{key}` is not used: features are read on this machine."


def _is_asked(server: str) -> bool:
    """Whether features are looked up at an address: the public server, or the one that is set."""
    own = os.environ.get("NEURONPEDIA_URL", "").rstrip("/")
    return server.rstrip("/") == own if own else NEURONPEDIA in server


def _saes(theirs: _Config, source: str, home: Path) -> tuple[list[Any], list[str]]:
    """The SAE, and what there is to say of it."""
    sae, asks = theirs.interp.sae, theirs.interp.neuronpedia
    if not sae.enabled:
        return [], []
    if theirs.backend.type == "mock":
        return ["embedded"], [
            "`interp.sae.weights` is not used with `backend: mock`: the SAE of the embedded model"
            " stands in."
        ]
    weights = sae.weights or (
        _Weights(source="hf_hub", repo_id=sae.repo_id, filename=sae.filename)
        if sae.repo_id
        else None
    )
    if weights is None:
        raise InputError(f"{source}: `interp.sae.enabled` needs `interp.sae.weights`.")
    from modelassay.sae.hook_names import parse_layer

    hook = sae.module_path_template.replace("{layer}", str(sae.layer))
    layer = parse_layer(hook, f"{source}: `interp.sae.module_path_template`")
    known = f"{asks.model_id}/{asks.source}" if asks.model_id and asks.source else None
    if weights.source == "local":
        if not weights.path:
            raise InputError(f"{source}: `interp.sae.weights.path` is missing.")
        path = str((home / Path(weights.path).expanduser()).resolve())
        return [{"path": path, "layer": layer, "neuronpedia_id": known}], []
    if not weights.repo_id or not weights.filename:
        raise InputError(
            f"{source}: `interp.sae.weights` needs `repo_id` and `filename` where `source` is"
            " hf_hub."
        )
    from modelassay.sae.finding import release_at

    release = release_at(weights.repo_id, weights.filename)
    if release is None:
        raise InputError(
            f"{source}: sae-lens knows no SAE {weights.filename[:80]} of {weights.repo_id[:80]};"
            " fetch the file and give its path with `source: local`, or see `modelassay sae list`."
        )
    return [release.where], []


def _here(model: str, home: Path) -> str:
    """A folder by its whole path; an id as it is."""
    path = Path(model).expanduser()
    try:
        there = (home / path).is_dir()
    except OSError:
        return model
    return str((home / path).resolve()) if there else model
