"""Dictionaries: sparse autoencoders that take a block's output apart into features."""

from modelassay.sae.corpus import Corpus
from modelassay.sae.dictionary import Dictionary, load_dictionary, save_dictionary
from modelassay.sae.evaluating import SaeMetrics, evaluate_sae
from modelassay.sae.finding import find_dictionary, list_dictionaries
from modelassay.sae.publishing import push_dictionary
from modelassay.sae.record import DictionaryRecord
from modelassay.sae.releases import Release, list_releases
from modelassay.sae.training import Settings, train_sae

__all__ = [
    "Corpus",
    "Dictionary",
    "DictionaryRecord",
    "Release",
    "SaeMetrics",
    "Settings",
    "evaluate_sae",
    "find_dictionary",
    "list_dictionaries",
    "list_releases",
    "load_dictionary",
    "push_dictionary",
    "save_dictionary",
    "train_sae",
]
