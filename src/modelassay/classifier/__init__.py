"""The exchange classifier: is a prompt with its response a safe response, a refusal, or unsafe?"""

from modelassay.classifier.evaluating import ThresholdFit, evaluate, fit_threshold
from modelassay.classifier.model import ExchangeClassifier, load_classifier
from modelassay.classifier.record import CLASSIFIERS, ClassifierMetrics, find_classifier
from modelassay.classifier.training import train_classifier

__all__ = [
    "CLASSIFIERS",
    "ClassifierMetrics",
    "ExchangeClassifier",
    "ThresholdFit",
    "evaluate",
    "find_classifier",
    "fit_threshold",
    "load_classifier",
    "train_classifier",
]
