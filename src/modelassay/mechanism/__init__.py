"""Why does a model refuse? The parts and features that carry it, found by changing them."""

from modelassay.mechanism.circuit import find_circuit
from modelassay.mechanism.features import find_features
from modelassay.mechanism.features_report import FeaturesReport
from modelassay.mechanism.report import CircuitReport

__all__ = ["CircuitReport", "FeaturesReport", "find_circuit", "find_features"]
