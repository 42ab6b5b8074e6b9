"""The Hub's cache on this machine, and its progress bars."""

from __future__ import annotations

import re
from pathlib import Path


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
