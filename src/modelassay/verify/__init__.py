"""Is this the model it claims to be? Comparison of a model with a baseline, a measured model."""

from modelassay.verify.baseline import Baseline, load_baseline, save_baseline
from modelassay.verify.creating import create_baseline, slug
from modelassay.verify.hub_store import pull_baseline, push_baseline, search_baselines
from modelassay.verify.importing import import_baseline
from modelassay.verify.report import Kind, VerificationReport
from modelassay.verify.stores import delete_baseline, find_local, list_baselines, store_baseline
from modelassay.verify.verifying import conclude, find_baseline, verify, verify_files

__all__ = [
    "Baseline",
    "Kind",
    "VerificationReport",
    "conclude",
    "create_baseline",
    "delete_baseline",
    "find_baseline",
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
    "verify",
    "verify_files",
]
