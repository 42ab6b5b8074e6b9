"""The exchange classifier: is a prompt with its answer a safe answer, a refusal, or unsafe?"""

from modelassay.classifier.calibrating import Calibration, calibrate
from modelassay.classifier.evaluating import ClassifierMetrics, evaluate
from modelassay.classifier.model import ExchangeClassifier, load_classifier
from modelassay.classifier.training import train_classifier

__all__ = [
    "Calibration",
    "ClassifierMetrics",
    "ExchangeClassifier",
    "calibrate",
    "evaluate",
    "load_classifier",
    "train_classifier",
]
