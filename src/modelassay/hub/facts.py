"""What the Hub says of a data set besides its rows: which commit it is at, and its licence."""

from __future__ import annotations

from dataclasses import dataclass

from modelassay.hub.errors import DATA_ELSEWHERE, hub_errors
from modelassay.hub.snapshots import ANSWER_SECONDS, checked_token


@dataclass(frozen=True)
class DatasetFacts:
    """A data set as it is now."""

    commit: str
    licence: str | None
    """As its card names it."""


def dataset_facts(
    repo_id: str, *, revision: str | None = None, token: str | bool | None = None
) -> DatasetFacts:
    """Asks the Hub.

    Args:
        repo_id: `owner/name`.
        revision: Branch, tag or commit; None for the main branch.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data set or revision.
        UnavailableError: gated, forbidden, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with hub_errors(repo_id, revision, elsewhere=DATA_ELSEWHERE, kind="data set"):
        api = HfApi(token=checked_token(token))
        info = api.dataset_info(repo_id, revision=revision, timeout=ANSWER_SECONDS)
    licences = [tag.removeprefix("license:") for tag in info.tags or [] if "license:" in tag]
    card = info.card_data.get("license") if info.card_data else None
    named = card if isinstance(card, str) else ", ".join(map(str, card or licences))
    return DatasetFacts(info.sha or "", named or None)
