"""Files of one commit and the cache that they come into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants, scan_cache_dir

from fetched import SMALL, TOKEN, WEIGHTS, failure, sha256, unreachable, weights
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE
from modelassay.hub import trim_cache
from modelassay.models import load
from modelassay.models.finding import resolve

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


def test_revisions(hub: LoopbackHub) -> None:
    first = hub.add_repo("models", "tiny/two", SMALL)
    second = hub.add_commit("models", "tiny/two", SMALL | {"model.safetensors": b"v2"})
    branch = hub.add_commit("models", "tiny/two", SMALL | {"model.safetensors": b"b"}, "feat/x")
    wanted = {None: (second, b"v2"), first: (first, WEIGHTS), "feat/x": (branch, b"b")}
    for revision, (commit, data) in wanted.items():
        source = resolve("tiny/two", revision=revision)
        assert (source.commit, weights(source)) == (commit, data)
    code, line = failure(resolve, "tiny/two", revision="no-such")
    assert code == EXIT_BAD_INPUT
    assert line == (
        "tiny/two has no revision 'no-such'; give a branch, a tag or a commit that exists."
    )
    assert failure(resolve, "tiny/two", revision="f" * 40)[0] == EXIT_BAD_INPUT


@pytest.mark.parametrize("token", ["hf_token\nx", "hf_token x", "hf_tokenÄ", "", " "])
def test_token_that_cannot_be_sent(hub: LoopbackHub, token: str) -> None:
    hub.add_repo("models", "tiny/small", SMALL)
    assert failure(resolve, "tiny/small", token=token) == (
        EXIT_BAD_INPUT,
        "The Hub token is empty or has spaces or odd characters; check it.",
    )
    assert not hub.log


def test_token_from_a_file_with_a_newline(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/private", SMALL, private=True, token=TOKEN)
    assert weights(resolve("tiny/private", token=f"{TOKEN}\n")) == WEIGHTS


def test_no_token_is_sent_when_told_so(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, llama: dict[str, bytes]
) -> None:
    hub.add_repo("models", "tiny/llama", llama, token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    load("tiny/llama", device="cpu", token=False)
    assert hub.log
    assert not any("authorization" in request.headers for request in hub.log)
    # The other way round: the stored token is used where none is named.
    hub.log.clear()
    resolve("tiny/llama")
    assert {request.headers.get("authorization") for request in hub.log} == {f"Bearer {TOKEN}"}


def test_download_cut_and_resumed(
    hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", times=2, cut_after=20_000)
    source = resolve("tiny/x")
    assert weights(source) == WEIGHTS
    assert source.weight_files()[0].resolve().name == sha256(WEIGHTS)
    gets = [r for r in hub.log if r.method == "GET" and r.path.endswith("model.safetensors")]
    assert [request.headers.get("range") for request in gets] == [
        None,
        "bytes=16384-",
        "bytes=32768-",
    ]


@pytest.mark.parametrize("reset", [False, True])
def test_download_cut_for_good(hub: LoopbackHub, waits: list[float], reset: bool) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", cut_after=20_000, reset=reset)
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")
    # A torn download must not pass for a cached model, with the Hub or without.
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")
    hub.faults.clear()
    source = resolve("tiny/x")
    assert weights(source) == WEIGHTS
    assert source.weight_files()[0].resolve().name == sha256(WEIGHTS)


def test_torn_download_does_not_count_as_cached(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", cut_after=20_000)
    failure(resolve, "tiny/x")
    hub.close()
    code, line = failure(resolve, "tiny/x")
    # Clients before 2.0 hand out the torn snapshot, which then lacks its weights.
    assert (code, line) == unreachable("tiny/x") or line.startswith("tiny/x has no model weights")


def test_wrong_length(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("GET .*safetensors", status=200, body=b"short")
    code, line = failure(resolve, "tiny/x")
    assert code == EXIT_UNAVAILABLE
    assert line.startswith("tiny/x could not be fetched: Consistency check failed: file should be")


def cached() -> set[str]:
    return {repo.repo_id for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos}


def test_trim_cache_deletes_what_was_used_least_recently(
    hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its own default, so that no mistake in trim_cache can empty the real cache.
    default = "huggingface_hub.utils._cache_manager.HF_HUB_CACHE"
    monkeypatch.setattr(default, constants.HF_HUB_CACHE, raising=False)
    trim_cache(0)  # there is no cache yet
    for name, hours in {"tiny/new": 1, "tiny/old": 3, "tiny/middle": 2}.items():
        hub.add_repo("models", name, SMALL)
        resolve(name)
        for file in Path(constants.HF_HUB_CACHE).glob(f"models--{name.replace('/', '--')}/blobs/*"):
            seconds = 1_700_000_000 - 3600 * hours
            os.utime(file, (seconds, seconds))
    one = sum(map(len, SMALL.values()))
    trim_cache(3 * one)
    assert cached() == {"tiny/new", "tiny/middle", "tiny/old"}
    trim_cache(3 * one - 1)
    assert cached() == {"tiny/new", "tiny/middle"}
    trim_cache(one)
    assert cached() == {"tiny/new"}
    assert weights(resolve("tiny/old")) == WEIGHTS  # fetched again
    trim_cache(0)
    assert not cached()
