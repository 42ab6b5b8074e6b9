"""What a repository says that was done to its weights, held against what they show.

Tools that search for an edit publish its parameters beside the weights (heretic writes
`reproduce/reproduce.json`), and many names and tags say "abliterated" or "uncensored". Such files
are strangers': whatever is wrong with one costs a remark and no more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelassay.measures.directional_edits import DirectionalEdits
from modelassay.models import LoadedModel
from modelassay.models.kernels import Kernel
from modelassay.models.writers import OUTPUTS, Kind

FILE = "reproduce/reproduce.json"
MOST_BYTES, MOST_VALUES, DEEPEST = 2_000_000, 50_000, 40
CLAIM = re.compile(r"abliterat|heretic|uncensored|derestricted|decensored|refusal[-_ ]?free", re.I)
REMOVAL = re.compile(r"abliterat|heretic", re.I)
"""Claims that name the taking out of directions; others may be fine-tunes."""
KEYS = {
    "strength": "max_weight",
    "peak": "max_weight_position",
    "least": "min_weight",
    "distance": "min_weight_distance",
}
PLACES: dict[Kind, re.Pattern[str]] = {
    "attention": re.compile(r"attn|attention|o_proj", re.I),
    "mlp": re.compile(r"mlp|down_proj|ffn", re.I),
}
LARGEST = 1000.0
"""No layer, distance or strength is larger, nor is a value that is no number as small."""
NEAR = 0.1
"""Difference of a declared and a measured strength that says nothing."""
AGREE = 0.9
"""Of the layers' strengths must be near for the two to agree."""


@dataclass(frozen=True)
class Declared:
    """What a repository says about its weights."""

    claims: tuple[str, ...] = ()
    """Its name and tags, where they say that refusals were removed."""
    kernels: Mapping[Kind, Kernel] = field(default_factory=dict)
    problem: str | None = None
    """What is wrong with its file."""


def read_declared(model: LoadedModel) -> Declared:
    """Reads a model's name, tags and file of parameters, as far as they are there."""
    folder = model.source.folder
    claims = [f"the name {model.info.name}"] if CLAIM.search(model.info.name) else []
    claims += [f"the tag {tag}" for tag in _tags(folder / "README.md") if CLAIM.search(tag)]
    kernels, problem = _kernels(folder / FILE)
    return Declared(tuple(claims[:5]), kernels, problem)


def _tags(card: Path) -> list[str]:
    """Tags in a model card's front matter."""
    import yaml

    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_BYTES)
        if not text.startswith("---"):
            return []
        front = text.split("---", 2)[1]
        if "&" in front and "*" in front:  # aliases could make much of little
            return []
        values = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError, RecursionError, IndexError):
        return []
    tags = values.get("tags") if isinstance(values, dict) else None
    return [t[:60] for t in tags if isinstance(t, str)] if isinstance(tags, list) else []


def _kernels(path: Path) -> tuple[dict[Kind, Kernel], str | None]:
    """Kernels that a file of parameters declares, and what is wrong with it."""
    if not path.is_file():
        return {}, None
    try:
        if path.stat().st_size > MOST_BYTES:
            return {}, f"{FILE} is too large to be one; it was not read."
        values = json.loads(path.read_text(encoding="utf-8"))
        found: dict[Kind, Kernel] = {
            kind: kernel
            for key, value in _named_objects(values)
            for kind, pattern in PLACES.items()
            if pattern.search(key) and (kernel := _kernel(value)) is not None
        }
    except (OSError, ValueError, RecursionError) as error:
        why = "nested too deep" if isinstance(error, RecursionError) else "not valid"
        return {}, f"{FILE} is {why}; it was not read."
    if not found:
        return {}, f"{FILE} declares no strengths that are known here."
    return found, None


def _named_objects(value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every object inside a JSON value, with the key that it stands under."""
    stack: list[tuple[str, Any, int]] = [("", value, 0)]
    seen = 0
    while stack:
        key, each, depth = stack.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            raise ValueError("too much of it")
        if isinstance(each, dict):
            yield key, each
            stack += [(name, inner, depth + 1) for name, inner in each.items()]
        elif isinstance(each, list):
            stack += [(key, inner, depth + 1) for inner in each]


def _kernel(values: Mapping[str, Any]) -> Kernel | None:
    numbers = {name: values.get(key) for name, key in KEYS.items()}
    if not all(
        isinstance(n, (int, float)) and not isinstance(n, bool) and abs(n) <= LARGEST
        for n in numbers.values()
    ):
        return None
    return Kernel(**{name: float(n) for name, n in numbers.items() if n is not None})


def hold_against(
    declared: Declared, found: DirectionalEdits, n_layers: int
) -> tuple[tuple[str, ...], bool]:
    """What is declared beside what was measured, in plain words.

    Returns:
        Sentences, and whether the two contradict each other.
    """
    said, contradicts = [], False
    if declared.problem:
        said.append(f"The candidate's {declared.problem}")
    removal = [claim for claim in declared.claims if REMOVAL.search(claim)]
    if removal and found.mark is None and not found.turned:
        say = "says" if len(removal) == 1 else "say"
        said.append(
            f"Declared, not measured: {' and '.join(removal)} of the candidate {say} that"
            " directions were taken out, and its weights show none beside this base."
        )
        contradicts = True
    elif declared.claims and found.mark is not None:
        said.append(f"Declared by {' and '.join(declared.claims)}, and measured.")
    for kind, kernel in declared.kernels.items():
        part = next((p for p in found.components if p.component == kind), None)
        measured = {s.layer: s for s in part.strengths} if part else {}
        near = []
        for layer in range(n_layers):
            expected, seen = max(kernel.at(layer), 0.0), measured.get(layer)
            low, high = (seen.low, seen.high) if seen else (0.0, 0.0)
            near.append(low - NEAR <= expected <= high + NEAR)
        text = (
            f"{FILE} declares {kernel.strength:.2f} of a direction taken out of the"
            f" {OUTPUTS[kind]} at layer {kernel.peak:.1f}, {kernel.least:.2f} at a distance of"
            f" {kernel.distance:.1f}"
        )
        if sum(near) >= AGREE * n_layers:
            said.append(f"{text}; so it was measured.")
        else:
            off = n_layers - sum(near)
            said.append(f"{text}; it was measured otherwise in {off} of {n_layers} layers.")
            contradicts = True
    return tuple(said), contradicts
