"""What a kind of artifact is: baselines, probes, SAEs, calibrations, monitors, reports and more.

To add one:
1. write its record, a pydantic model of its JSON file, and beside it `THINGS = Store(Kind(...))`;
   what its data sets say of themselves goes to `readmes/thing.md`;
2. give it a command: `add_verbs(app, "modelassay.things:THINGS", "thing")` in a module of cli/, and
   the app a line in cli/main.py;
3. show it on the page: a line in `STORES` of ui/artifacts_tab.py;
4. test it: a line in `MADE` of tests/artifacts/test_every_kind.py, and all there runs over it;
5. ship some: a folder of that name beside `probes/`, and a line in pyproject.toml's force-include.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from modelassay.errors import InputError, with_article
from modelassay.files.records import NAME

R = TypeVar("R", bound=BaseModel)


@dataclass(frozen=True)
class Kind(Generic[R]):
    """A kind of artifact: a folder with a record in JSON, and whatever the record describes."""

    noun: str
    """What people call one, such as `probe`."""
    folder: str
    """Name of the folder that holds them: where they are shipped, kept, and in a data set."""
    record: type[R]
    """What the record file must be. Its `name`, if it has one, is the folder's."""
    files: Mapping[str, int]
    """All files that one may consist of, the record first, each with the most bytes it may have.
    Nothing else is fetched, published or replaced."""
    model_id: Callable[[R], str]
    """Id of the model that one belongs to."""
    check: Callable[[Path], object]
    """Opens everything in a folder; raises InputError if a file is damaged or does not fit."""
    summary: Callable[[R], str]
    """A few words for a list, beside the name and the model."""
    describe: Callable[[R], Sequence[str]]
    """Lines that tell a person what one is and how good."""
    values: Callable[[R], Mapping[str, Any]]
    """JSON values for a list, beside `name` and `source`."""
    write_table: Callable[[R, Path], object]
    """Writes the rows that `load_dataset` and the Hub's viewer show; they are never read back."""
    tag: str
    """By which data sets are found."""
    more_tags: tuple[str, ...] = ()
    foreign: Callable[[Path], R] | None = None
    """Reads a JSON file of another tool that does the same, where its users keep such files."""
    table_file: str = "metrics.jsonl"

    @property
    def command(self) -> str:
        """Of the command line, such as `probe`."""
        return self.noun.lower()

    @property
    def variable(self) -> str:
        """Environment variable with the folder of the user's own ones."""
        return f"MODELASSAY_{self.plural.upper()}"

    @property
    def record_file(self) -> str:
        """The one that every folder of this kind has."""
        return next(iter(self.files))

    @property
    def plural(self) -> str:
        """What people call several."""
        return f"{self.noun}s"

    @property
    def own_files(self) -> frozenset[str]:
        """Names of all that a folder of this kind can hold."""
        return frozenset({*self.files, self.table_file, ORIGIN_FILE})

    @property
    def elsewhere(self) -> str:
        """What to do without the Hub, for errors."""
        return f"use one that is on this machine (`modelassay {self.command} list`)"

    def check_name(self, name: str) -> str:
        """The name, if one can have it.

        Raises:
            InputError: it cannot.
        """
        if re.fullmatch(NAME, name):
            return name
        raise InputError(
            f"{name[:60]!r} cannot name {with_article(self.noun)}; use letters, digits, dots,"
            " dashes and underscores, at most 96, the first a letter or digit."
        )

    def model_tag(self, model_id: str) -> str:
        """The tag of a data set that holds one of this model."""
        return f"{self.model_tag_prefix}{slug(model_id).lower()}"

    @property
    def model_tag_prefix(self) -> str:
        """What the tags of models begin with, such as `probe-of-`."""
        return f"{self.command}-of-"

    def card(self, repo_id: str) -> str:
        """The README of a new data set, around what `readmes/` says of this kind."""
        about, frame = (
            (Path(__file__).parent / "readmes" / f"{name}.md").read_text(encoding="utf-8")
            for name in (self.command, "any_kind")
        )
        title = self.plural[0].upper() + self.plural[1:]
        body = about.format(repo_id=repo_id).strip()
        return frame.format(title=title, plural=self.plural, tag=self.tag, about=body)

    @property
    def table_config(self) -> Mapping[str, Any]:
        """What `load_dataset` opens."""
        files = f"{self.folder}/*/{self.table_file}"
        return {"config_name": Path(files).stem, "data_files": files, "default": True}


ORIGIN_FILE = "origin.json"
"""Beside what was pulled: where from."""


def slug(model_id: str) -> str:
    """A name for an artifact made from a model id: `owner/name` becomes `owner--name`."""
    text = re.sub(r"[^A-Za-z0-9_.-]+", "-", model_id.replace("/", "--")).strip("-.")
    return text[:96] or "model"


def public_id(model_id: str) -> str:
    """A model id without the folders of this machine."""
    path = Path(model_id).expanduser()
    return path.resolve().name if path.exists() or path.is_absolute() else model_id


def write_lines(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Writes rows as JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
