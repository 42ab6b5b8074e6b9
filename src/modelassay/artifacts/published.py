"""Artifacts in data sets on the Hub, which anybody can publish, find, pin and check.

A data set holds any number of them, each in `FOLDER/NAME/`. Its card carries a tag by which all are
found, and one for each model. Whoever wrote what is fetched is a stranger: sizes are checked before
anything is fetched, and only the files of the kind are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.artifacts.kind import Kind
from modelassay.artifacts.origin import Origin
from modelassay.errors import InputError
from modelassay.files.records import NAME
from modelassay.hub import (
    Commit,
    RemoteFile,
    commit_files,
    fetch_snapshot,
    find_datasets,
    is_main_head,
    update_card,
)

REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
REFERENCE = re.compile(rf"(?P<repo>{REPO})(:(?P<name>{NAME}))?(@(?P<revision>[^\s:@]+))?")
"""`owner/repo[:name][@revision]`."""


@dataclass(frozen=True)
class Listing:
    """A data set that says it holds artifacts of a kind."""

    repo_id: str
    author: str
    revision: str | None
    models: tuple[str, ...]
    """Slugs of the models that its tags name."""
    downloads: int
    updated: str | None


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the id of a data set.

    Raises:
        InputError: says how one looks.
    """
    if not re.fullmatch(REPO, repo_id):
        raise InputError(f"{repo_id[:120]!r} is not a Hub data set; give OWNER/NAME.")


def publish(
    kind: Kind[Any],
    repo_id: str,
    name: str,
    files: Mapping[str, Path],
    *,
    model_id: str,
    create_pr: bool,
    private: bool,
    token: str | None,
) -> Commit:
    """Puts an artifact's files into a data set, in one commit with the card.

    Args:
        kind: What it is.
        repo_id: Data set, `owner/name`; made if it is not there (not for a pull request).
        name: Of the artifact.
        files: Local file of each name.
        model_id: Of the model it belongs to.
        create_pr: Propose it to somebody else's data set.
        private: Make a new data set private.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data set, or a name that cannot be one.
        UnavailableError: no permission, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)

    def write_card(present: str | None) -> str:
        return update_card(
            present if present is not None else kind.card(repo_id),
            tags=[kind.tag, kind.model_tag(model_id), *kind.more_tags],
            configs=[kind.table_config],
        )

    return commit_files(
        repo_id,
        {f"{kind.folder}/{name}/{file}": path for file, path in files.items()},
        write_card,
        message=f"Add the {kind.noun} {name}",
        create_pr=create_pr,
        private=private,
        token=token,
        elsewhere=kind.elsewhere,
    )


def fetch(
    kind: Kind[Any],
    reference: str,
    *,
    revision: str | None,
    token: str | bool | None,
    whole: bool,
) -> tuple[Path, str, Origin]:
    """Fetches an artifact into the Hub's cache; nothing in it has been checked but the sizes.

    Args:
        kind: What it must be.
        reference: `owner/repo[:name][@revision]`.
        revision: In place of the reference's own.
        token: Hub token, None for the stored one, False for none at all.
        whole: False fetches the record alone.

    Returns:
        Its folder, its name and its origin.

    Raises:
        InputError: no such data set, one that holds none or several to choose from, or a file that
            is too large.
        UnavailableError: the Hub cannot be reached and it is not in the cache.
    """
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(
            f"{reference[:120]!r} is not a Hub data set (owner/repo[:name][@revision])."
        )
    repo_id, name = match["repo"], match["name"]
    wanted = revision or match["revision"]
    files = kind.files if whole else {kind.record_file: kind.files[kind.record_file]}

    def choose(listed: Mapping[str, RemoteFile]) -> list[str]:
        chosen = _choose(kind, repo_id, name, list(listed)) if listed else name or "*"
        for file, most in files.items():
            there = listed.get(f"{kind.folder}/{chosen}/{file}")
            if there is not None and there.size > most:
                raise InputError(
                    f"{file} of {repo_id} is larger than the {most} bytes it may have."
                )
        return [f"{kind.folder}/{chosen}/{file}" for file in files]

    snapshot = fetch_snapshot(
        repo_id,
        kind="dataset",
        revision=wanted,
        token=token,
        choose=choose,
        elsewhere=kind.elsewhere,
    )
    # Without the Hub there was no listing to choose from.
    name = _choose(kind, repo_id, name, list(snapshot.listing) or snapshot.names())
    on_main = wanted in (None, "main") or is_main_head(repo_id, snapshot.commit, token=token)
    author = repo_id.partition("/")[0]
    origin = Origin(f"{repo_id}:{name}", "hub", author, snapshot.commit, on_main)
    return snapshot.folder / kind.folder / name, name, origin


def search(
    kind: Kind[Any], *, model: str | None, author: str | None, token: str | bool | None
) -> list[Listing]:
    """Data sets that say they hold artifacts of a kind, in one request.

    Raises:
        UnavailableError: the Hub cannot be reached.
    """
    wanted = [kind.tag, *([kind.model_tag(model)] if model else [])]
    prefix = kind.model_tag_prefix
    return [
        Listing(
            repo_id=each.repo_id,
            author=each.author,
            revision=each.revision,
            models=tuple(tag.removeprefix(prefix) for tag in each.tags if tag.startswith(prefix)),
            downloads=each.downloads,
            updated=each.updated,
        )
        for each in find_datasets(wanted, author=author, token=token, elsewhere=kind.elsewhere)
    ]


def _choose(kind: Kind[Any], repo_id: str, name: str | None, files: Sequence[str]) -> str:
    pattern = rf"{kind.folder}/({NAME})/{re.escape(kind.record_file)}"
    names = sorted(match[1] for file in files if (match := re.fullmatch(pattern, file)))
    if name is None and len(names) == 1:
        return names[0]
    if name is not None and name in names:
        return name
    if not names:
        raise InputError(f"{repo_id} holds no {kind.noun}.")
    listed = ", ".join(names[:8]) + ("…" if len(names) > 8 else "")
    which = f"no {kind.noun} {name!r}" if name else f"{len(names)} {kind.plural}"
    raise InputError(f"{repo_id} holds {which}; choose one as {repo_id}:NAME from {listed}.")
