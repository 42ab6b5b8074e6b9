"""Prompts to measure a guard on, read from public benchmarks in the layouts they come in.

A layout is recognised from its columns. A suite takes the side of the data that it is about:
`jailbreak` the harmful prompts, `overrefusal` and `latency` the benign ones. Where rows hold a
plain request and its attacked form (`data.attack_suites`), the attacked form is asked.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from modelassay.data.attack_suites import attacked_columns, is_text, unfolded
from modelassay.data.exchanges import text_of
from modelassay.data.labels import (
    UNSAFE_NAMES,
    Scheme,
    ambiguous,
    check_scheme,
    is_labelled,
    is_said,
    label_of,
    scheme_of,
    unlabelled,
)
from modelassay.data.layouts import CONVERSATIONS
from modelassay.errors import InputError
from modelassay.files.provenance import text_hash
from modelassay.guard_bench.known import (
    KNOWN_SUITES,
    KnownSuite,
    Side,
    known_suite,
    place_of,
)
from modelassay.hub import read_dataset

PROMPTS = ("prompt", "instruction", "user")
BenchSuite = Literal["jailbreak", "overrefusal", "latency"]
SUITES: tuple[BenchSuite, ...] = get_args(BenchSuite)
Row = Mapping[str, Any]

DEFAULTS: dict[BenchSuite, str | None] = {
    "jailbreak": "JailbreakBench/JBB-Behaviors",
    "overrefusal": "Paul/XSTest",
    "latency": None,
}
# Long responses, so that they do not end before there is something to time.
LATENCY_PROMPTS = (Path(__file__).parent / "latency.txt").read_text(encoding="utf-8").splitlines()
HARMFUL_REQUESTS = ("behavior", "forbidden_prompt", "redteam_query")
"""Columns of benchmarks that hold nothing else (HarmBench, StrongREJECT, JailbreakV-28K)."""
JUDGED = "human_majority"
"""Whether people call a response unsafe, in JailbreakBench's comparison of judges."""
CONTEXT_BREAK = "\n\n---\n\n"
"""What HarmBench puts between a context and the behaviour that refers to it."""


@dataclass(frozen=True)
class BenchPrompt:
    """One prompt of a benchmark."""

    id: str
    """The data's own where it has one; unique within the data."""
    prompt: str
    harmful: bool
    category: str


@dataclass(frozen=True)
class SuiteData:
    """The prompts of a run and where they are from."""

    suite: BenchSuite
    prompts: tuple[BenchPrompt, ...]
    source: str
    """Hub id or name of the file."""
    layout: str
    n_other_side: int
    """Rows left out because the suite is about the other side."""
    n_unlabelled: int
    """Rows left out because the data does not say which side they are on."""
    config: str | None = None
    """Configuration of a Hub data set."""
    split: str | None = None
    """Split of a Hub data set."""

    @property
    def sha256(self) -> str:
        """Of ids, prompts, sides and categories in their order."""
        text = json.dumps([list(asdict(prompt).values()) for prompt in self.prompts])
        return text_hash(text)


@dataclass(frozen=True)
class Layout:
    """How a benchmark writes its rows; column names in lower case."""

    name: str
    columns: tuple[str, ...]
    """Those that tell it from others."""
    read: Callable[[Row, bool], tuple[Any, Any, bool | None, Any]]
    """(row, assumed harmful) to id, prompt, harmful (None: the row does not say), category."""


def _jailbreakbench(row: Row, assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    return row.get("index", row.get("")), row["goal"], assumed, row.get("category")


def _harmbench(row: Row, _assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    prompt, context = row["behavior"], row.get("contextstring")
    if context and isinstance(prompt, str):
        prompt = f"{context}{CONTEXT_BREAK}{prompt}"
    category = row.get("semanticcategory") or row.get("functionalcategory")
    return row.get("behaviorid"), prompt, True, category


def _wildguard(row: Row, _assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    side = {"harmful": True, "unharmful": False}.get(str(row["prompt_harm_label"]).lower())
    told = str(row.get("adversarial") or "").strip().lower()
    adversarial = "vanilla" if told in ("", "false", "0", "no") else "adversarial"
    return row.get("id"), row["prompt"], side, row.get("subcategory") or adversarial


def _xstest(row: Row, _assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    kind = str(row["type"] or "")
    side = {"safe": False, "unsafe": True}.get(str(row.get("label") or "").lower())
    if side is None and kind:
        side = kind.startswith("contrast_")
    return row.get("id", row.get("id_v2")), row["prompt"], side, kind


def _strongreject(row: Row, _assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    return row.get("id"), row["forbidden_prompt"], True, row.get("category")


def _attacked(columns: tuple[str, str]) -> Layout:
    """Rows that hold a plain request beside its attacked form, which is asked.

    JailbreakBench's comparison of judges is of this kind, and some of its rows attack nothing: of
    these only what people call a broken model tells that the request was harmful.
    """
    plain, attacked = columns

    def read(row: Row, assumed: bool) -> tuple[Any, Any, bool | None, Any]:
        side: bool | None = assumed or plain in HARMFUL_REQUESTS
        if is_said(row, "harmful"):
            side = _flag(row["harmful"])
        elif is_said(row, "data_type"):  # of WildJailbreak
            side = not str(row["data_type"]).endswith("_benign")
        elif JUDGED in row and row.get(plain) == row.get(attacked):
            side = _flag(row[JUDGED]) or None
        if not is_text(row.get(attacked)):  # an attack that found nothing
            side = None
        own = row.get("index", row.get("id", row.get("")))
        return own, row.get(attacked), side, row.get("category") or row.get("method")

    return Layout("attacked", columns, read)


def _flag(value: Any) -> bool | None:
    return UNSAFE_NAMES.get(str(value).strip().lower().removesuffix(".0"))


def _plain(row: Row, assumed: bool) -> tuple[Any, Any, bool | None, Any]:
    prompt = next((row[name] for name in PROMPTS if row.get(name) not in (None, "")), None)
    if prompt is None:
        said = {name: value for name, value in row.items() if name in CONVERSATIONS}
        turns = unlabelled(said, "A row").turns
        prompt = next((text for role, text in turns if role == "user"), None)
    if row.get("context") and isinstance(prompt, str):
        prompt = f"{row['context']}{CONTEXT_BREAK}{prompt}"
    side: bool | None = assumed
    if is_said(row, "harmful"):
        side = _flag(row["harmful"])
    return row.get("id"), prompt, side, row.get("category") or row.get("source")


LAYOUTS = (
    Layout("JailbreakBench", ("goal", "target"), _jailbreakbench),
    Layout("HarmBench", ("behavior", "semanticcategory"), _harmbench),
    Layout("StrongREJECT", ("forbidden_prompt",), _strongreject),
    Layout("WildGuardTest", ("prompt", "prompt_harm_label"), _wildguard),
    Layout("XSTest", ("prompt", "type"), _xstest),
    *(
        Layout("plain", (name,), _plain)
        for name in ("prompt", "instruction", "user", *CONVERSATIONS)
    ),
)


def as_suite(name: str) -> BenchSuite:
    """The suite of that name; of a known one (`guard_bench.known`) the kind that it is of.

    Raises:
        InputError: there is none.
    """
    for suite in SUITES:
        if suite == name:
            return suite
    if (known := known_suite(name)) is not None:
        return "jailbreak" if known.side == "harmful" else "overrefusal"
    names = ", ".join([*SUITES, *(known.name for known in KNOWN_SUITES)])
    raise InputError(
        f"Unknown suite {name[:60]!r}; choose {names}, or give other data as `--suite jailbreak"
        " --data DATA` or `--suite overrefusal --data DATA`."
    )


def read_suite(
    suite: str,
    where: str | Path | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    labels: str | None = None,
    limit: int | None = None,
    token: Any = None,
) -> SuiteData:
    """Reads the prompts of a suite.

    Args:
        suite: Whose side of the data is taken: `jailbreak`, `overrefusal` or `latency`. A known
            one (`guard_bench.known`), by name or Hub id, says where its data is as well.
        where: File, Hub id or name of a known suite; without it, the suite's own.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        labels: `binary` or `three-class`, what labels 0 and 1 mean; None lets all rows tell.
        limit: Most prompts; they are taken evenly over the data, which is often sorted by category.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such suite or data, an unknown layout, a malformed row, or nothing for this
            suite.
        UnavailableError: the Hub cannot be reached, or the data set is gated.
    """
    kind, named = as_suite(suite), None if suite in SUITES else known_suite(suite)
    if named is not None and where is not None:
        raise InputError(
            f"Suite {suite} has data of its own; for --data, choose {' or '.join(SUITES)}."
        )
    if limit is not None and limit < 1:
        raise InputError(f"The limit must be at least 1, got {limit}.")
    where = where if where is not None else DEFAULTS[kind] if named is None else named.where
    if where is None:
        own = (
            BenchPrompt(f"own-{n}", prompt, False, "everyday")
            for n, prompt in enumerate(LATENCY_PROMPTS, 1)
        )
        return SuiteData(kind, _spread(tuple(own), limit), "built in", "built in", 0, 0)
    is_file = Path(where).exists()
    source = Path(where).name if is_file else str(where)
    side: Side = "harmful" if kind == "jailbreak" else "benign"
    if not is_file:
        named = named or _named(source, config, side)
        source = named.where if named is not None else source
        config = config or (named.config if named is not None else None)
        split = split or (named.split if named is not None else "train")
    rows = read_dataset(
        where if is_file else source, config=config, split=split or "train", token=token
    )
    if not rows:
        raise InputError(f"{source} has no rows.")
    rows = [row for given in rows for _, row in unfolded(given, source)]
    layout = find_layout(rows, source)
    # JailbreakBench says which side its rows are on in the name of the split or file alone.
    told = source if is_file else str(split)
    assumed = kind == "jailbreak" or (named is not None and named.holds == "harmful")
    if layout.name in ("JailbreakBench", "attacked") and told.lower().startswith(
        ("harmful", "benign")
    ):
        assumed = told.lower().startswith("harmful")
    if layout.name in ("plain", "attacked"):
        rows = _with_sides(rows, labels, where)
    prompts, n_unlabelled = _to_prompts(rows, layout, source, assumed)
    chosen = tuple(p for p in prompts if p.harmful == (kind == "jailbreak"))
    if not chosen:
        raise InputError(f"{source} has no {side} prompts, which suite {kind} is about.")
    return SuiteData(
        kind,
        _spread(chosen, limit),
        source,
        layout.name,
        len(prompts) - len(chosen),
        n_unlabelled,
        config,
        None if is_file else split,
    )


def _named(where: str, config: str | None, side: Side) -> KnownSuite | None:
    """The known suite that data on the Hub are, given its name or their id."""
    named = known_suite(where)
    if named is None:
        return None
    if named.where.lower() == where.lower():
        return place_of(named.where, config, side)
    if named.side == side and config in (None, named.config):
        return named
    return place_of(named.where, config or named.config, side)


def find_layout(rows: Sequence[Row], source: str) -> Layout:
    """The layout that has the rows' columns.

    Args:
        rows: With column names in lower case.
        source: What an error calls them.

    Raises:
        InputError: none has; the error lists what can be read.
    """
    if (attacked := attacked_columns(rows)) is not None:
        return _attacked(attacked)
    columns = set(rows[0]) if rows else set()
    for layout in LAYOUTS:
        if columns.issuperset(layout.columns):
            return layout
    known = "; ".join(f"{each.name} ({', '.join(each.columns)})" for each in LAYOUTS)
    found = ", ".join(sorted(columns))[:120] or "none"
    raise InputError(f"{source} has columns {found}; one of these is needed: {known}.")


def _with_sides(rows: Sequence[Row], labels: str | None, where: Any) -> list[Row]:
    """Rows that are labelled, with the side of their prompt in `harmful`.

    A refusal does not tell whether its prompt was harmful.
    """
    scheme = check_scheme(labels) or scheme_of(row for row in rows if not is_said(row, "harmful"))
    if scheme is None:
        raise ambiguous(where)
    return [row if is_said(row, "harmful") else {**row, **_side(row, scheme)} for row in rows]


def _side(row: Row, scheme: Scheme) -> dict[str, Any]:
    if not is_labelled(row):
        return {}
    try:
        label, unsafe = label_of(row, "A row", scheme)
    except InputError:  # some other label
        return {"harmful": "unknown"}
    return {"harmful": "unknown" if label == "safe_refusal" else unsafe}


def _to_prompts(
    rows: Sequence[Row], layout: Layout, source: str, assumed: bool
) -> tuple[list[BenchPrompt], int]:
    found: list[BenchPrompt] = []
    unlabelled = 0
    seen: Counter[str] = Counter()
    for number, row in enumerate(rows, 1):
        own, prompt, harmful, category = layout.read(row, assumed)
        if harmful is None:
            unlabelled += 1
            continue
        prompt = text_of(prompt, "prompt", f"Row {number} of {source}")
        name = str(own).strip()[:100] if own is not None and str(own).strip() else f"row-{number}"
        seen[name] += 1
        if seen[name] > 1:  # results are kept by id
            name = f"{name}#{number}"
        found.append(BenchPrompt(name, prompt, harmful, str(category or "none")[:100]))
    return found, unlabelled


def _spread(prompts: tuple[BenchPrompt, ...], limit: int | None) -> tuple[BenchPrompt, ...]:
    if limit is None or limit >= len(prompts):
        return prompts
    return tuple(prompts[i * len(prompts) // limit] for i in range(limit))
