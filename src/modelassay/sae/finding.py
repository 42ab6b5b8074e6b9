"""Where dictionaries are: shipped, in a folder, in sae-lens's list, or on the Hub in a data set."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from modelassay.errors import AssayError, InputError, UnavailableError
from modelassay.files import shipped
from modelassay.files.records import NAME
from modelassay.hub import REFERENCE
from modelassay.sae.dictionary import CONFIG_FILE, Dictionary, load_dictionary, load_plain
from modelassay.sae.publishing import SHELF
from modelassay.sae.record import RECORD_FILE, DictionaryRecord, read_record
from modelassay.sae.releases import find_release, load_release


def find_dictionary(
    where: str,
    *,
    device: str = "cpu",
    token: str | bool | None = None,
    revision: str | None = None,
) -> Dictionary:
    """A dictionary by name, path, release or Hub reference.

    Args:
        where: The name of a shipped one or the id of its model; a folder that `save_dictionary` or
            sae-lens wrote; `RELEASE:SAE_ID` or `RELEASE/SAE_ID` of sae-lens's list; or
            `owner/repo[:name][@revision]`, a Hub data set that holds some.
        device: Where its weights are put.
        token: Hub token, None for the stored one, False for none at all.
        revision: Branch, tag or commit of the Hub data set.

    Raises:
        InputError: there is none, it is damaged, pickled, or reads no output of a block.
        UnavailableError: the Hub cannot be reached, or sae-lens is not installed.
    """
    check_installed()
    if (folder := _folder(where)) is not None:
        _check_no_revision(where, revision)
        own = (folder / RECORD_FILE).is_file()
        return load_dictionary(folder, device) if own else load_plain(folder, device)
    if (release := find_release(where)) is not None:
        _check_no_revision(where, revision)
        return load_release(release, device=device, token=token)
    if REFERENCE.fullmatch(where):
        return load_dictionary(SHELF.pull(where, revision=revision, token=token).folder, device)
    raise InputError(
        f"No dictionary {where[:120]!r}: give a folder, the name of a shipped one, RELEASE:SAE_ID"
        " (`modelassay sae list`), or owner/repo[:name][@revision]."
    )


def check_installed() -> None:
    """Refuses to go on without sae-lens.

    Raises:
        UnavailableError: says how to install it.
    """
    if find_spec("sae_lens") is None:
        raise UnavailableError("Dictionaries need sae-lens: pip install 'modelassay[sae]'")


def shipped_folder() -> Path:
    """The dictionaries that come with modelassay."""
    return shipped.shipped_folder("dictionaries")


def list_dictionaries() -> list[DictionaryRecord]:
    """Records of those that come with modelassay; damaged ones are left out."""
    found = []
    folder = shipped_folder()
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            found.append(read_record(path))
        except AssayError:
            continue
    return found


def _folder(where: str) -> Path | None:
    """The folder on this machine that is meant, if there is one."""
    # What comes with modelassay comes first, as with probes.
    names = [where] if re.fullmatch(NAME, where) else []
    names += [record.name for record in list_dictionaries() if record.model.id == where]
    for name in names:
        if (shipped_folder() / name / RECORD_FILE).is_file():
            return shipped_folder() / name
    try:
        path = Path(where).expanduser()
        there = path.is_dir() and any((path / f).is_file() for f in (RECORD_FILE, CONFIG_FILE))
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return None
    if path.is_dir() and not there:
        raise InputError(f"{where} holds no dictionary (no {RECORD_FILE} and no {CONFIG_FILE}).")
    return path if there else None


def _check_no_revision(where: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{where} has no revisions to choose from; leave --revision out.")
