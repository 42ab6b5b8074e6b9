"""SAEs: sparse autoencoders that take a layer's output apart into features."""

from modelassay.sae.corpus import Corpus
from modelassay.sae.evaluating import SaeMetrics, evaluate_sae
from modelassay.sae.files import SAE, load_sae, save_sae
from modelassay.sae.finding import Release, find_sae, list_releases
from modelassay.sae.labelling import label_features
from modelassay.sae.labels import FeatureLabels, find_labels, load_labels, save_labels
from modelassay.sae.lookup import FeatureLabel, Labels, Neighbour, nearest, open_labels
from modelassay.sae.record import SAES, SAERecord
from modelassay.sae.training import Settings, train_sae

__all__ = [
    "SAE",
    "SAES",
    "Corpus",
    "FeatureLabel",
    "FeatureLabels",
    "Labels",
    "Neighbour",
    "Release",
    "SAERecord",
    "SaeMetrics",
    "Settings",
    "evaluate_sae",
    "find_labels",
    "find_sae",
    "label_features",
    "list_releases",
    "load_labels",
    "load_sae",
    "nearest",
    "open_labels",
    "save_labels",
    "save_sae",
    "train_sae",
]
