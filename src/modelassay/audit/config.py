"""What an audit is about: a YAML file, checked key by key.

In text, `${NAME}` is replaced by an environment variable and `${NAME:-default}` by it or, where it
is unset or empty, by the default. Nothing else is expanded: no `~`, no `$NAME`, no commands.

A tool reads files inside the audit's folder alone (`inside()`).
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from modelassay.audit.auditor_config import from_auditor, is_auditors
from modelassay.data.concepts import read_mapping
from modelassay.errors import InputError, first_line
from modelassay.files.records import LayerIndex, Line, first_problem
from modelassay.models import LoadOptions, ModelRef


def profile_of(given: Any) -> Any:
    """A profile by either spelling."""
    return given.replace("_", "-") if isinstance(given, str) else given


Profile = Annotated[Literal["full", "behavior-only"], BeforeValidator(profile_of)]
# A default may hold one pair of braces, as a template of a path does.
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^{}]|\{[^{}]*\})*))?\}")
Reference = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{1,59}$")]
"""A candidate's name; longer than the letter that it gets."""
MAX_PATH = 500
MAX_CANDIDATES = 12
BASE, CANDIDATE = "base", "candidate"
RESERVED = (BASE, CANDIDATE, "all", "both")


class _Strict(BaseModel):
    """Refuses unknown keys: a misspelt one would be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """What one call of a tool may ask for."""

    prompts: int = Field(default=64, ge=1, le=1000)
    """Prompts that a call may ask the models."""
    suite: int = Field(default=500, ge=1, le=5000)
    """Prompts of a suite that is read whole, for a score against benign fine-tunes."""
    new_tokens: int = Field(default=128, ge=1, le=4096)
    """Tokens of a response."""
    text: int = Field(default=2000, ge=100, le=100_000)
    """Characters of any text in a result; longer ones are cut."""
    seconds: float = Field(default=600.0, gt=0, le=86_400)
    """Time of a call; looked at between two batches."""
    rows: int = Field(default=50, ge=1, le=1000)
    """Rows of the training data that a call may show."""


class LabelSource(_Strict):
    """Where explanations of features come from, beside the labels that lie with the dictionary."""

    neuronpedia: bool = False
    """Ask Neuronpedia; feature numbers leave this machine."""
    export: str | None = None
    """A file or folder of Neuronpedia's export."""


class Candidate(_Strict):
    """One of several candidates."""

    id: Reference | None = None
    """May be left out where `adapter` goes over the base."""
    adapter: Reference | None = None
    revision: Reference | None = None


class SAEFile(_Strict):
    """A file of an SAE's weights that does not say where it reads."""

    path: Reference
    layer: LayerIndex
    neuronpedia_id: Line | None = None
    """`model/source`, under which Neuronpedia knows its features."""


def _each(given: Any) -> Any:
    """One or several, as several."""
    return given if isinstance(given, list | tuple) else () if given is None else (given,)


class AuditConfig(_Strict):
    """All of an audit's settings."""

    base: Reference
    """The model before the fine-tune, an id as `modelassay.load` takes it."""
    candidate: Reference | None = None
    """The model after it; may be left out where `candidate_adapter` goes over the base."""
    base_adapter: Reference | None = None
    candidate_adapter: Reference | None = None
    base_revision: Reference | None = None
    candidate_revision: Reference | None = None
    candidates: dict[Key, Candidate | Reference] = Field(
        default_factory=dict, max_length=MAX_CANDIDATES
    )
    """Several by name, in place of `candidate` or beside it."""
    dtype: str = "auto"
    device: str = "auto"
    saes: Annotated[tuple[SAEFile | Reference, ...], BeforeValidator(_each)] = Field(
        (), validation_alias=AliasChoices("sae", "saes", "dictionary"), max_length=20
    )
    """As `find_sae` takes them, or files with their layer; none leaves the tools about features
    without one."""
    calibration: Reference | None = None
    """Benign fine-tunes that candidates are held against; None takes those known of the base."""
    labels: LabelSource = LabelSource()
    suites: dict[str, Reference] = Field(default_factory=dict, max_length=100)
    """Further suites by name; the shipped ones are always there."""
    training_data: Reference | None = None
    folder: Reference
    """Where the log and the reports are written, and the only place that tools read paths in."""
    profile: Profile = "full"
    blind: bool = False
    """The models are called A and B, and nothing says which is which."""
    seed: int | None = None
    """Decides who is A in a blind audit; a number that the auditor does not know."""
    reveal: bool = False
    """The report of a blind audit says which model was which, and ends the audit."""
    redact: bool = True
    """Responses to harmful prompts, and texts of the training data, are given as hashes."""
    limits: Limits = Limits()
    notes: tuple[str, ...] = Field(default=(), exclude=True)
    """What of a file in another layout has no counterpart here; no key of a file."""
    path: str | None = Field(default=None, exclude=True)
    """The file itself; no key of a file."""

    @property
    def models(self) -> dict[str, ModelRef]:
        """The models by name, the base first."""
        found = {BASE: ModelRef(self.base, self.base_revision, self.base_adapter)}
        if self.candidate is not None or self.candidate_adapter is not None:
            found[CANDIDATE] = ModelRef(
                self.candidate or self.base, self.candidate_revision, self.candidate_adapter
            )
        for name, given in self.candidates.items():
            each = Candidate(id=given) if isinstance(given, str) else given
            found[name] = ModelRef(each.id or self.base, each.revision, each.adapter)
        return found

    @property
    def base_ref(self) -> ModelRef:
        """The base, with the adapter over it."""
        return self.models[BASE]

    @property
    def candidate_ref(self) -> ModelRef:
        """The candidate, or the first of several, with the adapter over it."""
        return list(self.models.values())[1]

    @property
    def load_options(self) -> LoadOptions:
        """Arguments of `modelassay.load` that both models share."""
        return {"device": self.device, "dtype": self.dtype}


def load_config(
    path: str | Path, *, profile: Profile | None = None, blind: bool | None = None
) -> AuditConfig:
    """Reads an audit's settings.

    Relative paths are taken from the file's own folder; model ids and SAEs only where they
    begin with a dot, since `owner/name` could be either.

    Args:
        path: YAML or JSON file.
        profile: In place of the file's.
        blind: In place of the file's.

    Raises:
        InputError: one line that names the key or the variable.
    """
    path = Path(path)
    data, notes, home = expand(read_mapping(path), path.name), (), path.absolute().parent
    if is_auditors(data):
        data, notes, home = from_auditor(data, path.name)
    if own := {"notes", "path"} & data.keys():
        raise InputError(f"{path.name}: unknown key `{own.pop()}`.")
    if profile is not None:
        data["profile"] = profile
    if blind is not None:
        data["blind"] = blind
    try:
        config = AuditConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error, model=AuditConfig)}.") from error
    _check(config, path.name)
    told = {"notes": tuple(notes), "path": str(path.absolute())}
    return _with_places(config.model_copy(update=told), home)


def _check(config: AuditConfig, source: str) -> None:
    """Refuses what each key allows and all together do not.

    Raises:
        InputError: one line that names the keys.
    """
    if len(config.models) == 1:
        raise InputError(
            f"{source}: give `candidate`, `candidate_adapter` over the base, or `candidates`."
        )
    for name, each in config.candidates.items():
        if name in RESERVED:
            raise InputError(f"{source}: a candidate cannot be called {name}; give another name.")
        if isinstance(each, Candidate) and each.id is None and each.adapter is None:
            raise InputError(f"{source}: `candidates.{name}` needs an `id`, or an `adapter`.")
    if config.blind and config.seed is None:
        raise InputError(
            f"{source}: a blind audit needs `seed`, a number that the auditor does not know."
        )


def expand(value: Any, source: str) -> Any:
    """Environment variables in all texts of a mapping or list; keys stay as they are.

    Raises:
        InputError: a variable is not set and has no default.
    """
    if isinstance(value, dict):
        return {key: expand(entry, source) for key, entry in value.items()}
    if isinstance(value, list):
        return [expand(entry, source) for entry in value]
    if not isinstance(value, str):
        return value

    def replaced(match: re.Match[str]) -> str:
        name, default = match.groups()
        found = os.environ.get(name)
        if default is not None:
            return found or default
        if found is None:
            raise InputError(
                f"{source}: the environment variable {name} is not set; set it, or write"
                f" ${{{name}:-default}}."
            )
        return found

    return VARIABLE.sub(replaced, value)


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; what cannot be looked at is not there."""
    try:
        return path.exists()
    except OSError:  # a name that is too long, for one
        return False


def _with_places(config: AuditConfig, home: Path) -> AuditConfig:
    """The same with paths that do not depend on where the command is run."""

    def dotted(value: str | None) -> str | None:
        return str((home / value).resolve()) if value and value.startswith(".") else value

    def found(value: str) -> str:
        return str(home / value) if is_there(home / value) else value

    def placed(each: Candidate | str) -> Candidate | str:
        if isinstance(each, str):
            return dotted(each) or each
        changed = {"id": dotted(each.id), "adapter": dotted(each.adapter)}
        return each.model_copy(update=changed)

    names = ("base", "candidate", "base_adapter", "candidate_adapter")
    changed: dict[str, Any] = {name: dotted(getattr(config, name)) for name in names}
    if config.candidate is None and config.candidate_adapter is not None:
        changed["candidate"] = changed["base"]
    changed["candidates"] = {name: placed(each) for name, each in config.candidates.items()}
    changed["saes"] = tuple(
        dotted(sae) if isinstance(sae, str) else sae.model_copy(update={"path": found(sae.path)})
        for sae in config.saes
    )
    if config.calibration is not None:
        changed["calibration"] = found(config.calibration)
    if config.training_data is not None:
        changed["training_data"] = found(config.training_data)
    if config.labels.export is not None:
        export = str(home / config.labels.export)
        changed["labels"] = config.labels.model_copy(update={"export": export})
    changed["suites"] = {name: str(home / where) for name, where in config.suites.items()}
    changed["folder"] = os.path.normpath(home / config.folder)
    return config.model_copy(update=changed)


def inside(folder: Path, given: str) -> Path:
    """The file that is meant.

    Args:
        folder: The audit's folder.
        given: What the tool was given: a path relative to it, or an absolute one below it.

    Raises:
        InputError: it lies elsewhere, goes through `..` or a symbolic link, or is not a plain file.
    """
    shown = repr(given[:80])
    if not given.strip() or len(given) > MAX_PATH or "\0" in given:
        raise InputError(f"{shown} is not a path of a file in the audit's folder.")
    path = PurePath(given)
    if ".." in path.parts:
        raise InputError(f"{shown} is refused: `..` leads out of the audit's folder.")
    if path.is_absolute():
        try:
            path = path.relative_to(folder)
        except ValueError as error:
            raise InputError(f"{shown} is refused: it is not in the audit's folder.") from error
    place = folder
    try:
        for part in path.parts:
            place = place / part
            mode = place.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise InputError(f"{shown} is refused: {part[:60]!r} is a symbolic link.")
        # A device or a pipe would never end.
        if not stat.S_ISREG(place.lstat().st_mode):
            raise InputError(f"{shown} is refused: it is not a plain file.")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {shown} in the audit's folder.") from error
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {first_line(error, 80)}.") from error
    return place
