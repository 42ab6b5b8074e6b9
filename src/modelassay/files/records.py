"""Field types of records that strangers wrote: bounded, of one line, finite."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from modelassay.errors import InputError

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
Name = Annotated[str, StringConstraints(pattern=rf"^{NAME}$")]
# No control characters, nor those that turn the direction of writing.
_LINE = r"^[^\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]*$"
Line = Annotated[str, StringConstraints(min_length=1, max_length=300, pattern=_LINE)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
CommitHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
LayerIndex = Annotated[int, Field(ge=0, lt=2000)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0, lt=10**9)]


class Record(BaseModel):
    """Frozen; unknown fields are ignored, and NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


R = TypeVar("R", bound=BaseModel)


def first_problem(
    error: ValidationError,
    whole: str = "the file",
    noun: str = "key",
    model: type[BaseModel] | None = None,
) -> str:
    """What is wrong first in a record, in one line: where, and what.

    Args:
        error: From pydantic.
        whole: What the place is called where it is the record itself.
        noun: What a field of the record is called.
        model: What the record should be, so that a misspelt field can be told from which it is
            near to.
    """
    problem = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(str(part) for part in problem["loc"])[:80]
    place = f"`{path}`" if path else whole
    if problem["type"] == "extra_forbidden":
        near = "" if model is None else nearest(str(problem["loc"][-1]), field_names(model))
        return f"unknown {noun} {place}{near}"
    if problem["type"] == "json_invalid":
        return problem["msg"].replace("Invalid JSON", "not valid JSON")[:200].rstrip(".")
    said = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "tuple_type":  # which no file has
        said = "Input should be a valid list"
    if problem["type"] == "missing":
        return f"the {noun} {place} is missing"
    return f"{place}: {said[:200].rstrip('.')}"


def field_names(model: Any) -> set[str]:
    """The names of a record's fields, and of those of the records in it."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {name for part in get_args(model) for name in field_names(part)}
    found = set(model.model_fields)
    for field in model.model_fields.values():
        found |= field_names(field.annotation)
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean X?)` where a known name is near, else nothing."""
    near = difflib.get_close_matches(name, sorted(known), 1, cutoff=0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""


def read_record(path: Path, kind: type[R], what: str, max_bytes: int) -> R:
    """A record from a JSON file.

    Args:
        path: The file.
        kind: What it must be.
        what: What an error calls it, such as `probe`.
        max_bytes: Larger files are not opened.

    Raises:
        InputError: it is not there, too large, or damaged.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path} is larger than a record can be ({what}).")
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path.parent} holds no {what} (no {path.name}).") from error
    except ValidationError as error:
        raise InputError(f"{path} is not a valid {what}: {first_problem(error)}.") from error
