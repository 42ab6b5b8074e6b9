"""Explanations are fetched in batches, kept, and asked for again when they do not come."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sae_lens")
from labelled import NEURONPEDIA, ON_X
from modelassay.errors import InputError, UnavailableError
from modelassay.sae.neuronpedia import fetch_explanations


def test_explanations_are_fetched_in_batches_and_kept(neuronpedia):
    found = fetch_explanations(NEURONPEDIA, [*range(60), ON_X])
    assert found == {ON_X: "the letter x", 2: "a secret thing\\u202e"}
    assert [len(body) for body in neuronpedia.asked] == [50, 10]
    assert neuronpedia.asked[0][3] == {"modelId": "tiny", "layer": "0-planted", "index": 3}
    assert fetch_explanations(NEURONPEDIA, [ON_X, 7]) == {ON_X: "the letter x"}
    assert len(neuronpedia.asked) == 2  # from the cache, what has none as well


def test_busy_and_broken_answers_are_asked_for_again(neuronpedia, monkeypatch):
    monkeypatch.setattr("modelassay.hub.endpoint.LONGEST_WAIT", 0.01)
    neuronpedia.planned = [
        (429, b"", {"Retry-After": "0"}),
        (500, b"oops", {}),
        (200, b"{not json", {}),
    ]
    assert fetch_explanations(NEURONPEDIA, [ON_X]) == {ON_X: "the letter x"}
    assert len(neuronpedia.asked) == 4


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ((503, b"", {}), "HTTP 503"),
        ((200, b'{"message": "no list"}', {}), "makes no sense"),
        ((400, b"", {}), "does not take this request"),
        ((302, b"", {"Location": "http://elsewhere"}), "does not take this request"),
        ((200, b"[" + b" " * 40_000_000 + b"]", {}), "too long"),
    ],
)
def test_answers_that_do_not_come_are_one_line(neuronpedia, response, message, monkeypatch):
    monkeypatch.setattr("modelassay.hub.endpoint.LONGEST_WAIT", 0.01)
    neuronpedia.planned = [response] * 4
    with pytest.raises(UnavailableError, match=message) as error:
        fetch_explanations(NEURONPEDIA, [ON_X])
    assert "\n" not in str(error.value)


def test_odd_rows_are_left_out(neuronpedia):
    rows = [
        None,
        {"index": "3", "layer": "9-other", "explanations": [{"description": "not ours"}]},
        {"index": "2", "modelId": "big", "explanations": [{"description": "another model's"}]},
        {"index": True, "explanations": [{"description": "no number"}]},
        {"index": "-1", "explanations": [{"description": "no feature"}]},
        {"index": 4, "explanations": "none"},
        {"index": 5, "explanations": [None, {"description": 7}, {"description": "fine"}]},
        {"index": 6, "explanations": [{"description": "x" * 9999}]},
    ]
    neuronpedia.planned = [(200, json.dumps(rows).encode(), {})]
    found = fetch_explanations(NEURONPEDIA, range(10))
    assert found == {5: "fine", 6: "x" * 300}


@pytest.mark.parametrize("address", ["ftp://x", "http://a:b@c", "http://c/?q=1", "nonsense"])
def test_addresses_that_cannot_be_are_said(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    monkeypatch.setenv("NEURONPEDIA_URL", address)
    with pytest.raises(InputError, match="NEURONPEDIA_URL"):
        fetch_explanations(NEURONPEDIA, [1])
    with pytest.raises(InputError, match="is not an id"):
        fetch_explanations("../../etc", [1])
