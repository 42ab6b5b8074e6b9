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

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from modelassay.data.concepts import read_mapping
from modelassay.errors import InputError, first_line
from modelassay.files.records import first_problem
from modelassay.models import LoadOptions, ModelRef

Profile = Literal["full", "behavior-only"]
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
Reference = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
MAX_PATH = 500


class _Strict(BaseModel):
    """Refuses unknown keys: a misspelt one would be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """What one call of a tool may ask for."""

    prompts: int = Field(default=64, ge=1, le=1000)
    """Prompts that a call may ask both models."""
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


class AuditConfig(_Strict):
    """All of an audit's settings."""

    base: Reference
    """The model before the fine-tune, an id as `modelassay.load` takes it."""
    candidate: Reference | None = None
    """The model after it; may be left out where `candidate_adapter` goes over the base."""
    base_adapter: Reference | None = None
    candidate_adapter: Reference | None = None
    dtype: str = "auto"
    device: str = "auto"
    sae: Reference | None = Field(None, validation_alias=AliasChoices("sae", "dictionary"))
    """As `find_dictionary` takes it; None leaves the tools about features without one."""
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

    @property
    def base_ref(self) -> ModelRef:
        """The base, with the adapter over it."""
        return ModelRef(self.base, adapter=self.base_adapter)

    @property
    def candidate_ref(self) -> ModelRef:
        """The candidate, with the adapter over it."""
        return ModelRef(self.candidate or self.base, adapter=self.candidate_adapter)

    @property
    def load_options(self) -> LoadOptions:
        """Arguments of `modelassay.load` that both models share."""
        return {"device": self.device, "dtype": self.dtype}


def load_config(
    path: Path, *, profile: Profile | None = None, blind: bool | None = None
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
    data = expand(read_mapping(path), path.name)
    if profile is not None:
        data["profile"] = profile
    if blind is not None:
        data["blind"] = blind
    try:
        config = AuditConfig.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error)}.") from error
    if config.candidate is None and config.candidate_adapter is None:
        raise InputError(f"{path.name}: give `candidate`, or `candidate_adapter` over the base.")
    if config.blind and config.seed is None:
        raise InputError(
            f"{path.name}: a blind audit needs `seed`, a number that the auditor does not know."
        )
    return _with_places(config, path.absolute().parent)


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

    names = ("base", "candidate", "base_adapter", "candidate_adapter", "sae")
    changed: dict[str, Any] = {name: dotted(getattr(config, name)) for name in names}
    if config.candidate is None:
        changed["candidate"] = changed["base"]
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
