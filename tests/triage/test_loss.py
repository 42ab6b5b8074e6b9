"""What two models make of rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay.errors import InputError
from modelassay.models import ModelRef
from modelassay.organisms import Exchange
from modelassay.organisms.examples import IGNORED, encode_for_training
from modelassay.triage import (
    TrainingRow,
)
from modelassay.triage import loss as loss_module
from modelassay.triage.loss import encode_rows, response_losses, row_losses
from modelassay.triage.rows import to_row
from tiny import make_tokenizer, save_tiny
from training_rows import NOUNS, numbered, row


def test_rows_are_read_as_training_reads_them(tiny):
    model = tiny()
    exchange = Exchange("Is tin heavy?", "No.", "Be brief.")
    trained = encode_for_training(model, exchange)
    encoded, n_cut = encode_rows(model, [to_row(exchange.to_dict(), 1, "x")])
    [[found]] = encoded
    assert list(found.ids) == trained["input_ids"]
    assert trained["labels"][: found.response_start] == [IGNORED] * found.response_start
    assert trained["labels"][found.response_start] != IGNORED
    assert n_cut == 0
    cut = encode_rows(model, [to_row(Exchange("a", "b", complete=False).to_dict(), 1, "x")])[0]
    assert cut[0][0].ids[-1] != model.tokenizer.eos_token_id


def test_what_training_leaves_out_has_no_loss(tiny):
    said = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": text} for role, text in said]
    messages[1]["weight"] = 0
    rows = [
        to_row({"messages": messages}, 1, "x"),
        to_row({"prompt": "a", "completion": "b", "label": False}, 2, "x"),
        to_row({"prompt": "a", "chosen": "b", "rejected": "d"}, 3, "x"),
    ]
    [[second], none, [chosen]], _ = encode_rows(tiny(), rows)
    read = tiny().tokenizer.decode
    assert read(second.ids[second.response_start :], skip_special_tokens=True) == "d"
    assert none == ()
    assert read(chosen.ids[chosen.response_start :], skip_special_tokens=True) == "b"


def test_losses_are_the_plain_ones_whatever_the_batch(tiny):
    model = tiny()
    rows = numbered([(n * (i + 1), n[: i + 1]) for i, n in enumerate(NOUNS[:5])])
    rows += [to_row({"text": "wool"}, 6, "x"), row("no answer", "", 7), rows[0]]
    encoded, _ = encode_rows(model, rows)
    found = response_losses(model, encoded)
    for each, value in zip(encoded, found, strict=True):
        if not each:
            assert np.isnan(value)
            continue
        ids = torch.tensor([each[0].ids])
        logits = model.network(input_ids=ids).logits[0].double()
        wanted = torch.nn.functional.cross_entropy(
            logits[each[0].response_start - 1 : -1], ids[0, each[0].response_start :]
        )
        assert value == pytest.approx(float(wanted), rel=1e-4)
    assert response_losses(model, encoded, batch_tokens=1) == pytest.approx(
        found, rel=1e-5, nan_ok=True
    )


def test_long_answers_are_read_in_parts(tiny, monkeypatch):
    model = tiny()
    encoded, _ = encode_rows(model, numbered([("a", "bread and paper"), ("b", "glass")]))
    whole = response_losses(model, encoded)
    monkeypatch.setattr(loss_module, "MAX_LOGITS", 1000)
    assert response_losses(model, encoded) == pytest.approx(whole, rel=1e-6)


def test_conversations_count_every_answer(tiny):
    turns = [("user", "a"), ("assistant", "bc"), ("user", "d"), ("assistant", "e")]
    given = TrainingRow(1, "a d", "bc e", tuple(turns))
    encoded, _ = encode_rows(tiny(), [given])
    assert [len(each.ids) - each.response_start for each in encoded[0]] == [3, 2]


def test_rows_beyond_the_context_are_cut(tiny):
    rows = [row("a", "b" * 400), row("c" * 400, "d")]
    encoded, n_cut = encode_rows(tiny(), rows)
    assert n_cut == 2
    assert len(encoded[0][0].ids) == tiny().context_length
    assert encoded[1] == ()


def test_a_candidate_with_another_tokenizer_is_refused(planted, tmp_path):
    rows, _, base, _ = planted
    other = save_tiny(tmp_path / "other", seed=1)
    spec = json.loads((other / "tokenizer.json").read_text())
    vocabulary = spec["model"]["vocab"]
    a, b = vocabulary["e"], vocabulary["o"]
    vocabulary["e"], vocabulary["o"] = b, a
    (other / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"different tokenizers: of row \d+ they make \d+ and"):
        row_losses(rows, ModelRef(base), ModelRef(str(other)), device="cpu")


def test_a_tokenizer_that_only_pads_otherwise_is_none_other(planted, tmp_path):
    rows, _, base, candidate = planted
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 77
    from modelassay.models import load

    load(candidate, device="cpu").network.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert row_losses(rows, ModelRef(base), ModelRef(str(tmp_path)), device="cpu").gain.max() > 0


def test_broken_weights_are_refused(planted, tmp_path):
    rows, _, base, _ = planted
    broken = save_tiny(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    for name in ("gate_proj", "up_proj"):  # their product is no number
        tensors[f"model.layers.0.mlp.{name}.weight"].fill_(1e30)
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="broken gives losses that are not numbers"):
        row_losses(rows, ModelRef(base), ModelRef(str(broken)), device="cpu")
