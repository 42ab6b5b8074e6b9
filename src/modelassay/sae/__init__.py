"""Dictionaries: sparse autoencoders that take a block's output apart into features."""

from modelassay.sae.corpus import Corpus
from modelassay.sae.dictionary import (
    Dictionary,
    DictionaryRecord,
    load_dictionary,
    save_dictionary,
)
from modelassay.sae.evaluating import SaeMetrics, evaluate_sae
from modelassay.sae.training import Settings, train_sae

__all__ = [
    "Corpus",
    "Dictionary",
    "DictionaryRecord",
    "SaeMetrics",
    "Settings",
    "evaluate_sae",
    "load_dictionary",
    "save_dictionary",
    "train_sae",
]
