"""Logging in: gated models, publishing, pull requests; the visitor's token is theirs alone.

Gradio's own login routes against a provider on this machine, the real Hub client against a Hub on
this machine.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("gradio")

from modelassay.errors import UnavailableError
from modelassay.hub import check_access
from modelassay.report.badge import BEGIN
from modelassay.ui import login
from modelassay.ui.service import run_scan
from openid import CLIENT, openid_provider

ROOT = Path(__file__).parents[2]
TOKEN = "hf_TheVisitorsOwnToken0123456789"
WHO = "visitor"
GATED = "lab/gated"


def test_there_is_no_login_where_none_is_set_up(client, monkeypatch):
    kinds = {part["type"] for part in client.config["components"]}
    assert "loginbutton" not in kinds
    assert not login.is_offered()
    monkeypatch.setenv("OAUTH_CLIENT_ID", CLIENT)
    assert not login.is_offered()  # away from a Space everybody would be the host
    header = yaml.safe_load((ROOT / "README.md").read_text().split("---\n")[1])
    assert header["hf_oauth"] is True
    assert tuple(header["hf_oauth_scopes"]) == login.SCOPES


@pytest.fixture
def space(monkeypatch) -> Iterator[tuple[str, list[str]]]:
    """The page on a Space whose visitors can log in."""
    from gradio import oauth

    from modelassay.ui import build_app, launch

    with openid_provider(TOKEN, WHO) as (provider, asked):
        for name, value in {
            "OAUTH_CLIENT_ID": CLIENT,
            "OAUTH_CLIENT_SECRET": "of-the-space",
            "OAUTH_SCOPES": " ".join(["openid", "profile", *login.SCOPES]),
            "OPENID_PROVIDER_URL": provider,
        }.items():
            monkeypatch.setenv(name, value)
            monkeypatch.setattr(oauth, name, value)
        monkeypatch.setenv("SYSTEM", "spaces")
        monkeypatch.setenv("SPACE_ID", "someone/space")
        demo = build_app()
        _, url, _ = launch(
            demo, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", mcp_server=False
        )
        yield url, asked
        demo.close()


def log_in(url: str) -> str:
    """Goes through the login as a browser does; returns the cookie that it then has."""
    with httpx.Client() as visitor:
        sent = visitor.get(f"{url}login/huggingface")
        cookie = sent.headers["set-cookie"].partition(";")[0]
        assert "secure" in sent.headers["set-cookie"].lower()
        agreed = visitor.get(sent.headers["location"])
        back = visitor.get(agreed.headers["location"], headers={"Cookie": cookie})
        assert back.headers["location"].startswith("/")
        return back.headers["set-cookie"].partition(";")[0]


class Visitor:
    """Somebody who has the page open, and clicks."""

    def __init__(self, url: str, cookie: str = "") -> None:
        self.url, self.headers = f"{url}gradio_api/", {"Cookie": cookie} if cookie else {}
        self.config = httpx.get(f"{url}config", headers=self.headers).json()
        self.session = secrets.token_hex(6)

    def click(self, button: str, *values: Any) -> str:
        """What the page shows after a click on the first button of that name."""
        parts = {part["id"]: part["props"].get("value") for part in self.config["components"]}
        kinds = {part["id"]: part["type"] for part in self.config["components"]}
        event = next(
            event
            for event in self.config["dependencies"]
            if event["backend_fn"] and event["queue"] is not False
            for part, kind in event["targets"]
            if kind == "click" and parts.get(part) == button
        )
        given = iter(values)
        data = [None if kinds[each] == "state" else next(given) for each in event["inputs"]]
        asked = {"fn_index": event["id"], "data": data, "session_hash": self.session}
        joined = httpx.post(f"{self.url}queue/join", json=asked, headers=self.headers)
        assert joined.status_code == 200, joined.text
        lines = []
        query = {"session_hash": self.session}
        with httpx.stream(
            "GET", f"{self.url}queue/data", params=query, headers=self.headers, timeout=120
        ) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if "process_completed" in line:
                    return "\n".join(lines)
        raise AssertionError(lines[-3:])


def test_a_visitor_reads_a_gated_model_publishes_and_proposes(
    hub, space, tiny_folder, few_resamples, caplog, capfd
):
    caplog.set_level(logging.DEBUG)
    url, asked = space
    hub.add_writer(TOKEN, WHO)
    model = {path.name: path.read_bytes() for path in tiny_folder().iterdir()}
    model["README.md"] = b"---\nlicense: mit\n---\n# Gated\n"
    commit = hub.add_repo("models", GATED, model, gated=True, token=TOKEN)
    form = (GATED, "quick", "", True, False)

    stranger = Visitor(url)
    assert "is gated: log in here" in stranger.click("Scan", *form)
    assert not any("model.safetensors" in request.path for request in hub.log)

    visitor = Visitor(url, log_in(url))
    named = httpx.get(f"{url}gradio_api/info").json()["named_endpoints"]
    assert not [name for name in named if "log" in name]  # the login is no endpoint
    assert asked == [f"openid profile {' '.join(login.SCOPES)}"]
    shown = visitor.click("Scan", *form)
    assert "Done in" in shown
    written = [request for request in hub.log if request.method not in ("GET", "HEAD")]
    assert written == []  # nothing is published without being told to

    # What one visitor's token fetched is in the cache, and not for anybody else.
    assert "is gated: log in here" in stranger.click("Scan", *form)
    base = b'{"base_model_name_or_path": "%s", "peft_type": "LORA"}' % GATED.encode()
    adapter = {"adapter_config.json": base, "adapter_model.safetensors": b"x"}
    hub.add_repo("models", "any/adapter", adapter)
    with pytest.raises(UnavailableError, match="gated"):
        list(run_scan("any/adapter", "quick"))
    hub.add_fault("/api/models/", cut_after=0)
    with pytest.raises(UnavailableError, match="cannot be asked whether you may read"):
        check_access(GATED, token=False, advice="")
    hub.faults.clear()

    assert "Log in first" in stranger.click("Publish", "mine")
    assert "letters, digits" in visitor.click("Publish", "../other/data")
    said = visitor.click("Publish, and open a pull request", "mine")
    assert f"Published: <{hub.url}/datasets/{WHO}/mine>" in said
    assert f"Proposed: <{hub.url}/{GATED}/discussions/1>" in said
    data = hub.repos["datasets", f"{WHO}/mine"]
    files = data.commits[data.refs["main"]]
    assert any(name.endswith("content.json") for name in files)
    assert commit.encode() in b"".join(files.values())
    proposed = hub.repos["models", GATED]
    card = proposed.commits[proposed.refs["refs/pr/1"]]["README.md"].decode()
    assert card.startswith("---\nlicense: mit\n---\n# Gated\n")
    assert BEGIN in card
    assert proposed.refs["main"] == commit

    # The token went to the Hub and nowhere else.
    bearers = {request.headers.get("authorization") for request in hub.log}
    assert bearers <= {None, f"Bearer {TOKEN}"}
    out, err = capfd.readouterr()
    assert TOKEN not in out + err + caplog.text + shown + said
    kept = [Path(root, name) for root, _, names in os.walk(hub_cache()) for name in names]
    assert kept
    assert not any(TOKEN.encode() in path.read_bytes() for path in kept)
    assert not any(TOKEN.encode() in content for content in files.values())


def hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE
