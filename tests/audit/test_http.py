"""An audit's tools over HTTP: the real client, a server that is a process of its own, a token."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

pytest.importorskip("mcp")
import anyio
import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from audits import INITIALIZE, TOKEN
from modelassay.cli.main import run

ACCEPT = {"accept": "application/json, text/event-stream"}


@contextmanager
def served(*arguments, env):
    """The URL of a server, and where what it prints goes when it has ended."""
    said: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", "from modelassay.cli import main; main()", "mcp", *arguments],
        env={**os.environ, **env},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://\S+", line):
                break
        else:
            pytest.fail("".join(said))
        yield found[0], said
    finally:
        process.terminate()
        out, err = process.communicate(timeout=30)
        said += [out, err]


def test_a_client_with_the_token_is_served_and_nobody_else(config, tmp_path):
    path = config(profile="behavior_only")

    async def work(url):
        bearer = {"authorization": f"Bearer {TOKEN}"}
        async with (
            streamablehttp_client(url, headers=bearer) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            names = {tool.name for tool in (await session.list_tools()).tools}
            assert "weight_diff_summary" not in names
            asked = {"prompts": [f"My token is {TOKEN}."], "max_new_tokens": 2}
            found = await session.call_tool("query_models", asked)
            assert not found.isError
            return json.loads(found.content[0].text)

    with served("--config", str(path), "--http", "0", env={"MODELASSAY_MCP_TOKEN": TOKEN}) as (
        url,
        said,
    ):
        assert url.startswith("http://127.0.0.1:")
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {TOKEN}"},
            {"authorization": f"Bearer {TOKEN}x"},
            {"x-ft-audit-token": TOKEN[:-1]},
        ):
            for method in ("GET", "POST", "DELETE"):
                answer = httpx.request(method, url, headers={**ACCEPT, **headers}, json=INITIALIZE)
                assert answer.status_code == 401, (method, headers)
                assert answer.headers["www-authenticate"] == "Bearer"
        theirs = httpx.post(url, headers={**ACCEPT, "X-FT-Audit-Token": TOKEN}, json=INITIALIZE)
        assert theirs.status_code == 200
        rebound = {**ACCEPT, "authorization": f"Bearer {TOKEN}", "host": "evil.example"}
        assert httpx.post(url, headers=rebound, json=INITIALIZE).status_code in (403, 421)
        found = anyio.run(work, url)
    assert found["answers"][0]["prompt"] == "My token is [withheld]."
    written = [file.read_text() for file in (tmp_path / "audit").iterdir()]
    assert not any(TOKEN in text for text in (*written, *said))
    assert not any("Traceback" in text for text in said), said


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (["--http", "8000"], {}, "MODELASSAY_MCP_TOKEN"),
        (["--http", "8000", "--token-env", "MINE"], {}, "environment variable MINE"),
        (["--http", "8000"], {"FT_AUDIT_HTTP_TOKEN": "short"}, "fewer than 16"),
        (["--http", "8000"], {"MODELASSAY_MCP_TOKEN": "ä" * 20}, "ASCII"),
        (["--http", "x"], {"MODELASSAY_MCP_TOKEN": TOKEN}, "HOST:PORT"),
        (["--http", "1:99999"], {"MODELASSAY_MCP_TOKEN": TOKEN}, "HOST:PORT"),
        (["--transport", "smoke"], {}, "--transport is"),
        (["--transport", "streamable-http"], {}, "MODELASSAY_MCP_TOKEN"),
        (["--transport", "stdio", "--http", "80"], {}, "contradict"),
        (["--token-env", "MINE"], {}, "goes with --http"),
        (["--http", "no.such.host.invalid:8000"], {"MODELASSAY_MCP_TOKEN": TOKEN}, "no address"),
        (["serv"], {}, "no argument"),
        (["--profile", "ful"], {}, "--profile is"),
    ],
)
def test_what_is_wrong_is_one_line(config, monkeypatch, arguments, env, said, capfd):
    for name in ("MODELASSAY_MCP_TOKEN", "FT_AUDIT_HTTP_TOKEN", "MINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert run(["mcp", "--config", str(config()), *arguments]) == 64
    err = capfd.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not any(value in err for value in env.values())


def test_a_port_that_is_in_use_is_said_before_anything_is_opened(
    config, monkeypatch, capfd, tmp_path
):
    monkeypatch.setenv("MINE", TOKEN)
    path = config()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code = run(["mcp", "--config", str(path), "--http", str(port), "--token-env", "MINE"])
    assert code == 69
    assert f"127.0.0.1:{port} is in use" in capfd.readouterr().err
    assert not (tmp_path / "audit").exists()
