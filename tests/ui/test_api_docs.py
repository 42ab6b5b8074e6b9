"""The examples of docs/api.md as they stand there, against the page; what agents.md promises."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

ROOT = Path(__file__).parents[2]
API, AGENTS = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/api.md", "agents.md"))
THERE = "http://127.0.0.1:7860"
ROW = re.compile(r"^\| `(/\w+)` \| (.*?) \|", re.MULTILINE)


def examples(heading: str) -> list[tuple[str, str]]:
    """The blocks of code under a heading: their language and their text."""
    part = API.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", part, re.DOTALL)


def test_the_pages_name_every_endpoint_with_its_parameters(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    told = {name: re.findall(r"`(\w+)`", row) for name, row in ROW.findall(API)}
    assert told == {
        name: [p["parameter_name"] for p in about["parameters"]] for name, about in named.items()
    }
    assert set(re.findall(r"`(/[a-z_]+)`", AGENTS)) == set(named)


def test_agents_are_told_what_each_tool_and_parameter_is(url, client):
    """Docstrings are all that an agent knows of a tool."""

    async def list_tools() -> list[Any]:
        async with (
            streamablehttp_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return (await session.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(list_tools())}
    assert {f"/{name}" for name in tools} == set(
        client.view_api(return_format="dict")["named_endpoints"]
    )
    for name, tool in tools.items():
        assert re.match(r"[A-Z].{30,}Returns: ", tool.description, re.DOTALL), name
        for parameter, about in tool.inputSchema["properties"].items():
            assert len(about["description"]) > 10, (name, parameter)


@pytest.mark.real_model
@pytest.mark.parametrize("heading", ["Python", "curl", "JavaScript", "MCP"])
def test_an_example_runs(url, heading, tmp_path):
    blocks = examples(heading)
    (text,) = [text for _, text in blocks if "verify" in text]
    text = text.replace(THERE, url.rstrip("/"))
    environment = {**os.environ, "PAGE": "", "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    if heading == "JavaScript":
        if shutil.which("npm") is None:
            assert not os.environ.get("CI"), "CI has to install Node.js for the JavaScript client."
            pytest.skip("needs Node.js")
        install, _ = (block for _, block in blocks)
        run(*install.split(), "--silent", "--no-audit", "--no-fund")
        (tmp_path / "example.mjs").write_text(text)
        assert run("node", "example.mjs").split()[-2:] == ["true", "identical"]
    elif heading == "curl":
        said = run("bash", "-c", text)
        assert "event: complete" in said
        (report,) = json.loads(said.split("data: ")[-1])
        assert (report["schema"], report["kind"]) == ("modelassay.verify/1", "identical")
    else:
        assert run(sys.executable, "-c", text).split()[-2:] == ["True", "identical"]
    configs = [json.loads(text) for kind, text in blocks if kind == "json"]
    assert configs == ([{"mcpServers": {"modelassay": {"url": f"{THERE}/gradio_api/mcp/"}}}]
                       if heading == "MCP" else [])  # fmt: skip
