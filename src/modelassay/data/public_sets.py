"""Public data sets of labelled exchanges: where their rows are, and what each row says.

A layout is recognised from its columns, so a file or a copy of a set is read as the set itself.
Labels are names, never numbers: `safe` and `unsafe`, or the classes of `data.labels` where a set
tells refusals apart. What a row does not say stays unsaid.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from modelassay.data.exchanges import text_of
from modelassay.data.labelled import At, exchange_of
from modelassay.data.labels import (
    UNSAFE_NAMES,
    Scheme,
    ambiguous,
    is_labelled,
    is_said,
    label_of,
    scheme_of_row,
)
from modelassay.errors import InputError

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """One labelled exchange, or a labelled prompt."""

    prompt: str
    response: str
    """Empty where the label is of the prompt."""
    label: str | None
    """None where the set does not say; it can be asked of a teacher."""
    topic: str | None = None
    """The set's own category."""
    id: str | None = None
    """The set's own."""


class LayoutError(InputError):
    """All rows are of a kind that cannot be read, not this one alone."""


class LeftOutError(Exception):
    """A row that gives no example; its text says why, and quotes nothing of the row."""


class Read(Protocol):
    """Examples of a row."""

    def __call__(self, row: Row, at: At) -> list[Example]:
        """Reads one row.

        Raises:
            LeftOutError: it gives no example.
            InputError: a text of it cannot be used.
        """
        ...


@dataclass(frozen=True)
class PublicSet:
    """A public data set and its layout."""

    name: str
    where: str
    """Its id on the Hub."""
    config: str | None
    split: str
    """The split that is read unless another is asked for."""
    licence: str
    columns: tuple[str, ...]
    """Those that tell its layout from others."""
    labels_at: tuple[At, ...]
    """What its labels are of."""
    read: Read
    gated: bool = False
    """Whether its terms must be accepted on its page first."""


def _beavertails(row: Row, at: At) -> list[Example]:
    return [
        _example(row["prompt"], row["response"], _safe(row["is_safe"]), _topic(row.get("category")))
    ]


def _saferlhf(row: Row, at: At) -> list[Example]:
    """Two responses to one prompt, each with a label of its own."""
    return [
        _example(
            row["prompt"],
            row[f"response_{i}"],
            _safe(row[f"is_response_{i}_safe"]),
            _topic(row.get(f"response_{i}_harm_category")),
        )
        for i in (0, 1)
    ]


def _wildguard(row: Row, at: At) -> list[Example]:
    topic = row.get("subcategory")
    if at == "prompt":
        harm = _named(row["prompt_harm_label"], {"harmful": "unsafe", "unharmful": "safe"})
        return [_example(row["prompt"], None, harm, topic)]
    _require_response(row["response"])
    harm = _named(row["response_harm_label"], {"harmful": "unsafe", "unharmful": "safe"})
    told = str(row["response_refusal_label"] or "").strip().lower()
    if harm == "unsafe":
        if told == "refusal":
            raise LeftOutError("its labels contradict each other")
        label = "unsafe_compliance" if told == "compliance" else "unsafe"
    else:
        label = {"refusal": "safe_refusal", "compliance": "safe_compliance"}.get(told, "safe")
    return [_example(row["prompt"], row["response"], label, topic)]


def _toxicchat(row: Row, at: At) -> list[Example]:
    """Its labels are of what users ask; a request is unsafe if it is toxic or a jailbreak."""
    if at == "answer":
        _require_response(row["model_output"])
        return [_example(row["user_input"], row["model_output"], None, None, row.get("conv_id"))]
    told = [_flag(row[name]) for name in ("toxicity", "jailbreaking")]
    if None in told:
        raise LeftOutError("it has no label that people agree on")
    label = "unsafe" if any(told) else "safe"
    topic = "jailbreaking" if told[1] else "toxicity" if told[0] else None
    return [_example(row["user_input"], None, label, topic, row.get("conv_id"))]


def _aegis(row: Row, at: At) -> list[Example]:
    if is_said(row, "reconstruction_id_if_redacted") or row["prompt"] == "REDACTED":
        raise LeftOutError("its prompt is redacted")
    named, own = {"safe": "safe", "unsafe": "unsafe"}, row.get("id")
    topic = str(row.get("violated_categories") or "").split(",")[0].strip()
    if at == "prompt":
        return [_example(row["prompt"], None, _named(row["prompt_label"], named), topic, own)]
    _require_response(row["response"])
    label = _named(row["response_label"], named)
    if label == "safe" and row.get("response_label_source") == "refusal_data_augmentation":
        label = "safe_refusal"  # these responses were written to decline
    return [_example(row["prompt"], row["response"], label, topic, own)]


PUBLIC_SETS = (
    PublicSet(
        "beavertails",
        "PKU-Alignment/BeaverTails",
        None,
        "330k_train",
        "cc-by-nc-4.0",
        ("prompt", "response", "is_safe"),
        ("answer",),
        _beavertails,
    ),
    PublicSet(
        "saferlhf",
        "PKU-Alignment/PKU-SafeRLHF",
        None,
        "train",
        "cc-by-nc-4.0",
        ("prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe"),
        ("answer",),
        _saferlhf,
    ),
    PublicSet(
        "wildguardmix",
        "allenai/wildguardmix",
        "wildguardtrain",
        "train",
        "odc-by",
        (
            "prompt",
            "response",
            "prompt_harm_label",
            "response_harm_label",
            "response_refusal_label",
        ),
        ("prompt", "answer"),
        _wildguard,
        gated=True,
    ),
    PublicSet(
        "toxicchat",
        "lmsys/toxic-chat",
        "toxicchat0124",
        "train",
        "cc-by-nc-4.0",
        ("user_input", "model_output", "toxicity", "jailbreaking"),
        ("prompt",),
        _toxicchat,
    ),
    PublicSet(
        "aegis",
        "nvidia/Aegis-AI-Content-Safety-Dataset-2.0",
        None,
        "train",
        "cc-by-4.0",
        ("prompt", "response", "prompt_label", "response_label"),
        ("prompt", "answer"),
        _aegis,
    ),
)
LABELLED = "labelled rows"
"""What rows in this project's own layout are called."""


def public_set(name: str) -> PublicSet | None:
    """The set of that name or Hub id; None if there is none."""
    wanted = name.lower()
    return next((each for each in PUBLIC_SETS if wanted in (each.name, each.where.lower())), None)


def reader_of(
    row: Row, where: Any, at: At, labels: Scheme | None
) -> tuple[str, Callable[[Row], list[Example]]]:
    """The layout that a row has, and what reads rows of it.

    Args:
        row: The first one, with column names in lower case.
        where: What errors call the data.
        at: What labels are to be of.
        labels: What the numbers 0, 1 and 2 stand for in rows of this project's own layout.

    Raises:
        LayoutError: no layout has these columns, or it has no labels of that.
    """
    for each in PUBLIC_SETS:
        if set(row).issuperset(each.columns):
            if at == "prompt" and at not in each.labels_at:
                raise LayoutError(
                    f"{where} has the layout of {each.name}, which labels no prompts; leave --at"
                    " prompt out."
                )
            return each.name, partial(each.read, at=at)
    if is_labelled(row):
        return LABELLED, lambda row: _own(row, at, labels, where)
    known = "; ".join(f"{each.name} ({', '.join(each.columns)})" for each in PUBLIC_SETS)
    found = ", ".join(sorted(map(str, row)))[:120] or "none"
    raise LayoutError(
        f"{where} has the columns {found}; one of these is needed: {known}; or a conversation with"
        " a `label`."
    )


def _own(row: Row, at: At, labels: Scheme | None, where: Any) -> list[Example]:
    if not is_labelled(row):
        raise LeftOutError("it has no label")
    prompt, response = exchange_of(row, "a row", at)
    scheme = labels or scheme_of_row(row)
    if scheme is None:
        raise LayoutError(str(ambiguous(where, option="")))
    label, unsafe = label_of(row, "a row", scheme)
    name = "unsafe" if unsafe else "safe"
    own = row.get("id")
    return [_example(prompt, response, label if label and at == "answer" else name, None, own)]


def _example(
    prompt: Any, response: Any, label: str | None, topic: Any = None, own_id: Any = None
) -> Example:
    """An example whose texts are checked.

    Raises:
        InputError: a text is empty, too long or none.
    """
    said = "" if response is None else text_of(response, "response", "a row")
    topic = str(topic).strip()[:100] if topic else None
    shown = str(own_id)[:100] if own_id not in (None, "") else None
    return Example(text_of(prompt, "prompt", "a row"), said, label, topic or None, shown)


def _require_response(value: Any) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise LeftOutError("it has no response")


def _safe(value: Any) -> str:
    told = _flag(value)
    if told is None:
        raise LeftOutError("it has no label that people agree on")
    return "safe" if told else "unsafe"


def _flag(value: Any) -> bool | None:
    """What a cell of true and false says."""
    return UNSAFE_NAMES.get(str(value).strip().lower().removesuffix(".0"))


def _named(value: Any, names: Mapping[str, str]) -> str:
    found = names.get(str(value).strip().lower())
    if found is None:
        raise LeftOutError("it has no label that people agree on")
    return found


def _topic(value: Any) -> str | None:
    """The first harm of a mapping from harms to whether they occur, also written as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, Mapping):
        return None
    return next((str(name) for name, there in value.items() if there is True), None)
