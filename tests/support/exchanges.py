"""Made-up exchanges that a tiny classifier can learn, and what it is made of."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from modelassay.classifier.training import TrainingRecipe
from modelassay.data.labelled import LabelledExchange
from modelassay.data.labels import LABELS

WORDS = {
    "safe_compliance": ["garden", "flour", "window", "river", "train", "pencil"],
    "safe_refusal": ["sorry", "cannot", "unable", "decline"],
    "unsafe_compliance": ["zap", "zorp", "zing", "zonk"],
}


FILLER = ["the", "a", "of", "and", "then", "is", "with", "so"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def name_of(number: int) -> str:
    """A prompt unlike all others."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return " ".join(digest[i : i + 8] for i in range(0, 32, 8))


def synthetic(n: int, seed: int = 0, first: int = 0) -> list[LabelledExchange]:
    """Rows whose class shows in their words; each prompt, from number `first`, once a class."""
    draw = random.Random(seed)  # noqa: S311
    rows = []
    for i in range(n):
        label = LABELS[i % 3]
        words = [draw.choice([*WORDS[label], *FILLER]) for _ in range(draw.randrange(8, 20))]
        words[0] = draw.choice(WORDS[label])
        unsafe = label == "unsafe_compliance"
        prompt = name_of(first + i // 3)
        rows.append(LabelledExchange(prompt, " ".join(words), unsafe, label, "made up"))
    return rows


def write_rows(path: Path, rows: list[LabelledExchange], *, binary: bool = False) -> Path:
    """JSON lines of exchanges, labelled with their class or with whether they are unsafe."""
    lines = [
        {"prompt": r.prompt, "response": r.response, "label": r.unsafe if binary else r.label}
        for r in rows
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def save_tiny_bert(folder: Path) -> Path:
    vocabulary = [*SPECIAL, *FILLER, *(word for words in WORDS.values() for word in words)]
    vocabulary += [f"w{i}" for i in range(100)]
    backend = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.enable_truncation(6)  # as the real one's file asks for
    backend.enable_padding(length=6)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=96, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


RECIPE = TrainingRecipe(epochs=6, learning_rate=3e-3, max_length=48)
