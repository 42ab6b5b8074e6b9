"""The one door to the Hugging Face Hub.

Everything is fetched as files into the Hub's own cache before it is opened, so that a model from
the Hub and a local folder take the same way from there on. Errors of the Hub become one line each.
"""

from modelassay.hub.errors import REPO_ID, hub_errors
from modelassay.hub.models import check_weight_files, fetch_model
from modelassay.hub.repositories import (
    Commit,
    commit_files,
    find_datasets,
    is_main_head,
    update_card,
)
from modelassay.hub.snapshots import (
    RemoteFile,
    Snapshot,
    blob_sha256,
    fetch_snapshot,
    silence_downloads,
    trim_cache,
)
from modelassay.hub.tables import check_table, read_dataset, read_lines, stream_dataset

__all__ = [
    "REPO_ID",
    "Commit",
    "RemoteFile",
    "Snapshot",
    "blob_sha256",
    "check_table",
    "check_weight_files",
    "commit_files",
    "fetch_model",
    "fetch_snapshot",
    "find_datasets",
    "hub_errors",
    "is_main_head",
    "read_dataset",
    "read_lines",
    "silence_downloads",
    "stream_dataset",
    "trim_cache",
    "update_card",
]
