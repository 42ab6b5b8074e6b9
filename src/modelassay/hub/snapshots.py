"""One commit of a repository: its listing is looked over first, then files come into the cache.

And the Hub's cache on this machine: what it knows of a file, and how large it may grow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from modelassay.errors import InputError
from modelassay.hub.errors import MODEL_ELSEWHERE, hub_errors, no_answer

Kind = Literal["model", "dataset"]
# The client itself waits for ever for what it asks first.
ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says of a file."""

    size: int
    sha256: str | None
    """Of large files only."""


@dataclass(frozen=True)
class Snapshot:
    """Files of one commit of a Hub repository, in the local cache."""

    folder: Path
    commit: str
    listing: Mapping[str, RemoteFile] = field(default_factory=dict)
    """All files of the commit, fetched or not; empty when the Hub was not asked."""

    def names(self) -> list[str]:
        """The files that are here, as paths inside the repository."""
        files = (file for file in self.folder.rglob("*") if file.is_file())
        return [file.relative_to(self.folder).as_posix() for file in files]


def fetch_snapshot(
    repo_id: str,
    *,
    kind: Kind,
    revision: str | None,
    token: str | bool | None,
    choose: Callable[[Mapping[str, RemoteFile]], Sequence[str]],
    ignore: Sequence[str] = (),
    elsewhere: str = MODEL_ELSEWHERE,
) -> Snapshot:
    """Fetches those files of a repository that match a pattern; offline, takes them from the cache.

    Args:
        repo_id: `owner/name`.
        kind: What sort of repository it is.
        revision: Branch, tag or commit; None for the main branch.
        token: Hub token, None for the stored one, False for none at all.
        choose: Told what there is (nothing when the Hub is not reached), gives patterns of what to
            fetch; raises to refuse it.
        ignore: Patterns of files to leave all the same.
        elsewhere: What to do without the Hub, for the error.

    Raises:
        InputError: unknown repository or revision, or a token that cannot be one.
        UnavailableError: gated, forbidden, or unreachable and not cached.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    token = checked_token(token)
    with hub_errors(repo_id, revision, elsewhere=elsewhere, kind=NAMES[kind]):
        listing: dict[str, RemoteFile] = {}
        reachable, commit = True, None
        try:
            api = HfApi(token=token)
            ask = api.model_info if kind == "model" else api.dataset_info
            info = ask(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
        except HfHubHTTPError:
            raise
        except no_answer():
            reachable = False  # what is in the cache then has to do
        else:
            listing = {
                sibling.rfilename: RemoteFile(
                    sibling.size or 0, sibling.lfs.sha256 if sibling.lfs else None
                )
                for sibling in info.siblings or []
            }
            commit = info.sha
        patterns = list(choose(listing))

        def fetch(at: str | None) -> Path:
            return Path(
                snapshot_download(
                    repo_id,
                    repo_type=kind,
                    revision=at,
                    token=token,
                    allow_patterns=patterns,
                    ignore_patterns=list(ignore) or None,
                    local_files_only=not reachable,
                )
            )

        folder = fetch(revision)  # by its name: the cache then knows the name when offline
        if commit is not None and folder.name != commit:  # somebody has pushed in between
            folder = fetch(commit)
    return Snapshot(folder, folder.name, listing)


NAMES: dict[Kind, str] = {"model": "model", "dataset": "data set"}
"""What people call each kind."""


def matches(file: str, patterns: Iterable[str]) -> bool:
    """Whether a file's path matches one of the patterns."""
    return any(fnmatch(file, pattern) for pattern in patterns)


def checked_token(token: str | bool | None) -> str | bool | None:
    """The token without the line break that files end with.

    Raises:
        InputError: it cannot be sent; the error that the client would raise quotes it.
    """
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise InputError("The Hub token is empty or has spaces or odd characters; check it.")
    return token


def silence_downloads() -> None:
    """Turns the progress bars of downloads off for this process."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


def blob_sha256(file: Path) -> str | None:
    """sha256 of a large file in the Hub's cache, which stores it under that name; else None.

    Links elsewhere are not believed: whoever made the folder could have named them so.
    """
    from huggingface_hub import constants

    blob = file.resolve()
    cache = Path(constants.HF_HUB_CACHE).resolve()
    inside = blob != file and blob.parent.name == "blobs" and blob.is_relative_to(cache)
    return blob.name if inside and re.fullmatch(r"[0-9a-f]{64}", blob.name) else None


def trim_cache(max_bytes: int) -> None:
    """Deletes the least recently used models from the Hub's cache until it is small enough."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    surplus = cache.size_on_disk - max_bytes
    for repo in sorted(cache.repos, key=lambda repo: repo.last_accessed):
        if surplus <= 0:
            return
        surplus -= repo.size_on_disk
        cache.delete_revisions(*(revision.commit_hash for revision in repo.revisions)).execute()
