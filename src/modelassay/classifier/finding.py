"""Finds a classifier: by name, in a folder, on the Hub; one of open-constitution as well."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modelassay.artifacts import REFERENCE, Found, Origin
from modelassay.classifier.foreign import foreign_record
from modelassay.classifier.record import (
    CLASSIFIERS,
    ClassifierRecord,
    check_classifier,
    is_foreign,
    write_record,
)
from modelassay.errors import InputError, first_line
from modelassay.hub import REPO_ID, fetch_model, is_main_head


def find_classifier(
    reference: str, *, revision: str | None = None, token: str | bool | None = None
) -> Found[ClassifierRecord]:
    """A classifier by name, path, or on the Hub: in a data set, or as a model of its own.

    Args:
        reference: A name, a folder (of open-constitution, too), `owner/repo:name[@revision]` for
            one in a data set, or `owner/name` for a model repository.
        revision: Branch, tag or commit on the Hub.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        InputError: there is none, or it is damaged.
        UnavailableError: the Hub cannot be reached.
    """
    if (own := CLASSIFIERS.here(reference)) is not None:
        return own
    try:
        if reference and (folder := Path(reference).expanduser()).is_dir():
            return _open(folder.resolve())
    except (OSError, RuntimeError) as error:
        cause = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Cannot look for a classifier at {reference[:80]!r}: {cause}") from error
    if ":" in reference and REFERENCE.fullmatch(reference):
        return CLASSIFIERS.find(reference, revision=revision, token=token)
    if not REPO_ID.fullmatch(reference) or "/" not in reference:
        raise InputError(
            f"No classifier at {reference[:80]!r}: give the name of one (`modelassay classifier"
            " list`), a folder, a Hub data set (owner/repo:name) or a Hub model (owner/name)."
        )
    snapshot = fetch_model(reference, revision=revision, token=token, gguf_file=None, code=False)
    on_main = revision in (None, "main") or is_main_head(
        reference, snapshot.commit, kind="model", token=token
    )
    author, _, name = reference.partition("/")
    origin = Origin(reference, "hub", author, snapshot.commit, on_main)
    return replace(_open(snapshot.folder), name=name, origin=origin)


def checked_record(found: Found[ClassifierRecord]) -> ClassifierRecord:
    """The record of one that was found, once its weights were checked to be those of its record.

    Raises:
        InputError: a file is missing, damaged, too large, pickled, or another one.
    """
    return found.record if is_foreign(found.folder) else check_classifier(found.folder)


def import_classifier(
    found: Found[ClassifierRecord],
    *,
    name: str | None = None,
    out: Path | None = None,
    force: bool = False,
) -> Path:
    """Keeps a copy of one that was found, with a record of ours.

    Args:
        found: From `find_classifier`.
        name: Under which it is kept in the user's store.
        out: Folder in place of the store's.
        force: Replace one that is there.

    Raises:
        InputError: it is damaged, something is there, or no name that can be one.
        UnavailableError: no room, no permission, or another process is writing it.
    """
    record = checked_record(found)

    def write(partial: Path) -> None:
        CLASSIFIERS.copy(found.folder, partial)
        write_record(partial, record)

    origin = found.origin if found.origin.source == "hub" else None
    return CLASSIFIERS.save(write, name or "", origin=origin, out=out, force=force)


def _open(folder: Path) -> Found[ClassifierRecord]:
    if not is_foreign(folder):
        return CLASSIFIERS.open(folder)
    record = foreign_record(folder)
    return Found(CLASSIFIERS.kind, record, folder.name, folder, Origin(folder.name, "folder"))
