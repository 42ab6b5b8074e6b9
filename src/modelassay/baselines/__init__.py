"""Baselines: measured models that others are compared with, and where they are kept."""

from modelassay.baselines.creating import create_baseline, slug
from modelassay.baselines.hub_store import pull_baseline, push_baseline, search_baselines
from modelassay.baselines.importing import import_baseline
from modelassay.baselines.record import Baseline, load_baseline, save_baseline
from modelassay.baselines.stores import (
    delete_baseline,
    find_local,
    list_baselines,
    store_baseline,
)

__all__ = [
    "Baseline",
    "create_baseline",
    "delete_baseline",
    "find_local",
    "import_baseline",
    "list_baselines",
    "load_baseline",
    "pull_baseline",
    "push_baseline",
    "save_baseline",
    "search_baselines",
    "slug",
    "store_baseline",
]
