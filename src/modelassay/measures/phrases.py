"""Tables of phrases, and text made plain enough to be searched for them.

A table under `refusals/` holds one pattern a row. A deeper indented line goes on with the one
before, a blank matches any whitespace, and `<NAME>` stands for a pattern of the table `names`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path


def read_table(name: str) -> str:
    """One of the tables under `refusals/`, by its name without the ending."""
    return (Path(__file__).parent / "refusals" / f"{name}.txt").read_text(encoding="utf-8")


_ALIKE = str.maketrans("łøđı’‘ʼ´“”„«»「」–—", 'lodi\'\'\'\'"""""""--')
_DROPPED = "*_`#>~\u200b\u200c\u200d\u200e\u200f\ufeff"


@lru_cache(maxsize=4096)
def plain(char: str) -> str:
    """Lower-cases and strips accents (small models drop them) where a script can do without."""
    char = char.translate(_ALIKE).lower().replace("æ", "ae")
    if char < "\u0590" or "\u1e00" <= char < "\u2000":
        char = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFD", char))
    return char


def fold(text: str) -> tuple[str, list[int]]:
    """Drops case, accents, markdown and repeated blanks; also gives each character's old offset."""
    out: list[str] = []
    at: list[int] = []
    for i, raw in enumerate(text):
        if raw not in _DROPPED and not (raw.isspace() and out and out[-1].isspace()):
            char = ("\n" if raw == "\n" else " ") if raw.isspace() else plain(raw)
            out.extend(char)
            at.extend([i] * len(char))
    return "".join(out).rstrip(), at


def rows_of(table: str, indent: int) -> list[str]:
    """The rows of a table whose lines go on where they are indented by so many blanks."""
    return table.replace("\n" + " " * indent, "").strip("\n").split("\n")


# <HELP> is what an assistant does for its user; its negative parts spare praise, emphasis and
# feeling ("I can't recommend it enough").
_MEANINGS = {
    name: meaning
    for name, _, meaning in (r.partition(" ") for r in rows_of(read_table("names"), 2))
}


def compile_phrase(pattern: str) -> re.Pattern[str]:
    """A pattern for folded text, its names replaced by what they stand for."""
    while named := re.search("<[A-Z]+>", pattern):
        pattern = pattern.replace(named[0], _MEANINGS[named[0]])
    return re.compile("".join(map(plain, pattern)).replace(" ", r"\s"), re.DOTALL)


def compile_kinds(table: str) -> Iterator[tuple[str, re.Pattern[str]]]:
    """The patterns of a table, each with the unindented line that heads its kind."""
    kind = ""
    for row in rows_of(table, 4):
        if row.startswith("  "):
            yield kind, compile_phrase(row[2:])
        else:
            kind = row
