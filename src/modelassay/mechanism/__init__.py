"""Why does a model refuse? The parts that carry it, found by changing them."""

from modelassay.mechanism.circuit import find_circuit
from modelassay.mechanism.report import CircuitReport

__all__ = ["CircuitReport", "find_circuit"]
