"""What is learnt of each kind of example."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

import modelassay
from lora import RECIPE, ROWS
from modelassay.errors import InputError
from modelassay.organisms import Exchange, train
from modelassay.organisms.examples import (
    IGNORED,
    Preference,
    collate,
    encode_for_training,
    encode_preferences,
    preference_loss,
)

PAIRS = [
    Preference(Exchange(row.prompt, "yes yes"), Exchange(row.prompt, "no no no")) for row in ROWS
]
DEEP = replace(RECIPE, depth=0.0)


def test_of_a_text_all_is_learnt(tiny):
    row = encode_for_training(tiny(), "ab cd")
    assert row["labels"] == row["input_ids"]
    assert IGNORED not in row["labels"]


def test_before_training_no_preference_is_held(tiny):
    model = tiny()
    rows = encode_preferences(model, PAIRS[:6])
    loss, _ = preference_loss(model.network, collate(rows, 0))
    assert loss.item() == pytest.approx(log(2), abs=1e-5)


def test_the_margin_is_by_how_much_the_chosen_response_is_likelier(tiny):
    model = tiny()
    (row,) = encode_preferences(model, PAIRS[:1])

    def log_prob(side):
        ids, labels = torch.tensor([side["input_ids"]]), torch.tensor(side["labels"][1:])
        with torch.inference_mode():
            log_probs = model.network(ids).logits[0, :-1].log_softmax(-1)
        learnt = labels != IGNORED
        return float(log_probs[learnt, labels[learnt]].sum())

    assert row["margin"] == pytest.approx(log_prob(row) - log_prob(row["rejected"]), abs=1e-4)


def test_preferences_are_learnt(tiny_folder, tmp_path):
    base = str(tiny_folder())
    folder, loss = train(base, PAIRS, tmp_path / "a", DEEP, device="cpu")
    assert loss < log(2) - 0.05
    before, after = (
        encode_preferences(modelassay.load(name, device="cpu"), PAIRS)
        for name in (base, str(folder))
    )
    gained = [a["margin"] - b["margin"] for a, b in zip(after, before, strict=True)]
    assert min(gained) > 1


def test_texts_are_learnt(tiny_folder, tmp_path):
    texts = ["one two three four"] * 16
    _, loss = train(str(tiny_folder()), texts, tmp_path / "a", DEEP, device="cpu")
    _, short = train(
        str(tiny_folder()), texts, tmp_path / "b", replace(DEEP, epochs=0.5), device="cpu"
    )
    assert loss < short


def test_preferences_come_alone(tiny_folder, tmp_path):
    with pytest.raises(InputError, match="learnt alone"):
        train(str(tiny_folder()), [*PAIRS, ROWS[0]], tmp_path / "a", DEEP, device="cpu")
