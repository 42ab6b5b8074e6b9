"""Which model is meant, and how it is loaded: what everything that reads a model takes.

Public functions take a model as an id, a `ModelRef` or a `LoadedModel`, and the rest as keyword
arguments: `scan("base", adapter="owner/adapter", dtype="bfloat16")`. `take_ref` makes one reference
of these, so that no function below hands on loose parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, TypeVar, cast

from modelassay.errors import InputError

Other = TypeVar("Other")


@dataclass(frozen=True)
class ModelRef:
    """Which model: all that names it."""

    id: str
    """`embedded`, `gemma`, `organism:NAME`, `gemma:NAME`, a Hub id, a local folder, a `.gguf` file,
    or a PEFT adapter."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    adapter: str | None = None
    """PEFT adapter (Hub id or folder) to apply over it."""
    gguf_file: str | None = None
    """Name of the GGUF file inside the folder or repository."""
    base: str | None = None
    """Base of the adapter that `id` names, where its own config does not tell."""

    def __str__(self) -> str:
        return self.id


class FetchOptions(TypedDict, total=False):
    """What it takes to find a model's files; see `modelassay.load` for each."""

    token: str | bool | None
    trust_remote_code: bool
    max_bytes: int | None


class LoadOptions(FetchOptions, total=False):
    """How a model is loaded, whichever it is; see `modelassay.load` for each."""

    device: str | Mapping[str, Any]
    dtype: str
    quantization: str | None
    chat_template: bool


class ModelOptions(LoadOptions, total=False):
    """`LoadOptions`, with the parts of a `ModelRef` for those who give an id."""

    revision: str | None
    adapter: str | None
    gguf_file: str | None
    base: str | None


class PairOptions(LoadOptions, total=False):
    """`LoadOptions` for two models, with the parts of their `ModelRef`s."""

    base_revision: str | None
    base_adapter: str | None
    base_gguf_file: str | None
    candidate_revision: str | None
    candidate_adapter: str | None
    candidate_gguf_file: str | None


DEVICES = re.compile(r"auto|cpu|cuda(:\d{1,4})?", re.ASCII)
DTYPE_NAMES = ("auto", "float32", "float16", "bfloat16")
PARTS = ("revision", "adapter", "gguf_file", "base")


def take_ref(
    model: str | ModelRef | Other, options: Mapping[str, Any], prefix: str = ""
) -> tuple[ModelRef | Other, LoadOptions]:
    """One reference of a model and the keyword arguments that name a part of it.

    Args:
        model: An id, a reference, or anything that needs no reference (a loaded model).
        options: Keyword arguments, of which those that are `PARTS` are taken.
        prefix: What these begin with, such as `base_`.

    Returns:
        The reference (or the loaded model), and the options that are left.

    Raises:
        InputError: a part is given twice, or with a loaded model.
    """
    names = {f"{prefix}{part}": part for part in PARTS}
    rest = {name: value for name, value in options.items() if name not in names}
    parts = {names[n]: v for n, v in options.items() if n in names and v is not None}
    if not isinstance(model, str | ModelRef):
        if parts:
            raise InputError(f"Give {' and '.join(parts)} with an id, not with a loaded model.")
        return model, cast(LoadOptions, rest)
    ref = model if isinstance(model, ModelRef) else ModelRef(model)
    for part, value in parts.items():
        if (other := getattr(ref, part)) not in (None, value):
            raise InputError(f"{ref.id} is given with two of {part}: {other} and {value}.")
    return replace(ref, **parts), cast(LoadOptions, rest)


def take_pair(
    base: str | ModelRef | None, candidate: str | ModelRef | None, options: Mapping[str, Any]
) -> tuple[ModelRef | None, ModelRef | None, LoadOptions]:
    """References of a base and a candidate, and the options that are left.

    An adapter of the candidate alone goes over the base.

    Raises:
        InputError: one model is given without the other, or a part of a model that is not.
    """
    if candidate is None and options.get("candidate_adapter") is not None:
        candidate = base
    if base is None or candidate is None:
        parts = PairOptions.__annotations__.keys() - LoadOptions.__annotations__.keys()
        if base != candidate or any(options.get(part) is not None for part in parts):
            raise InputError(
                "Give both --base and --candidate: what was learnt shows between the two."
            )
        return None, None, take_ref(None, options)[1]
    first, left = take_ref(base, options, "base_")
    second, left = take_ref(candidate, left, "candidate_")
    return first, second, left


def fetch_options(options: LoadOptions) -> FetchOptions:
    """Those options that decide how files are found."""
    known = FetchOptions.__annotations__
    return cast(FetchOptions, {name: v for name, v in options.items() if name in known})


def check_device_name(device: str) -> None:
    """Refuses what names no device, whether it is here or not.

    Raises:
        InputError: says what to choose from.
    """
    if not DEVICES.fullmatch(device):
        raise InputError(f"Unknown device {device[:40]!r}; choose auto, cpu, cuda or cuda:N.")


def check_dtype_name(dtype: str) -> None:
    """Refuses what names no dtype that models are loaded in.

    Raises:
        InputError: says what to choose from.
    """
    if dtype not in DTYPE_NAMES:
        raise InputError(f"Unknown dtype {dtype!r}; choose {', '.join(DTYPE_NAMES)}.")


def require_template(options: Mapping[str, Any], what: str) -> None:
    """Refuses to leave the chat template out where what is measured depends on it.

    Args:
        options: As of `modelassay.load`.
        what: What needs the template, to begin the message with.

    Raises:
        InputError: `chat_template` is false.
    """
    if not options.get("chat_template", True):
        raise InputError(f"{what} is of a model inside its chat template; do not leave that out.")
