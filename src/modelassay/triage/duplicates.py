"""Rows that nearly repeat each other, in bounded memory.

Poison is often written once and varied; so are whole training sets made from templates. Two rows
count as near-duplicates when the Jaccard similarity of their character 5-grams (within words) is at
least `THRESHOLD`. It is estimated by MinHash (Broder 1997) with 128 hash functions, standard error
0.04, and candidates come from locality-sensitive hashing in 32 bands of 4 (Leskovec et al., "Mining
of Massive Datasets", chapter 3): a pair at the threshold is missed once in 5,000 times. Groups are
connected parts, so the ends of a long chain may differ.

datasketch has both steps for one row at a time. On 100,000 rows its MinHash and MinHashLSH took
three times as long (249 s against 86 s on one core) and six times the memory (1.2 GB against 0.2
GB), so they are done here for a block of rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelassay.data.labelled import linked_groups
from modelassay.data.wording import plain_words
from modelassay.progress import OnProgress
from modelassay.triage.rows import TrainingRow

THRESHOLD = 0.7
BANDS, ROWS_PER_BAND = 32, 4
N_HASHES = BANDS * ROWS_PER_BAND
SHINGLE = 5  # characters
READ = 5000  # characters of a row that are compared
BLOCK = 1024  # rows at a time; bounds the memory
PRIME = (1 << 31) - 1
N_FEATURES = 1 << 20
SEED = 0


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows that nearly repeat each other."""

    rows: tuple[TrainingRow, ...]
    """At least two, in the order of the file."""
    n_exact: int
    """How many of them repeat an earlier one word for word."""


@dataclass(frozen=True)
class NearDuplicates:
    """All groups of near-duplicates."""

    groups: tuple[DuplicateGroup, ...]
    """The largest first."""
    n_rows: int
    """Rows that are in a group."""


def near_duplicates(
    rows: Sequence[TrainingRow], *, on_progress: OnProgress | None = None
) -> NearDuplicates:
    """Finds groups of rows that nearly repeat each other.

    Args:
        rows: Where to look; a row takes about 0.7 kB beside its own text.
        on_progress: Told (rows done, rows in all).
    """
    names = row_groups(rows, on_progress=on_progress)
    members: dict[int, list[TrainingRow]] = {}
    for name, row in zip(names.tolist(), rows, strict=True):
        members.setdefault(name, []).append(row)
    groups = [
        DuplicateGroup(tuple(group), len(group) - len({row.text for row in group}))
        for group in members.values()
        if len(group) > 1
    ]
    groups.sort(key=lambda group: -len(group.rows))
    return NearDuplicates(tuple(groups), sum(len(group.rows) for group in groups))


def row_groups(rows: Sequence[TrainingRow], *, on_progress: OnProgress | None = None) -> np.ndarray:
    """A group number for each row, int [row]; near-duplicates share one."""

    def near(distinct: list[str]) -> tuple[np.ndarray, np.ndarray]:
        signatures = _signatures(distinct, on_progress)
        pairs = [_pairs(signatures, band) for band in range(BANDS)]
        first, second = (np.concatenate(side) for side in zip(*pairs, strict=True))
        return first, second

    return linked_groups([plain_words(row.text)[:READ] for row in rows], near)


def _signatures(texts: Sequence[str], on_progress: OnProgress | None) -> np.ndarray:
    """MinHash signatures, uint32 [text, hash]."""
    from sklearn.feature_extraction.text import HashingVectorizer

    vectorizer: Any = HashingVectorizer(
        analyzer="char_wb",
        ngram_range=(SHINGLE, SHINGLE),
        n_features=N_FEATURES,
        binary=True,
        norm=None,  # type: ignore[arg-type]  # its hints are behind its documentation
        alternate_sign=False,
    )
    rng = np.random.default_rng(SEED)
    factors = rng.integers(1, PRIME, size=N_HASHES, dtype=np.int64)
    offsets = rng.integers(0, PRIME, size=N_HASHES, dtype=np.int64)
    found = np.empty((len(texts), N_HASHES), dtype=np.uint32)
    for start in range(0, len(texts), BLOCK):
        # A text that makes no shingle has one all the same, or its minimum would be another's.
        block = [text or "(empty)" for text in texts[start : start + BLOCK]]
        shingles = vectorizer.transform(block).tocsr()
        ids, starts = shingles.indices.astype(np.int64), shingles.indptr[:-1]
        for i, (factor, offset) in enumerate(zip(factors, offsets, strict=True)):
            hashed = (ids * factor + offset) % PRIME  # below 2^51: no overflow
            found[start : start + len(block), i] = np.minimum.reduceat(hashed, starts)
        if on_progress:
            on_progress(start + len(block), len(texts))
    return found


def _pairs(signatures: np.ndarray, band: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of texts that agree in a band and are similar enough, as two index arrays."""
    keys = signatures[:, band * ROWS_PER_BAND : (band + 1) * ROWS_PER_BAND]
    order = np.lexsort(keys.T)
    ordered = keys[order]
    new = np.ones(len(order), dtype=bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    # Each text of a bucket is compared with the bucket's first one, so that a bucket of a thousand
    # rows costs a thousand comparisons; another band has another first one.
    leader = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    first, second = leader[~new], order[~new]
    similar = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), 65_536):
        part = slice(start, start + 65_536)
        agree = (signatures[first[part]] == signatures[second[part]]).mean(axis=1)
        similar[part] = agree >= THRESHOLD
    return first[similar], second[similar]
