"""Repositories as a store: listed by tag, written in commits that lose nobody's work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import AssayError, InputError, UnavailableError, first_line
from modelassay.hub.errors import hub_errors
from modelassay.hub.snapshots import ANSWER_SECONDS, NAMES, Kind, checked_token

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo

COMMIT_ATTEMPTS = 5
"""Others may write to the same data set meanwhile; each time ours is put on top of theirs."""
SEARCH_LIMIT = 1000


@dataclass(frozen=True)
class Commit:
    """Where files went."""

    repo_id: str
    commit: str
    pull_request: str | None
    """Address of the pull request, if one was asked for."""


def commit_files(
    repo_id: str,
    files: Mapping[str, Path],
    write_card: Callable[[str | None], str],
    *,
    message: str,
    create_pr: bool = False,
    private: bool = False,
    token: str | None = None,
    elsewhere: str,
    kind: Kind = "dataset",
) -> Commit:
    """Adds files to a repository and brings its card up to date, in one commit.

    Args:
        repo_id: `owner/name`; made if it is not there (not for a pull request).
        files: Local file of each path in the repository.
        write_card: Makes the new README from the present one (None where there is none); called
            again when somebody else has written in between.
        message: Of the commit.
        create_pr: Propose it to somebody else's repository.
        private: Make a new repository private.
        token: Hub token, None for the stored one.
        elsewhere: What to do without the Hub, for the error.
        kind: What sort of repository it is.

    Raises:
        InputError: no such repository, or a card that cannot be read.
        UnavailableError: no permission, or the Hub cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(token=checked_token(token))
    with hub_errors(repo_id, elsewhere=elsewhere, kind=NAMES[kind]):
        if not create_pr:
            api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True)
        for attempt in range(COMMIT_ATTEMPTS):
            head = str(api.repo_info(repo_id, repo_type=kind, timeout=ANSWER_SECONDS).sha)
            card = write_card(_readme(api, repo_id, head, kind))
            try:
                done = api.create_commit(
                    repo_id,
                    [
                        *(CommitOperationAdd(path, str(file)) for path, file in files.items()),
                        CommitOperationAdd("README.md", card.encode()),
                    ],
                    repo_type=kind,
                    commit_message=message,
                    create_pr=create_pr,
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                moved = error.response.status_code in (409, 412)
                if not moved or attempt == COMMIT_ATTEMPTS - 1:
                    raise
                continue
            return Commit(repo_id, done.oid, done.pr_url)
    raise UnavailableError(f"{repo_id} changes faster than it can be written; try again later.")


def _readme(api: Any, repo_id: str, head: str, kind: Kind) -> str | None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=head)
        return Path(path).read_text(encoding="utf-8")
    except EntryNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise InputError(
            f"The card of {repo_id} cannot be read ({first_line(error)}); correct its README.md."
        ) from error


def dataset_address(repo_id: str) -> str:
    """Where a browser finds a data set."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{repo_id}"


def is_main_head(
    repo_id: str, commit: str, *, kind: Kind = "dataset", token: str | bool | None = None
) -> bool:
    """Whether a repository's main branch holds this commit now; False where it cannot be asked."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(repo_id, kind=NAMES[kind]):
            api = HfApi(token=checked_token(token))
            return api.repo_info(repo_id, repo_type=kind, timeout=ANSWER_SECONDS).sha == commit
    except AssayError:
        return False


def update_card(text: str, *, tags: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> str:
    """A card with these tags beside its own, and these configurations if it has none.

    Raises:
        InputError: its metadata cannot be parsed.
    """
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard(text)
    except (ValueError, OSError) as error:
        raise InputError(
            f"The metadata of the data set's card cannot be read ({first_line(error)}); correct its"
            " README.md."
        ) from error
    data: Any = card.data  # its fields are whatever the card's metadata has
    own = data.tags if isinstance(data.tags, list) else []
    data.tags = list(dict.fromkeys([*own, *tags]))
    if not getattr(data, "configs", None):
        data.configs = [dict(config) for config in configs]
    return str(card)


def find_datasets(
    tags: Sequence[str],
    *,
    author: str | None = None,
    token: str | bool | None = None,
    elsewhere: str,
) -> list[DatasetInfo]:
    """Data sets that carry all of these tags, in one request.

    Raises:
        UnavailableError: the Hub cannot be reached, or is switched off.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors("the list of data sets", elsewhere=elsewhere):
        try:
            return list(
                HfApi(token=checked_token(token)).list_datasets(
                    filter=list(tags), author=author, full=True, limit=SEARCH_LIMIT
                )
            )
        except OfflineModeIsEnabled as error:
            raise UnavailableError(
                f"The Hub is switched off (HF_HUB_OFFLINE); {elsewhere}."
            ) from error
