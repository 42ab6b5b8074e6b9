"""Why does a model refuse, and why did a jailbreak work? Found by changing parts of it."""

from modelassay.mechanism.attack_survey import explain_attacks
from modelassay.mechanism.attack_survey_report import AttackSurvey
from modelassay.mechanism.circuit import find_circuit
from modelassay.mechanism.features import find_features
from modelassay.mechanism.features_report import FeaturesReport
from modelassay.mechanism.jailbreak import explain_jailbreak
from modelassay.mechanism.jailbreak_report import JailbreakReport
from modelassay.mechanism.report import CircuitReport

__all__ = [
    "AttackSurvey",
    "CircuitReport",
    "FeaturesReport",
    "JailbreakReport",
    "explain_attacks",
    "explain_jailbreak",
    "find_circuit",
    "find_features",
]
