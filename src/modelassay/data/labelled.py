"""Labelled exchanges: what probes and classifiers are trained and scored on.

A row is an exchange in one of the layouts of `data.layouts`, such as `{"prompt", "response"}`, with
a `label` (see `data.labels`), an optional `source`, and optional `spans` of what is unsafe (see
`data.spans`); the response may be empty where only the prompt is judged. Splits go by prompt, and
prompts that nearly repeat each other go together: a row-wise split of data in which prompts recur
measures memory.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modelassay.data.exchanges import numbered_rows, text_of
from modelassay.data.labels import Label, Scheme, ambiguous, label_of, scheme_of, unlabelled
from modelassay.data.spans import Span, spans_of
from modelassay.data.wording import plain_words
from modelassay.errors import InputError
from modelassay.files.provenance import text_hash

log = logging.getLogger(__name__)

At = Literal["prompt", "answer"]

NEAR_DUPLICATE = 0.8
"""Cosine of character 3- to 5-grams (tf-idf) from which two prompts count as one."""


@dataclass(frozen=True)
class LabelledExchange:
    """A prompt, what was answered, and whether that is unsafe."""

    prompt: str
    response: str
    unsafe: bool
    label: Label | None
    """The class, where the data has three."""
    source: str
    """Which data it is from; evaluation leaves out one source at a time."""
    spans: tuple[Span, ...] = ()
    """Which characters of the response are unsafe, where the row says so."""


def read_labelled(
    where: str | Path,
    *,
    at: At = "answer",
    config: str | None = None,
    split: str = "train",
    labels: Scheme | None = None,
    token: Any = None,
) -> list[LabelledExchange]:
    """Reads labelled rows from a JSON, JSONL, CSV or Parquet file or a Hub data set.

    Args:
        where: Path, or `owner/name`.
        at: `prompt` lets responses be empty.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        labels: What the numbers 0, 1 and 2 stand for; None lets all rows together tell.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data, a malformed row, which is named by its number, or labels 0 and 1
            that could be of two classes or of three.
        UnavailableError: the Hub cannot be reached.
    """
    source = Path(where).name
    rows = list(numbered_rows(where, config=config, split=split, token=token))
    scheme = labels or scheme_of(row for _, row in rows)
    known = scheme or "binary"  # a malformed row is named first
    found = [to_labelled(row, f"Row {n} of {source}", at, source, known) for n, row in rows]
    if not found:
        raise InputError(f"{where} has no rows.")
    if scheme is None:
        raise ambiguous(where)
    return found


def to_labelled(
    row: Mapping[str, Any], name: str, at: At, source: str, scheme: Scheme
) -> LabelledExchange:
    """One row as a `LabelledExchange`.

    Args:
        row: As this module describes.
        name: What an error calls the row.
        at: `prompt` lets the response be empty.
        source: Where the row does not say it itself.
        scheme: What the numbers 0, 1 and 2 stand for.

    Raises:
        InputError: a field is missing or of the wrong kind.
    """
    prompt, response = exchange_of(row, name, at)
    label, unsafe = label_of(row, name, scheme)
    own = row.get("source")
    own = own if isinstance(own, str) and own.strip() else source
    spans = spans_of(row, response, name, unsafe=unsafe)
    return LabelledExchange(prompt, response, unsafe, label, own, spans)


def exchange_of(row: Mapping[str, Any], name: str, at: At) -> tuple[str, str]:
    """Prompt and response of a row, whatever its label.

    Args:
        row: As this module describes.
        name: What an error calls the row.
        at: `prompt` lets the response be empty.

    Raises:
        InputError: a field is missing or of the wrong kind, or there is more than one turn each.
    """
    said = unlabelled(row, name)
    roles = [role for role, _ in said.turns if role != "system"]
    if roles not in ([], ["user"], ["user", "assistant"]):
        raise InputError(
            f"{name} has the turns {', '.join(roles)}; a label is of one user turn and one"
            " assistant turn."
        )
    prompt = text_of(said.said_by("user"), "prompt", name)
    return prompt, text_of(said.taught, "response", name, may_be_empty=at == "prompt")


def rows_at(rows: Sequence[LabelledExchange], at: At) -> list[LabelledExchange]:
    """The rows as labels of what is read there.

    Labels are about exchanges. At the prompt, one that was ever answered unsafely is unsafe, in all
    its rows; of one that was only refused nobody knows, and its rows are left out.

    Args:
        rows: Labelled exchanges.
        at: `answer` leaves them as they are.
    """
    if at == "answer":
        return list(rows)
    unsafe = {row.prompt for row in rows if row.unsafe}
    kept = [
        replace(row, unsafe=True, label=None) if not row.unsafe and row.prompt in unsafe else row
        for row in rows
        if row.unsafe or row.prompt in unsafe or row.label != "safe_refusal"
    ]
    if left_out := len(rows) - len(kept):
        log.warning(
            "%d rows are left out at the prompt: they are refusals, which do not tell whether the"
            " prompt was harmful.",
            left_out,
        )
    return kept


def draw(
    rows: Sequence[LabelledExchange],
    most: int | None,
    *,
    seed: int = 0,
    of: Callable[[LabelledExchange], Any] = lambda row: row.unsafe,
) -> list[int]:
    """Indices of at most so many rows, in their order: as many of each class and source as can be.

    What a small class or source cannot fill goes to the others, so that fewer than `most` are drawn
    only where there are no more.

    Args:
        rows: Labelled exchanges.
        most: How many at most; None or 0 takes all.
        seed: Of the draw.
        of: What the class of a row is.

    Raises:
        InputError: a single one is asked for, or fewer than none.
    """
    if most is not None and (most < 0 or most == 1):
        raise InputError(f"--max-examples is at least 2, or 0 for all, not {most}.")
    if not most or most >= len(rows):
        return list(range(len(rows)))
    cells: dict[Any, dict[str, list[int]]] = {}
    for i in np.random.default_rng(seed).permutation(len(rows)).tolist():
        cells.setdefault(of(rows[i]), {}).setdefault(rows[i].source, []).append(i)
    classes = sorted(cells, key=str)
    chosen: list[int] = []
    shares = _even_shares([sum(map(len, cells[each].values())) for each in classes], most)
    for each, share in zip(classes, shares, strict=True):
        sources = [cells[each][name] for name in sorted(cells[each])]
        parts = _even_shares([len(source) for source in sources], share)
        chosen += [i for source, n in zip(sources, parts, strict=True) for i in source[:n]]
    return sorted(chosen)


def class_of(row: LabelledExchange) -> str | bool:
    """The class of a row: one of three, or whether it is unsafe."""
    return row.unsafe if row.label is None else row.label


def _even_shares(sizes: Sequence[int], total: int) -> list[int]:
    """How many to take of parts of these sizes, as evenly as they allow, first ones first."""
    shares = [0] * len(sizes)
    for left, i in enumerate(sorted(range(len(sizes)), key=lambda i: sizes[i])):
        shares[i] = min(sizes[i], -(-total // (len(sizes) - left)))
        total -= shares[i]
    return shares


def require_classes(rows: Sequence[LabelledExchange], classes: Iterable[Any], what: str) -> None:
    """Refuses data without a row of each class.

    Args:
        rows: The data.
        classes: True and False, or names of classes.
        what: Whose need it is, for the error.

    Raises:
        InputError: names the class that is missing.
    """
    for wanted in classes:
        named = isinstance(wanted, str)
        if not any((row.label if named else row.unsafe) == wanted for row in rows):
            shown = wanted if named else ("unsafe (1)" if wanted else "safe (0)")
            raise InputError(f"{what} needs rows of each class, and none is labelled {shown}.")


def prompt_groups(prompts: Sequence[str]) -> np.ndarray:
    """A group number for each prompt; equal and nearly equal prompts share one.

    Similarity is the cosine of tf-idf weighted character n-grams; groups are the connected parts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def near(distinct: list[str]) -> tuple[np.ndarray, np.ndarray]:
        texts = [plain_words(prompt)[:2000] or "(empty)" for prompt in distinct]
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), max_features=60_000)
        vectors = vectorizer.fit_transform(texts).tocsr()
        found = []
        for start in range(0, len(texts), 512):  # a part at a time bounds the memory
            part = (vectors[start : start + 512] @ vectors.T).tocoo()
            keep = part.data >= NEAR_DUPLICATE
            found.append((part.row[keep] + start, part.col[keep]))
        rows, columns = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return rows, columns

    return linked_groups(prompts, near)


def linked_groups(
    texts: Sequence[str], pairs: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """A group number for each text, int [text]; groups are the connected parts.

    Args:
        texts: Equal ones share a group.
        pairs: Gives the pairs of the distinct texts that are linked, as two index arrays.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    index = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if not index:
        return np.zeros(0, dtype=np.int64)
    first, second = pairs(list(index))
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(index), len(index)))
    _, groups = connected_components(graph, directed=False)
    return groups[[index[text] for text in texts]]


def hold_out(groups: np.ndarray, share: float) -> np.ndarray:
    """Which rows are held out: whole groups, about this share of them, always the same ones."""
    names = np.unique(groups)
    order = sorted(names, key=lambda g: text_hash(f"{int(g)}"))
    chosen = set(order[: max(1, round(share * len(names)))])
    return np.array([group in chosen for group in groups])


def data_hash(rows: Iterable[LabelledExchange]) -> str:
    """sha256 of prompts, responses, labels and spans; their order does not matter."""
    lines = sorted(
        json.dumps(
            [row.prompt, row.response, row.unsafe, row.label, *([row.spans] if row.spans else [])],
            ensure_ascii=False,
        )
        for row in rows
    )
    return text_hash("\n".join(lines))
