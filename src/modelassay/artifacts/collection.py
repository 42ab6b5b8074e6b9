"""All artifacts of a kind that a data set on the Hub holds, by their records alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from modelassay.artifacts.kind import R
from modelassay.artifacts.origin import Origin
from modelassay.artifacts.store import Found, Store, check_repo_id
from modelassay.errors import InputError
from modelassay.files.records import NAME
from modelassay.hub import RemoteFile, fetch_snapshot

MOST = 50


def all_in(
    store: Store[R], repo_id: str, *, token: str | bool | None = None, most: int = MOST
) -> tuple[Found[R], ...]:
    """Records of what a data set holds of a kind, pinned to its commit.

    Only the records are fetched, the first `most` by name; damaged and too large ones are left out.

    Args:
        store: Of the kind.
        repo_id: Data set, `owner/name`.
        token: Hub token, None for the stored one, False for none at all.
        most: How many at most.

    Raises:
        InputError: no such data set.
        UnavailableError: the Hub cannot be reached and it is not in the cache.
    """
    check_repo_id(repo_id)
    kind = store.kind
    pattern = re.compile(rf"{kind.folder}/({NAME})/{re.escape(kind.record_file)}")

    def choose(listed: Mapping[str, RemoteFile]) -> list[str]:
        small = (name for name, file in listed.items() if file.size <= kind.files[kind.record_file])
        return sorted(filter(pattern.fullmatch, small))[:most] or [f"{kind.folder}/-"]

    snapshot = fetch_snapshot(
        repo_id, kind="dataset", revision=None, token=token, choose=choose, elsewhere=kind.elsewhere
    )
    author = repo_id.partition("/")[0]
    found = []
    for folder in sorted((snapshot.folder / kind.folder).glob("*"))[:most]:
        try:
            each = store.open(folder / kind.record_file)
        except InputError:
            continue
        if each.name == folder.name:
            origin = Origin(f"{repo_id}:{each.name}", "hub", author, snapshot.commit)
            found.append(replace(each, origin=origin))
    return tuple(found)
