"""Labels of exchanges: what a cell says, and whether numbers stand for two classes or for three.

0 and 1 are ambiguous: with two classes 1 is an unsafe response, with three (0, 1 and 2 in the order
of `LABELS`) it is a refusal. Which it is, all rows of a file tell together, or the user does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from modelassay.data.exchanges import text_of
from modelassay.data.layouts import Conversation, conversation_of
from modelassay.errors import InputError

Label = Literal["safe_compliance", "safe_refusal", "unsafe_compliance"]
LABELS: tuple[Label, ...] = get_args(Label)
Scheme = Literal["binary", "three-class"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
CLASSES: dict[Scheme, tuple[str, ...]] = {"binary": ("safe", "unsafe"), "three-class": LABELS}
"""What each scheme tells apart; the unsafe class is the last."""

NAME_FIELD = "label_name"
"""A class by name, which some data sets put beside its number."""
LABEL_FIELDS = ("label", "label3", "unsafe")
UNSAFE_NAMES = {"1": True, "true": True, "unsafe": True, "harmful": True} | {
    "0": False,
    "false": False,
    "safe": False,
    "benign": False,
    "harmless": False,
}
Row = Mapping[str, Any]


def check_scheme(name: str | None) -> Scheme | None:
    """The scheme of that name, or None, which lets the data tell.

    Raises:
        InputError: there is none of that name.
    """
    for scheme in SCHEMES:
        if scheme == name:
            return scheme
    if name is None:
        return None
    raise InputError(f"--labels is {' or '.join(SCHEMES)}, not {name[:40]!r}.")


def scheme_of(rows: Iterable[Row]) -> Scheme | None:
    """What the numbers stand for that rows are labelled with; None if the rows leave it open.

    A 2, a class by name or a column `label3` tells three classes; true and false, safe and unsafe,
    a column `unsafe`, or a 1 on a row without response tells two: such a row cannot be a refusal.
    Where every number is 0, nothing depends on it, unless 0 may be a `completion` that is not
    desired (KTO).

    Args:
        rows: All rows of a file, never a part of it.
    """
    told: set[Scheme] = set()
    open_rows = 0
    for row in rows:
        field, key = _cell(row)
        if key in LABELS or key == "2" or (field == "label3" and key in ("0", "1")):
            told.add("three-class")
        elif key not in ("0", "1"):
            told |= {"binary"} if key in UNSAFE_NAMES else set()
        elif field == "unsafe" or (key == "1" and not _is_answered(row)):
            told.add("binary")
        else:
            open_rows += key == "1" or bool(row.get("completion"))
    if len(told) == 1:
        return told.pop()
    return None if open_rows else "binary"


def scheme_of_row(row: Row) -> Scheme | None:
    """What numbers stand for, for who sees one row at a time; None if it takes the others to tell.

    Args:
        row: A labelled one. A name speaks for itself under either scheme.
    """
    field, key = _cell(row)
    if field == "label3":
        return "three-class"
    return None if field == "label" and key in ("0", "1", "2") else "binary"


def ambiguous(where: Any, option: str = "--data ") -> InputError:
    """The error about data whose labels could be of two classes or of three.

    Args:
        where: The data, as the user named it.
        option: What stands before it on the command line.
    """
    return InputError(
        f"{where} labels responses with 0 and 1 and does not say how many classes there are. Give"
        f" `{option}{where} --labels binary` if 1 means an unsafe response, or"
        f" `{option}{where} --labels three-class` if 1 means a refusal and 2 an unsafe response."
    )


def is_said(row: Row, field: str) -> bool:
    """Whether a cell is there and not empty."""
    return row.get(field) not in (None, "")


def is_labelled(row: Row) -> bool:
    """Whether a row has a label of any kind."""
    return bool(_cell(row)[0])


def label_of(row: Row, name: str, scheme: Scheme) -> tuple[Label | None, bool]:
    """The class of a row, where it has three, and whether it is unsafe.

    Args:
        row: As `data.labelled` describes.
        name: What an error calls the row.
        scheme: What numbers stand for; names speak for themselves.

    Raises:
        InputError: it has no label, or none that is known.
    """
    field, key = _cell(row)
    value = row.get(field)
    if "completion" in row and isinstance(value, bool):
        raise InputError(
            f"{name} has a `completion` and a `label` that is true or false, in which true means"
            " a desired response (KTO); name the field `response` if it means an unsafe one."
        )
    if not field:
        raise InputError(f"{name} has no `label`.")
    if scheme == "three-class" and field != "unsafe" and key in ("0", "1", "2"):
        key = LABELS[int(key)]
    for label in LABELS:
        if key == label:
            return label, label == "unsafe_compliance"
    if key not in UNSAFE_NAMES:
        numbers = "0, 1 or 2" if scheme == "three-class" else "0 or 1"
        raise InputError(
            f"{name}: `{field}` must be {numbers}, safe or unsafe, or one of {', '.join(LABELS)};"
            f" it is {str(value)[:40]!r}."
        )
    return None, UNSAFE_NAMES[key]


def unlabelled(row: Mapping[str, Any], name: str) -> Conversation:
    """What a row says, whatever its label; without turns if it has no known layout.

    Args:
        row: As `data.labelled` describes, or a prompt alone.
        name: What an error calls the row.

    Raises:
        InputError: a field is of the wrong kind.
    """
    bare = {
        field: value for field, value in row.items() if field not in (*LABEL_FIELDS, NAME_FIELD)
    }
    return conversation_of(bare, name, _text, prompt_alone=True) or Conversation(())


def _text(value: Any, field: str, name: str) -> str:
    return text_of("" if value is None else value, field, name, may_be_empty=True)


def _cell(row: Row) -> tuple[str, str]:
    """The field that says a row's label, empty if none does, and what it says, in lower case."""
    named = _key(row.get(NAME_FIELD))
    if named in LABELS or named in UNSAFE_NAMES:
        return NAME_FIELD, named
    field = next((each for each in LABEL_FIELDS if is_said(row, each)), "")
    return field, _key(row.get(field))


def _key(value: Any) -> str:
    if not isinstance(value, str | bool | int | float):
        return ""
    return str(value).strip().lower().removesuffix(".0")


def _is_answered(row: Row) -> bool:
    try:
        said = unlabelled(row, "A row")
    except InputError:  # whoever reads the row names what is wrong
        return True
    return any(role == "assistant" for role, text in said.turns if text.strip())
