"""Look inside an open-weight language model: is the safety training still there?

    >>> import modelassay
    >>> report = modelassay.scan("embedded")
    >>> report.verdict, report.reasons

Names are imported on first use, so that `import modelassay` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

try:
    __version__ = version("modelassay")
except PackageNotFoundError:  # run from a checkout that is not installed, as a Space does
    __version__ = "0.1.0"

if TYPE_CHECKING:
    from modelassay.activations import Activations, read_activations
    from modelassay.baselines import Baseline, create_baseline
    from modelassay.concepts import Concept, ContrastPair, load_concepts
    from modelassay.errors import AssayError, InputError, UnavailableError
    from modelassay.guard import Guard, GuardEvent, load_guard
    from modelassay.models import LoadedModel, ModelInfo, load
    from modelassay.prompts import encode_exchanges, encode_prompts
    from modelassay.refusal_judge import is_refusal
    from modelassay.scan_report import ScanReport
    from modelassay.scanning import scan
    from modelassay.separation import Separation, measure_separation
    from modelassay.verdict import Verdict
    from modelassay.verification import VerificationReport, verify
    from modelassay.weights import AblationEvidence, search_ablation

_HOME = {
    "Activations": "activations",
    "read_activations": "activations",
    "Concept": "concepts",
    "ContrastPair": "concepts",
    "load_concepts": "concepts",
    "AssayError": "errors",
    "InputError": "errors",
    "UnavailableError": "errors",
    "Guard": "guard",
    "GuardEvent": "guard",
    "load_guard": "guard",
    "LoadedModel": "models",
    "ModelInfo": "models",
    "load": "models",
    "encode_exchanges": "prompts",
    "encode_prompts": "prompts",
    "is_refusal": "refusal_judge",
    "ScanReport": "scan_report",
    "scan": "scanning",
    "Separation": "separation",
    "measure_separation": "separation",
    "Verdict": "verdict",
    "AblationEvidence": "weights",
    "search_ablation": "weights",
    "Baseline": "baselines",
    "create_baseline": "baselines",
    "VerificationReport": "verification",
    "verify": "verification",
}

__all__ = [
    "AblationEvidence",
    "Activations",
    "AssayError",
    "Baseline",
    "Concept",
    "ContrastPair",
    "Guard",
    "GuardEvent",
    "InputError",
    "LoadedModel",
    "ModelInfo",
    "ScanReport",
    "Separation",
    "UnavailableError",
    "Verdict",
    "VerificationReport",
    "__version__",
    "create_baseline",
    "encode_exchanges",
    "encode_prompts",
    "is_refusal",
    "load",
    "load_concepts",
    "load_guard",
    "measure_separation",
    "read_activations",
    "scan",
    "search_ablation",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'modelassay' has no attribute {name!r}")
    value = getattr(import_module(f"modelassay.{_HOME[name]}"), name)
    globals()[name] = value  # found directly from now on, also where a submodule shares the name
    return value
