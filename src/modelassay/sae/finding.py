"""Where SAEs are: shipped, in a folder, in sae-lens's list, or on the Hub in a data set."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from modelassay.artifacts import REFERENCE
from modelassay.errors import InputError, UnavailableError
from modelassay.sae.files import SAE, load_plain, load_sae
from modelassay.sae.record import CONFIG_FILE, RECORD_FILE, SAES
from modelassay.sae.releases import find_release, load_release


def find_sae(
    where: str,
    *,
    device: str = "cpu",
    token: str | bool | None = None,
    revision: str | None = None,
) -> SAE:
    """An SAE by name, path, release or Hub reference.

    Args:
        where: The name of one on this machine or the id of its model; a folder that
            `save_dictionary` or sae-lens wrote; `RELEASE:SAE_ID` or `RELEASE/SAE_ID` of sae-lens's
            list; or `owner/repo[:name][@revision]`, a Hub data set that holds some.
        device: Where its weights are put.
        token: Hub token, None for the stored one, False for none at all.
        revision: Branch, tag or commit of the Hub data set.

    Raises:
        InputError: there is none, it is damaged, pickled, or reads no output of a layer.
        UnavailableError: the Hub cannot be reached, or sae-lens is not installed.
    """
    check_installed()
    own = SAES.here(where) or SAES.of_model(where)
    if own is None and (folder := _plain_folder(where)) is not None:
        _check_no_revision(where, revision)
        return load_plain(folder, device)
    if own is None and (release := find_release(where)) is not None:
        _check_no_revision(where, revision)
        return load_release(release, device=device, token=token)
    if own is None and not REFERENCE.fullmatch(where):
        raise InputError(
            f"No SAE {where[:120]!r}: give a folder, the name of one, RELEASE:SAE_ID"
            " (`modelassay sae list`), or owner/repo[:name][@revision]."
        )
    if own is None or revision is not None:
        own = SAES.find(where, revision=revision, token=token)
    own.warn()
    return replace(load_sae(own.folder, device), origin=own.origin)


def check_installed() -> None:
    """Refuses to go on without sae-lens.

    Raises:
        UnavailableError: says how to install it.
    """
    if find_spec("sae_lens") is None:
        raise UnavailableError("SAEs need sae-lens: pip install 'modelassay[sae]'")


def _plain_folder(where: str) -> Path | None:
    """A folder in sae-lens's format that has no record of ours."""
    try:
        path = Path(where).expanduser()
        if not path.is_dir():
            return None
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return None
    if not (path / CONFIG_FILE).is_file():
        raise InputError(f"{where} holds no SAE (no {RECORD_FILE} and no {CONFIG_FILE}).")
    return path


def _check_no_revision(where: str, revision: str | None) -> None:
    if revision is not None:
        raise InputError(f"{where} has no revisions to choose from; leave --revision out.")
