"""Is this the model it claims to be? Comparison of a model with a baseline, a measured model."""

from modelassay.artifacts import slug
from modelassay.verify.baseline import (
    BASELINES,
    Baseline,
    load_baseline,
    push_baseline,
    save_baseline,
    store_baseline,
)
from modelassay.verify.creating import create_baseline, import_baseline
from modelassay.verify.report import Kind, VerificationReport
from modelassay.verify.verifying import conclude, find_baseline, verify, verify_files

__all__ = [
    "BASELINES",
    "Baseline",
    "Kind",
    "VerificationReport",
    "conclude",
    "create_baseline",
    "find_baseline",
    "import_baseline",
    "load_baseline",
    "push_baseline",
    "save_baseline",
    "slug",
    "store_baseline",
    "verify",
    "verify_files",
]
