"""Where baselines are: shipped with modelassay, in the user's own store, in a folder, on the Hub.

A reference is a name, a path, or `owner/repo[:name][@revision]` for a Hub data set. Whatever it is,
it is found as a checked `Baseline` with an `Origin` that says whom one trusts by using it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from modelassay.errors import InputError
from modelassay.files import shipped
from modelassay.files.atomic import (
    check_replaceable,
    explain_os_errors,
    locked,
    new_folder,
    write_text_atomically,
)
from modelassay.files.records import NAME, check_name
from modelassay.verify.baseline import (
    INDEX_FILE,
    TABLE_FILE,
    VECTORS_FILE,
    Baseline,
    BaselineIndex,
    PulledFrom,
    load_baseline,
    read_index,
    save_baseline,
)
from modelassay.verify.creating import public_id, slug
from modelassay.verify.report import Origin, Where

log = logging.getLogger(__name__)

ORIGIN_FILE = "origin.json"
FILES = (INDEX_FILE, VECTORS_FILE, TABLE_FILE, ORIGIN_FILE)


def shipped_folder() -> Path:
    """The baselines that come with modelassay."""
    return shipped.shipped_folder("baselines")


def local_folder() -> Path:
    """The user's own store: MODELASSAY_BASELINES, else the platform's folder for user data."""
    override = os.environ.get("MODELASSAY_BASELINES")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_data_path

    return user_data_path("modelassay") / "baselines"


def list_baselines() -> list[tuple[BaselineIndex, Origin]]:
    """All that are on this machine, the shipped ones first; damaged ones are left out."""
    found: dict[str, tuple[BaselineIndex, Origin]] = {}
    for folder, source in _stores():
        for index in _indices(folder):
            found.setdefault(index.name, (index, _origin(folder / index.name, source)))
    return list(found.values())


def find_local(reference: str) -> tuple[Baseline, Origin] | None:
    """A baseline on this machine by name or path, or None.

    Raises:
        InputError: it is there but damaged.
    """
    for folder, source in _stores():
        path = folder / reference
        if _is_name(reference) and (path / INDEX_FILE).is_file():
            return load_baseline(path), _origin(path, source)
    try:
        path = Path(reference).expanduser()
        is_folder = bool(reference) and (path / INDEX_FILE).is_file()
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return None
    return (load_baseline(path), Origin(path.resolve().name, "folder")) if is_folder else None


def check_free(model_id: str, name: str | None, *, force: bool, out: Path | None) -> None:
    """Refuses a name that is taken before the model is measured.

    Raises:
        InputError: there is a baseline of that name and it is not to be replaced.
    """
    target = out or local_folder() / check_name(name or slug(public_id(model_id)), "baseline")
    check_replaceable(target, FILES, "baseline", force=force)


def store_baseline(
    baseline: Baseline,
    *,
    origin: Origin | None = None,
    force: bool = False,
    out: Path | None = None,
) -> Path:
    """Keeps a baseline in the user's store, or in a folder.

    Args:
        baseline: What to keep.
        origin: Where on the Hub it came from, to be remembered with it.
        force: Replace one of the same name.
        out: Folder to write instead of the store's.

    Raises:
        InputError: there is one of that name.
        UnavailableError: no room, no permission, or another process is writing it.
    """
    target = out or local_folder() / baseline.name
    with explain_os_errors(f"writing the baseline {target}"), locked(target):
        check_replaceable(target, FILES, "baseline", force=force)
        with new_folder(target) as partial:
            save_baseline(baseline, partial)
            if origin is not None:
                text = json.dumps(origin.to_dict(), indent=1)
                write_text_atomically(partial / ORIGIN_FILE, text + "\n")
    return target


def delete_baseline(name: str) -> Path:
    """Removes a baseline from the user's store.

    Raises:
        InputError: there is none of that name, or it is a shipped one.
    """
    path = local_folder() / name
    if _is_name(name) and (path / INDEX_FILE).is_file():
        with explain_os_errors(f"deleting {path}"), locked(path):
            if path.is_symlink():
                path.unlink()
                return path
            aside = path.with_name(f".deleted-{name}")  # whole or not at all
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            shutil.rmtree(aside)
        return path
    if _is_name(name) and (shipped_folder() / name / INDEX_FILE).is_file():
        raise InputError(f"{name} comes with modelassay and cannot be deleted.")
    raise InputError(f"No baseline {name[:80]!r} in your store; see `modelassay baseline list`.")


def _origin(path: Path, source: Where) -> Origin:
    """Origin of a stored baseline; one that was pulled remembers whose it is."""
    author = revision = None
    on_main = True
    if source == "local" and (path / ORIGIN_FILE).is_file():
        try:
            kept = PulledFrom.model_validate_json((path / ORIGIN_FILE).read_bytes())
        except (ValidationError, OSError):
            log.warning("%s is damaged; it is not known whose baseline that is.", path)
            return Origin(path.name, source, "an unknown author", None, on_main=False)
        author, revision, on_main = kept.author, kept.revision, kept.on_main
    return Origin(path.name, source, author, revision, on_main)


def _stores() -> Iterator[tuple[Path, Where]]:
    # What comes with modelassay comes first: nothing that was pulled can pass for it.
    yield shipped_folder(), "shipped"
    yield local_folder(), "local"


def _indices(folder: Path) -> Iterator[BaselineIndex]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and (path / INDEX_FILE).is_file():
            try:
                index = read_index(path)
            except InputError as error:
                log.warning("%s", error)
                continue
            if index.name == path.name:
                yield index


def _is_name(reference: str) -> bool:
    return re.fullmatch(NAME, reference) is not None
