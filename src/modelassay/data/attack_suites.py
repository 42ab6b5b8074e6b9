"""Attack suites: plain requests with their attacked forms, from templates or as ready pairs.

Ready pairs come as a table, a file or a data set on the Hub, with a column for the plain request
and one for the attacked one (`PLAIN`, `JAILBROKEN`). Artifacts of JailbreakBench are read too.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelassay.data.attacks import (
    MAX_TEXT,
    NEUTRAL,
    AttackedPrompt,
    attack_requests,
    check_per_attack,
    load_attacks,
)
from modelassay.data.exchanges import numbered_rows, text_of
from modelassay.data.labels import UNSAFE_NAMES
from modelassay.data.layouts import SYSTEM
from modelassay.errors import InputError
from modelassay.files.provenance import text_hash

MAX_PAIRS = 20_000
TEMPLATE_FILES = (".yaml", ".yml")
PLAIN = (
    "plain",
    "goal",
    "request",
    "vanilla",
    "redteam_query",
    "behavior",
    "forbidden_prompt",
    "original_prompt",
    "original",
    "question",
    "prompt",
)
JAILBROKEN = (
    "jailbroken",
    "jailbroken_prompt",
    "jailbreak_prompt",
    "jailbreak_query",
    "jailbreak",
    "adversarial_prompt",
    "adversarial",
    "test_case",
    "prompt",
    "attack",
)
FAMILY = ("family", "attack_family", "attack_type", "technique", "method", "format", "attack")
NAME = ("attack_name", "name", "attack", "method", "technique")
UNNAMED = "unnamed"
FLAGS = ("", "true", "false", "yes", "no", "0", "1", "0.0", "1.0", "none", "nan")
"""Of a column such as `jailbroken` that says whether an attack worked; no texts."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class AttackSuite:
    """Attacked prompts and where they are from."""

    source: str
    """Name of the file or data set; `shipped` for the templates that come with modelassay."""
    prompts: tuple[AttackedPrompt, ...]
    n_left_out: int = 0
    """Rows of a table that hold no attack: an empty one, or the plain request itself."""

    @property
    def families(self) -> tuple[str, ...]:
        """Families of attacks, as they first occur; the neutral one attacks nothing."""
        found = dict.fromkeys(prompt.family for prompt in self.prompts)
        return tuple(family for family in found if family != NEUTRAL)

    @property
    def sha256(self) -> str:
        """Of all that is asked, in its order."""
        return text_hash(json.dumps([list(asdict(prompt).values()) for prompt in self.prompts]))


def read_attack_suite(
    where: str | Path | None = None,
    *,
    requests: Sequence[str] | None = None,
    per_attack: int | None = None,
    config: str | None = None,
    split: str = "train",
    token: str | bool | None = None,
) -> AttackSuite:
    """Reads a suite of attacks.

    Args:
        where: A YAML file of templates; a table of ready pairs, as a file or `owner/name`; without
            it, the templates that come with modelassay.
        requests: Plain requests for templates; without them, the harmful ones of a scan.
        per_attack: Most prompts of each attack. Each template takes the next requests in turn;
            ready pairs are taken evenly over the table.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such suite, one line that says what is wrong in it, or `requests` for a
            table of ready pairs.
        UnavailableError: the Hub cannot be reached.
    """
    check_per_attack(per_attack)
    if where is None or Path(where).suffix.lower() in TEMPLATE_FILES:
        source = "shipped" if where is None else Path(where).name
        templates = load_attacks(where).templates
        return AttackSuite(source, attack_requests(templates, requests, per_attack=per_attack))
    source = Path(where).name if Path(where).exists() else str(where)
    if requests is not None:
        raise InputError(f"{source} holds ready pairs; requests are for files of templates.")
    rows: list[tuple[str, Row]] = []
    for number, row in numbered_rows(where, config=config, split=split, token=token):
        rows += unfolded(row, f"Row {number} of {source}")
        if len(rows) > MAX_PAIRS:
            raise InputError(f"{source} has more than {MAX_PAIRS} pairs; give a part of it.")
    if not rows:
        raise InputError(f"{source} has no rows.")
    columns = attacked_columns([row for _, row in rows])
    if columns is None:
        found = ", ".join(sorted({name for _, row in rows[:1] for name in row}))[:120] or "none"
        raise InputError(
            f"{source} has the columns {found}; one of {'/'.join(PLAIN)} is needed with another of"
            f" {'/'.join(JAILBROKEN)}, or a YAML file of templates."
        )
    pairs = [pair for name, row in rows if (pair := _pair(row, name, *columns)) is not None]
    if not pairs:
        raise InputError(f"{source} has no attacked prompt that differs from its plain one.")
    return AttackSuite(source, _spread(pairs, per_attack), len(rows) - len(pairs))


def unfolded(row: Row, name: str) -> Iterable[tuple[str, Row]]:
    """A row with its column names in lower case; an artifact of JailbreakBench as its rows.

    Args:
        row: Of a table.
        name: What an error calls it.

    Returns:
        Names and rows.
    """
    lower = {str(column).strip().lower(): value for column, value in row.items()}
    inside = lower.get("jailbreaks")
    if not isinstance(inside, list) or not all(isinstance(each, Mapping) for each in inside):
        return [(name, lower)]
    said = lower.get("parameters")
    method = {"method": said.get("method")} if isinstance(said, Mapping) else {}
    return [(f"Jailbreak {n} of {name}", {**method, **each}) for n, each in enumerate(inside, 1)]


def attacked_columns(rows: Sequence[Row]) -> tuple[str, str] | None:
    """The columns of plain and attacked requests: the first two that hold texts, if any do.

    Args:
        rows: With column names in lower case.
    """
    held = {name for row in rows for name, value in row.items() if is_text(value)}
    for plain in PLAIN:
        for attacked in JAILBROKEN:
            if plain == attacked or not {plain, attacked} <= held:
                continue
            # `attack` may but name the attack.
            if attacked != "attack" or _length(rows, attacked) > _length(rows, plain):
                return plain, attacked
    return None


def is_text(value: Any) -> bool:
    """Whether a cell holds a text, and not a flag."""
    return isinstance(value, str) and value.strip().lower() not in FLAGS


def _length(rows: Sequence[Row], column: str) -> int:
    return sum(len(str(row.get(column) or "")) for row in rows)


def _pair(row: Row, name: str, plain: str, attacked: str) -> AttackedPrompt | None:
    """One row, or None if nothing is attacked in it."""
    if not isinstance(row.get(attacked), str | None) or not isinstance(row.get(plain), str | None):
        raise InputError(f"{name}: `{plain}` and `{attacked}` must be texts.")
    if not is_text(row.get(attacked)):
        return None
    asked, jailbroken = (text_of(row.get(column), column, name) for column in (plain, attacked))
    system = next((row[field] for field in SYSTEM if row.get(field) not in (None, "")), None)
    if system is not None:
        system = text_of(system, "system", name)
    if jailbroken == asked and not system:
        return None
    for text in (asked, jailbroken, system or ""):
        if len(text) > MAX_TEXT:
            raise InputError(f"{name} is longer than the {MAX_TEXT} characters of a prompt.")
    columns = (plain, attacked)
    family = _label(row, FAMILY, columns)
    attack = _label(row, NAME, columns)
    found = AttackedPrompt(
        asked, jailbroken, family or attack or UNNAMED, attack or family or UNNAMED
    )
    return replace(found, system=system, harmful=_is_harmful(row))


def _label(row: Row, fields: Sequence[str], texts: Sequence[str]) -> str | None:
    """What the first of some columns says, in one line."""
    for field in fields:
        if field not in texts and is_text(row.get(field)):
            return " ".join("".join(c if c.isprintable() else " " for c in row[field]).split())[:96]
    return None


def _is_harmful(row: Row) -> bool:
    """Harmful unless a row says that it is not: a suite is about attacks."""
    said = str(row.get("harmful")).strip().lower().removesuffix(".0")
    return UNSAFE_NAMES.get(said, not str(row.get("data_type")).endswith("_benign"))


def _spread(pairs: Sequence[AttackedPrompt], per_attack: int | None) -> tuple[AttackedPrompt, ...]:
    """At most so many pairs of each attack, evenly over the table and in its order."""
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        places[pair.family, pair.attack].append(place)
    chosen = set()
    for found in places.values():
        n = min(per_attack or len(found), len(found))
        chosen.update(found[i * len(found) // n] for i in range(n))
    return tuple(pair for place, pair in enumerate(pairs) if place in chosen)
