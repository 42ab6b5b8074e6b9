"""What goes wrong on the way to the Hub: one line each, and the exit code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from huggingface_hub import constants

from fetched import NOT_THERE, OTHER_TOKEN, SMALL, TOKEN, WEIGHTS, failure, unreachable, weights
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE
from modelassay.hub import snapshots as hub_module
from modelassay.models.finding import resolve

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub


def test_unknown_and_private(hub: LoopbackHub) -> None:
    hub.tokens.add(OTHER_TOKEN)
    commit = hub.add_repo("models", "tiny/private", SMALL, private=True, token=TOKEN)
    for name, token in (
        ("tiny/missing", None),
        ("tiny/missing", TOKEN),
        ("tiny/private", None),
        ("tiny/private", OTHER_TOKEN),
    ):
        assert failure(resolve, name, token=token) == (EXIT_BAD_INPUT, NOT_THERE.format(name))
    assert failure(resolve, "tiny/private", token="hf_tokenThatExpired") == (
        EXIT_UNAVAILABLE,
        "The Hub does not let this token use tiny/private (HTTP 401); check the token.",
    )
    assert resolve("tiny/private", token=TOKEN).commit == commit


def test_gated(hub: LoopbackHub) -> None:
    hub.tokens.add(OTHER_TOKEN)
    hub.add_repo("models", "tiny/gated", SMALL, gated=True, token=TOKEN)
    for token in (None, OTHER_TOKEN):
        assert failure(resolve, "tiny/gated", token=token) == (
            EXIT_UNAVAILABLE,
            "tiny/gated is gated: accept its terms on its Hub page, then pass --token or run"
            " `hf auth login`.",
        )
    assert weights(resolve("tiny/gated", token=TOKEN)) == WEIGHTS


def test_unreachable(hub: LoopbackHub) -> None:
    commit = hub.add_repo("models", "tiny/x", SMALL)
    branch = hub.add_commit("models", "tiny/x", SMALL | {"model.safetensors": b"b"}, "feat/x")
    hub.add_repo("models", "tiny/uncached", SMALL)
    resolve("tiny/x")
    resolve("tiny/x", revision="feat/x")
    hub.close()
    for revision, expected in ((None, commit), (commit, commit), ("feat/x", branch)):
        assert resolve("tiny/x", revision=revision).commit == expected
    assert failure(resolve, "tiny/x", revision="v1") == unreachable("tiny/x")
    assert failure(resolve, "tiny/uncached") == unreachable("tiny/uncached")


def test_offline_mode(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add_repo("models", "tiny/x", SMALL)
    resolve("tiny/x")
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("tiny/x").commit == commit
    assert failure(resolve, "tiny/uncached") == unreachable("tiny/uncached")
    assert not hub.log


def test_hub_that_never_answers(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.2)
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("/api/models")
    assert failure(resolve, "tiny/x") == unreachable("tiny/x")


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("request_", ["x.blobs=", "revision/main$", "/tree/", "HEAD", "resolve"])
def test_error_status(hub: LoopbackHub, waits: list[float], status: int, request_: str) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault(request_, status=status, body=b"<html>busy</html>")
    assert failure(resolve, "tiny/x") == (
        EXIT_UNAVAILABLE,
        f"The Hub answered with an error for tiny/x (HTTP {status}); try again later.",
    )
    # What comes after the fault is gone is whole.
    hub.faults.clear()
    assert weights(resolve("tiny/x")) == WEIGHTS


def test_passing_faults_are_retried(hub: LoopbackHub, waits: list[float]) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("HEAD .*safetensors", times=2, status=503)
    hub.add_fault("GET .*safetensors", times=1, status=429, headers={"Retry-After": "7"})
    assert weights(resolve("tiny/x")) == WEIGHTS
    assert 8 in waits  # the client adds a second


def test_what_is_no_hub(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("/api/", status=200, body=b"<html>Please sign in to the hotel's network</html>")
    assert failure(resolve, "tiny/x") == (
        EXIT_UNAVAILABLE,
        "What answers for tiny/x is not a Hub; check HF_ENDPOINT and the network.",
    )


def test_listed_file_that_is_missing(hub: LoopbackHub) -> None:
    hub.add_repo("models", "tiny/x", SMALL)
    hub.add_fault("safetensors", status=404, headers={"X-Error-Code": "EntryNotFound"})
    assert failure(resolve, "tiny/x") == (
        EXIT_BAD_INPUT,
        "tiny/x lists a file that the Hub then does not have; its upload may be incomplete.",
    )


def test_cache_that_cannot_be_written(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    hub.add_repo("models", "tiny/x", SMALL)
    code, line = failure(resolve, "tiny/x")
    assert code == EXIT_UNAVAILABLE
    assert line.startswith("tiny/x could not be fetched: ")
