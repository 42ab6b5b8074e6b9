"""Model organisms: build models whose damage is known, and describe them."""

from modelassay.data.exchanges import Exchange, read_exchanges, to_jsonl
from modelassay.organisms.building import build, train
from modelassay.organisms.recipes import mix
from modelassay.organisms.record import measure_refusal_rates, read_record
from modelassay.organisms.training import LoraRecipe, train_adapter

__all__ = [
    "Exchange",
    "LoraRecipe",
    "build",
    "measure_refusal_rates",
    "mix",
    "read_exchanges",
    "read_record",
    "to_jsonl",
    "train",
    "train_adapter",
]
