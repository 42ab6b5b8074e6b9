"""Dictionaries: sparse autoencoders that take a layer's output apart into features."""

from modelassay.sae.corpus import Corpus
from modelassay.sae.dictionary import Dictionary, load_dictionary, save_dictionary
from modelassay.sae.evaluating import SaeMetrics, evaluate_sae
from modelassay.sae.finding import find_dictionary
from modelassay.sae.labelling import label_features
from modelassay.sae.labels import FeatureLabels, find_labels, load_labels, save_labels
from modelassay.sae.lookup import FeatureLabel, Labels, open_labels
from modelassay.sae.neighbours import Neighbour, nearest
from modelassay.sae.record import SAES, DictionaryRecord
from modelassay.sae.releases import Release, list_releases
from modelassay.sae.training import Settings, train_sae

__all__ = [
    "SAES",
    "Corpus",
    "Dictionary",
    "DictionaryRecord",
    "FeatureLabel",
    "FeatureLabels",
    "Labels",
    "Neighbour",
    "Release",
    "SaeMetrics",
    "Settings",
    "evaluate_sae",
    "find_dictionary",
    "find_labels",
    "label_features",
    "list_releases",
    "load_dictionary",
    "load_labels",
    "nearest",
    "open_labels",
    "save_dictionary",
    "save_labels",
    "train_sae",
]
