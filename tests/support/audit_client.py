"""A client of an audit's server, as agents are: over MCP, against a process of its own."""

from __future__ import annotations

import json
import os
import sys

import anyio
from mcp import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client


def over_stdio(arguments, work, env=None):
    """Runs `work(session)` against a server that is a process of its own."""

    async def go():
        server = StdioServerParameters(
            command=sys.executable,
            args=["-c", "from modelassay.cli import main; main()", "mcp", *arguments],
            env={**os.environ, **(env or {})},
        )
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            return await work(session)

    return anyio.run(go)


async def ask(session, tool, **arguments):
    """The result of a tool that must succeed."""
    found = await session.call_tool(tool, arguments)
    text = found.content[0].text
    assert not found.isError, text
    assert json.loads(text) == found.structuredContent
    return found.structuredContent


async def refused(session, tool, **arguments):
    """The one line of a tool that must not."""
    found = await session.call_tool(tool, arguments)
    assert found.isError
    text = found.content[0].text
    assert "\n" not in text
    return text
