"""What a fine-tune changed, and whether a benign one would have."""

from modelassay.diff.calibration import CALIBRATIONS, Calibration
from modelassay.diff.comparing import Depth, diff
from modelassay.diff.reading import BaseReading, read_base
from modelassay.diff.report import DiffReport
from modelassay.diff.suites import Suite, default_suite, load_suite
from modelassay.diff.verdict import DiffVerdict
from modelassay.diff.weights import MatrixChange, WeightDiff, diff_weights

__all__ = [
    "CALIBRATIONS",
    "BaseReading",
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
