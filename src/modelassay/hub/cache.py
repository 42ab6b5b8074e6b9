"""The Hub's cache on this machine, and its progress bars."""

from __future__ import annotations


def silence_downloads() -> None:
    """Turns the progress bars of downloads off for this process."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()


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
