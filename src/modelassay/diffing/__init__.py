"""What a fine-tune changed, and whether a benign one would have."""

from modelassay.diffing.calibration import Calibration
from modelassay.diffing.comparing import Depth, diff
from modelassay.diffing.report import DiffReport
from modelassay.diffing.sides import BaseSide, read_base
from modelassay.diffing.suites import Suite, default_suite, load_suite
from modelassay.diffing.verdict import DiffVerdict
from modelassay.diffing.weights import MatrixChange, WeightDiff, diff_weights

__all__ = [
    "BaseSide",
    "Calibration",
    "Depth",
    "DiffReport",
    "DiffVerdict",
    "MatrixChange",
    "Suite",
    "WeightDiff",
    "default_suite",
    "diff",
    "diff_weights",
    "load_suite",
    "read_base",
]
