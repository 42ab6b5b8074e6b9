"""Versions, time and hashes are written the same way everywhere."""

from __future__ import annotations

import hashlib
import json
import re

import modelassay
from modelassay.files.provenance import installed_versions, json_hash, text_hash, utc_now
from modelassay.progress import phase_of, silent


def test_time_is_utc_in_one_format():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", utc_now())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", utc_now("milliseconds"))


def test_versions_know_a_checkout_and_leave_out_what_is_missing():
    assert list(installed_versions()) == ["modelassay", "torch", "transformers", "numpy"]
    assert installed_versions("modelassay", "no-such-package-here") == {
        "modelassay": modelassay.__version__
    }


def test_hashes_are_those_of_published_records():
    value = {"b": [1, "é"], "a": None}
    as_json = json.dumps(value, sort_keys=True).encode()
    assert json_hash(value) == hashlib.sha256(as_json).hexdigest()
    compact = '{"a":null,"b":[1,"é"]}'.encode()
    assert json_hash(value, compact=True) == hashlib.sha256(compact).hexdigest()
    assert text_hash("a\ud800") == text_hash("a?")


def test_a_phase_tells_the_whole_of_itself():
    told = []
    phase_of(lambda *each: told.append(each), "reading")(1, 2)
    phase_of(silent, "reading")(1, 2)
    assert told == [("reading", 1, 2)]
