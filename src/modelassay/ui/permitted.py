"""What visitors may ask for: names of models and artifacts, never paths of the server."""

from __future__ import annotations

import os
import re
from typing import Any

from modelassay.artifacts import REFERENCE, Found, Store
from modelassay.artifacts.kind import R
from modelassay.errors import InputError, with_article
from modelassay.hub import REPO_ID
from modelassay.models.embedded import BASES
from modelassay.models.organisms import find_organism, is_organism
from modelassay.sae import SAES
from modelassay.sae.finding import find_release
from modelassay.verify import BASELINES

LISTED_SAE = re.compile(r"[\w.-]+([:/][\w./-]+)?")
"""`RELEASE:SAE_ID` of sae-lens's list."""


def check_model_id(model_id: str) -> str:
    """The model id if a visitor may ask for it.

    Raises:
        InputError: it is empty, or no Hub id where only those are allowed.
    """
    model_id = model_id.strip() if isinstance(model_id, str) else ""
    if not model_id:
        raise InputError("Give a model: `embedded`, an organism or a Hub id such as owner/name.")
    if is_organism(model_id):
        return find_organism(model_id).id
    if model_id in BASES or allows_own():
        return model_id
    if not REPO_ID.fullmatch(model_id) or "/" not in model_id or os.path.exists(model_id):
        raise InputError(f"{model_id[:100]!r} is not a Hub id of the form owner/name.")
    return model_id


def allows_own() -> bool:
    """Whether visitors may name what lies on this machine."""
    return os.environ.get("MODELASSAY_ALLOW_LOCAL") == "1"


def is_own_machine() -> bool:
    """Whether the page may keep, delete and publish for whoever opens it: never on a Space."""
    return allows_own() and not os.environ.get("SPACE_ID")


def visible(store: Store[R]) -> tuple[Found[R], ...]:
    """What a visitor may know of: the host's own artifacts only where paths are allowed."""
    return store.list(own=allows_own())


def check_reference(store: Store[Any], reference: str) -> str:
    """The reference if a visitor may ask for it: a name, the id of a model, or a Hub data set.

    Raises:
        InputError: it is a path or nonsense.
    """
    reference = reference.strip() if isinstance(reference, str) else ""
    shown = visible(store)
    known = {found.name for found in shown} | {found.model_id for found in shown}
    if reference in known or (REFERENCE.fullmatch(reference) and not os.path.exists(reference)):
        return reference
    raise InputError(
        f"{reference[:100]!r} is not {with_article(store.kind.noun)}: choose one from the list, or"
        " give a Hub data set (owner/repo[:name][@revision])."
    )


def check_sae(reference: str) -> str:
    """As `check_reference`, and one that sae-lens lists; empty for the one at hand."""
    reference = reference.strip() if isinstance(reference, str) else ""
    if not reference:
        return ""
    # What can be no name there is refused without opening sae-lens, which takes seconds.
    named = LISTED_SAE.fullmatch(reference) and ".." not in reference
    if named and not os.path.exists(reference) and find_release(reference) is not None:
        return reference
    return check_reference(SAES, reference)


def check_baseline(reference: str) -> str:
    """As `check_reference`; empty for the baseline of the model itself."""
    given = isinstance(reference, str) and reference.strip()
    return check_reference(BASELINES, reference) if given else ""
