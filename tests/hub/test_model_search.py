"""Models are found while their name is typed; what the Hub and cards say is bounded, and text."""

from __future__ import annotations

import time

import pytest

from modelassay.errors import UnavailableError
from modelassay.hub import find_models, model_search

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(autouse=True)
def nothing_remembered():
    model_search._listed.cache_clear()


def card(**values: object) -> dict[str, bytes]:
    lines = "".join(f"{key}: {value!r}\n" for key, value in values.items())
    return {"README.md": f"---\n{lines}---\n".encode()}


def test_models_are_found_with_what_one_has_to_know(hub):
    made_of = {"base_model": ["meta/llama-3", EVIL], "base_model_relation": "finetune"}
    hub.add_repo("models", "alice/llama-nice", card(**made_of), downloads=5_000_000)
    hub.add_repo("models", "meta/llama-3", {}, downloads=9_000_000, gated=True)
    hub.add_repo("models", "bob/other", {}, downloads=10**9)
    hub.add_repo("models", "eve/llama-odd", card(base_model=EVIL, base_model_relation=EVIL))
    first, second, third = find_models("  LLaMA ")
    assert (first.id, first.gated, first.bases) == ("meta/llama-3", True, ())
    assert (second.id, second.gated, second.downloads) == ("alice/llama-nice", False, 5_000_000)
    assert (second.bases, second.relation) == (("meta/llama-3",), "finetune")
    assert (third.bases, third.relation) == ((), "")
    asked = len(hub.log)
    assert find_models("LLaMA") == (first, second, third)
    assert len(hub.log) == asked  # remembered
    assert not any("authorization" in request.headers for request in hub.log)
    assert find_models("l") == find_models("") == ()
    assert find_models("nothing of the kind") == ()
    assert len(find_models("x" * 5000)) == 0
    assert max(len(request.path) for request in hub.log) < 400


def test_a_hub_that_is_down_or_slow_is_one_line_in_time(hub, monkeypatch):
    hub.add_fault("GET /api/models", status=403, times=1)
    with pytest.raises(UnavailableError, match="HTTP 403") as caught:
        find_models("llama")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(model_search, "SECONDS", 0.3)
    hub.add_fault("GET /api/models")  # never answers
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        find_models("qwen")
    assert time.monotonic() - began < 5
