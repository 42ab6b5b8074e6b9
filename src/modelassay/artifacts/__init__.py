"""Artifacts: named folders that come with modelassay, lie on this machine, or are on the Hub."""

from modelassay.artifacts.kind import Kind, slug, write_lines
from modelassay.artifacts.origin import TRUSTED, Origin
from modelassay.artifacts.store import REFERENCE, Found, Listing, Store, check_repo_id, is_folder

__all__ = [
    "REFERENCE",
    "TRUSTED",
    "Found",
    "Kind",
    "Listing",
    "Origin",
    "Store",
    "check_repo_id",
    "is_folder",
    "slug",
    "write_lines",
]
