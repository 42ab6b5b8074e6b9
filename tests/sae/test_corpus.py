"""Texts to train on, and texts that are kept out."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sae_lens")
from modelassay.errors import InputError
from modelassay.reading.prompts import encode_prompts, render_chat
from modelassay.sae import Corpus


def test_exchanges_are_read_as_conversations_and_some_are_kept_out(tiny, tmp_path):
    model = tiny()
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(120)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = Corpus(model, [str(file)])
    train, held_out = list(corpus.train()), corpus.held_out()
    assert len(train) + len(held_out) == 120
    assert not set(train) & set(held_out)
    assert list(corpus.train()) == train
    whole = model.tokenizer(train[0], add_special_tokens=False)["input_ids"]
    prompt = encode_prompts(model, ["Question 1?"])[0].ids
    assert tuple(whole[: len(prompt)]) == prompt
    assert train[0].endswith("Answer 1.")


def test_answers_to_one_prompt_are_never_on_both_sides(tiny, tmp_path):
    rows = [{"prompt": f"Question {i % 7}?", "response": f"Answer {i}."} for i in range(120)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = Corpus(tiny(), [str(file)])
    asked = [
        {text.split("Question ")[1][0] for text in part}
        for part in (corpus.train(), corpus.held_out())
    ]
    assert asked[0]
    assert asked[1]
    assert not asked[0] & asked[1]


def test_texts_come_from_any_table_and_by_turns(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("body,n\nfour,1\nfive,2\n", encoding="utf-8")
    corpus = Corpus(tiny(), [str(tmp_path / "a.txt")])
    assert corpus.held_out() == ["one"]
    assert list(corpus.train()) == ["two", "three"]
    by_field = Corpus(tiny(), [str(tmp_path / "b.csv")], field="body")
    assert list(by_field.train()) == ["five"]
    with pytest.raises(InputError, match=r"Row 1 of .* has no text; it has body, n"):
        Corpus(tiny(), [str(tmp_path / "b.csv")]).held_out()
    with pytest.raises(InputError, match="has no text in 'words'"):
        Corpus(tiny(), [str(tmp_path / "b.csv")], field="words").held_out()


def test_conversations_are_read_as_the_model_sees_them(tiny, tmp_path):
    turns = [
        {"from": "system", "value": "s"},
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a"},
    ]
    rows = [{"conversations": turns}, {"prompt": "p", "chosen": "c", "rejected": "r"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [*Corpus(tiny(), [str(path)]).held_out(), *Corpus(tiny(), [str(path)]).train()]
    assert texts == [
        render_chat(tiny(), "q", system="s") + "a",
        render_chat(tiny(), "p") + "c",
    ]
