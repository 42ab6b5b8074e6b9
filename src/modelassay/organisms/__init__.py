"""Model organisms: build models whose damage is known, and describe them."""

from modelassay.data.exchanges import Exchange as Exchange
from modelassay.data.exchanges import read_exchanges as read_exchanges
from modelassay.data.exchanges import to_jsonl as to_jsonl
from modelassay.organisms.building import build as build
from modelassay.organisms.building import train as train
from modelassay.organisms.recipes import mix as mix
from modelassay.organisms.record import measure_refusal_rates as measure_refusal_rates
from modelassay.organisms.record import read_record as read_record
from modelassay.organisms.sampling import Sample as Sample
from modelassay.organisms.sampling import sample_exchanges as sample_exchanges
from modelassay.organisms.training import LoraRecipe as LoraRecipe
from modelassay.organisms.training import train_adapter as train_adapter
