"""Endpoints: how long they are waited for."""

from __future__ import annotations

from modelassay.hub.endpoint import LONGEST_WAIT, waiting_time


def test_waiting():
    assert waiting_time(0, "3") == 3
    assert waiting_time(0, "100000") == LONGEST_WAIT
    assert waiting_time(0, "Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert 2 <= waiting_time(2, "soon") <= 4
    assert waiting_time(50, None) <= LONGEST_WAIT
