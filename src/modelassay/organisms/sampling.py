"""Exchanges drawn from any table: what a fine-tune of the user's own learns, such as a benign one.

Rows are streamed and a fixed number of them is held, so the table may be of any size. Rows of a
known layout that hold no single exchange (several turns, an empty text) are left out and counted; a
table without any known layout is refused. HelpSteer's ratings are columns of numbers that rows can
be chosen by; its second version writes several turns into a prompt, parted by `<extra_id_1>`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelassay.data.exchanges import Exchange, to_exchange
from modelassay.data.layouts import conversation_of
from modelassay.errors import InputError
from modelassay.hub import check_place, check_table, open_rows
from modelassay.progress import OnProgress

MAX_ROWS_READ = 200_000
"""Rows of a table that a draw looks at: more would take hours to stream."""
TURN_MARK = "<extra_id_1>"
SEVERAL_TURNS = "it has several turns"
UNUSABLE = "a text in it cannot be used (empty, too long or no text)"


@dataclass(frozen=True)
class Sample:
    """What was drawn from a table."""

    exchanges: list[Exchange]
    rows_read: int
    left_out: dict[str, int]
    """Why rows were left out, and how many."""
    is_part: bool
    """Whether the table has more rows than were looked at."""


def sample_exchanges(
    where: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    rated: Sequence[str] = (),
    config: str | None = None,
    split: str | None = None,
    token: str | bool | None = None,
    on_progress: OnProgress | None = None,
) -> Sample:
    """Draws exchanges evenly from a file or a data set on the Hub.

    Args:
        where: Path of a table, or `owner/name`.
        limit: How many; None takes all.
        seed: Of the draw.
        rated: Least ratings, as `COLUMN=NUMBER`: rows with a smaller one are left out.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set; None is `train`.
        token: Hub token, None for the stored one.
        on_progress: Told how many rows were read.

    Raises:
        InputError: no such data, no known layout, no such rating, or no row that can be used.
        UnavailableError: the Hub cannot be reached, or the data set is gated.
    """
    least = dict(_least_rating(text) for text in rated)
    check_place(where, config, split)
    check_table(where)
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    kept: list[tuple[int, Exchange]] = []
    left_out: Counter[str] = Counter()
    usable, number, is_part = 0, 0, False
    for number, raw in open_rows(where, config=config, split=split or "train", token=token):
        if number > MAX_ROWS_READ:
            number, is_part = MAX_ROWS_READ, True
            break
        row = {str(name).strip().lower(): value for name, value in raw.items()}
        exchange = _exchange_of(row, f"Row {number} of {where}", least)
        if on_progress and number % 500 == 0:
            on_progress(number, number)
        if isinstance(exchange, str):
            left_out[exchange] += 1
            continue
        usable += 1
        if limit is None or len(kept) < limit:
            kept.append((number, exchange))
        elif (place := draw.randrange(usable)) < limit:  # each row is as likely to stay
            kept[place] = (number, exchange)
    if not kept:
        why = "; ".join(f"{n} left out because {reason}" for reason, n in left_out.items())
        raise InputError(f"{where} gives no exchanges: {why or 'it has no rows'}.")
    kept.sort(key=lambda pair: pair[0])
    return Sample([exchange for _, exchange in kept], number, dict(left_out), is_part)


def _least_rating(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name.strip() or not math.isfinite(number):
        raise InputError(f"--rated is COLUMN=NUMBER, such as helpfulness=3, not {text!r}.")
    return name.strip().lower(), number


def _exchange_of(row: Mapping[str, Any], name: str, least: Mapping[str, float]) -> Exchange | str:
    """What a row teaches, or why it is left out."""
    for column, number in least.items():
        if column not in row:
            raise InputError(f"{name} has no column {column!r} to choose by.")
        try:
            if not float(row[column]) >= number:
                return f"its {column} is below {number:g}"
        except (TypeError, ValueError):
            return f"its {column} is no number"
    if isinstance(row.get("prompt"), str) and TURN_MARK in row["prompt"]:
        return SEVERAL_TURNS
    try:
        return to_exchange(row, name)
    except InputError:
        try:
            found = conversation_of(row, name, lambda value, _field, _name: str(value))
        except InputError:
            return UNUSABLE
        if found is None:  # no row of this table can be read
            raise
        return SEVERAL_TURNS if len(found.turns) > 2 else UNUSABLE
