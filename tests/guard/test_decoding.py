"""Tokens become text as they come."""

from __future__ import annotations

import random

import pytest

from guarding import OPEN, text_of
from modelassay.errors import InputError
from modelassay.guard import Guard, Sampling
from modelassay.guard.decoding import WINDOW, IncrementalText, StopStrings, decode
from modelassay.reading.generation import end_tokens
from modelassay.reading.prompts import encode_chat
from tiny import probe_for
from tokenizers_of_kinds import (
    CLEANED,
    KINDS,
    byte_level,
    llama_2,
    sentencepiece_in_python,
    wordpiece,
)


@pytest.mark.parametrize(
    "text", ["hello world", "你好，世界", "naïve café 👩‍👩‍👧 ok", "  two  spaces\n\ttab", "🙂"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_join_to_the_whole(text, kind):
    tokenizer = KINDS[kind]()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokens_stream_to_what_they_decode_to_at_once(kind):
    assert_streams_whole(KINDS[kind]())


def test_any_tokens_of_sentencepiece_in_python_stream_to_what_they_decode_to(tmp_path):
    assert_streams_whole(sentencepiece_in_python(tmp_path))


@pytest.mark.real_model
def test_any_tokens_of_a_real_tokenizer_stream_to_what_they_decode_to(embedded):
    assert_streams_whole(embedded.tokenizer)


def streamed(tokenizer, ids):
    """The text of the pieces, each of which the whole text must begin with."""
    whole, pieces, shown = (
        tokenizer.decode(ids, skip_special_tokens=True),
        IncrementalText(tokenizer),
        "",
    )
    for token in ids:
        shown += pieces.push(token)
        assert whole.startswith(shown), ids
    return shown + pieces.flush()


def assert_streams_whole(tokenizer):
    draw = random.Random(0)  # noqa: S311 (repeatable on purpose)
    for _ in range(60):
        ids = [draw.randrange(len(tokenizer)) for _ in range(draw.randint(1, 90))]
        assert streamed(tokenizer, ids) == tokenizer.decode(ids, skip_special_tokens=True), ids


def test_a_special_token_leaves_the_next_words_space():
    tokenizer = llama_2()
    hello, again, turn = tokenizer.convert_tokens_to_ids(["▁hello", "▁world", "<|turn|>"])
    ids = [hello, tokenizer.bos_token_id, again, turn, again]
    assert streamed(tokenizer, ids) == "hello world world"


def test_a_run_of_byte_tokens_is_shown_when_its_end_is_known():
    tokenizer = llama_2()
    ids = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "你👩".encode()]
    pieces = IncrementalText(tokenizer)
    assert [pieces.push(token) for token in ids] == [""] * len(ids)
    assert pieces.push(tokenizer.convert_tokens_to_ids("hello")) == "你👩hello"
    assert streamed(tokenizer, ids[:4]) == tokenizer.decode(ids[:4]) == "\ufffd" * 4


def test_a_clean_up_of_spaces_holds_back_what_it_may_still_join():
    tokenizer = wordpiece(cleanup=False, **CLEANED)
    pieces = IncrementalText(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["it", "do", "n", "'", "t", ",", "s"])
    assert [pieces.push(token) for token in ids] == ["", "it", " do", "", "", "n't", ""]
    assert pieces.flush() == ", s"


def test_a_long_response_costs_no_more_for_a_token_than_a_short_one(monkeypatch):
    tokenizer = byte_level()
    read = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **how: read.append(len(ids)) or decode(ids, **how)
    )
    for ids in (
        tokenizer("hello . " * 300)["input_ids"],
        [tokenizer.convert_tokens_to_ids("Ġ")] * 900,
    ):
        pieces = IncrementalText(tokenizer)
        "".join(pieces.push(token) for token in ids)
    assert max(read) <= 2 * WINDOW


def test_an_unfinished_character_is_shown_at_the_end_alone(tiny):
    ids = tiny().tokenizer("ab🙂", add_special_tokens=False)["input_ids"][:-1]
    pieces = IncrementalText(tiny().tokenizer)
    assert "".join(pieces.push(i) for i in ids) == "ab"
    assert pieces.flush() == "\ufffd"


@pytest.mark.parametrize("guarded", [True, False])
def test_the_guard_shows_what_decoding_at_once_gives(tiny, guarded):
    model = tiny()
    sampling = Sampling(temperature=2.0, seed=4)
    steps = decode(model, encode_chat(model, [{"role": "user", "content": "Hi"}]), (), sampling)
    ids = [next(steps).token for _ in range(40)]
    guard = Guard(model, probe_for(model))
    events = guard.stream(
        "Hi", max_new_tokens=40, sampling=sampling, thresholds=OPEN, guarded=guarded
    )
    shown = text_of(events)
    assert not set(ids) & set(end_tokens(model))
    assert shown == model.tokenizer.decode(ids, skip_special_tokens=True)


def test_stop_strings_are_never_shown_in_part():
    for cut in range(1, 8):
        stops = StopStrings(["\n\nUser:", "END"])
        whole = "Some text.\n\nUser: more"
        parts = [stops.push(whole[i : i + cut]) for i in range(0, len(whole), cut)]
        assert "".join(parts) == "Some text."
        assert stops.found
    stops = StopStrings(["END"])
    assert stops.push("an EN") + stops.push("D") == "an "
    stops = StopStrings(["END"])
    assert stops.push("an EN") + stops.flush() == "an EN"


def test_sampling_is_repeatable_and_bounded(tiny):
    guard = Guard(tiny(), probe_for(tiny()))

    def response(**settings):
        sampling = Sampling(temperature=1.5, **settings)
        return text_of(guard.stream("Hi", max_new_tokens=15, sampling=sampling, thresholds=OPEN))

    assert response(seed=1) == response(seed=1) != response(seed=2)
    greedy = text_of(guard.stream("Hi", max_new_tokens=15, thresholds=OPEN))
    assert response(seed=3, top_k=1) == greedy
    for bad in ({"top_p": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}):
        with pytest.raises(InputError):
            Sampling(**bad)
