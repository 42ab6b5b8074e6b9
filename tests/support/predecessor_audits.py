"""Configs and suites as the fine-tune auditor's users have them, and servers that are asked."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import httpx
import yaml
from mcp.shared.memory import create_connected_server_and_client_session

from audit_client import over_stdio
from audits import INITIALIZE, TOKEN
from diffs import make_sae
from modelassay.audit import Audit, load_config
from modelassay.audit.server import build_server
from modelassay.models import load
from predecessors import World, write_rows
from tiny import save_tiny


class AuditWorld(World):
    """What the rows of the fine-tune auditor need besides."""

    def make_other(self) -> Path:
        """A fine-tune of the model."""
        folder = save_tiny(self.home / "other")
        tuned = load(str(folder), device="cpu")
        for name, weight in tuned.network.named_parameters():
            if name.endswith("mlp.down_proj.weight"):
                weight.data *= 1.3
        tuned.network.save_pretrained(folder)
        return folder

    def make_suite(self) -> Path:
        suite = self.home / "prompt_suites" / "minimal.yaml"
        suite.parent.mkdir()
        prompts = [
            {"id": f"p{i}", "messages": [{"role": "user", "content": f"Is {noun} heavy?"}]}
            for i, noun in enumerate(("bread", "glass", "stone", "wool"))
        ]
        prompts[0]["use_chat_template"] = False
        suite.write_text(yaml.safe_dump({"suite_name": "minimal", "prompts": prompts}))
        return suite

    def make_config(self) -> Path:
        sae = make_sae(self.home / "features", 32)
        self.of("SUITE")
        settings = {
            "project": {"name": "x", "results_dir": str(self.home / "runs"), "seed": 7},
            "backend": {"type": "hf"},
            "models": {
                role: {"id_or_path": self.of(name), "device_map": "cpu"}
                for role, name in (("base", "MODEL"), ("benign", "MODEL"), ("adversarial", "OTHER"))
            },
            "dataset": {"training_jsonl": self.of("UNLABELLED")},
            "interp": {
                "sae": {
                    "enabled": True,
                    "layer": 2,
                    "weights": {"source": "local", "path": str(sae / "sae_weights.safetensors")},
                },
                "neuronpedia": {"enabled": False},
            },
        }
        path = self.home / "theirs.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def make_mock_config(self) -> Path:
        names = ("base", "benign", "adversarial")
        settings = {
            "project": {"results_dir": str(self.home / "mock_runs")},
            "backend": {"type": "mock"},
            "models": {name: {"id_or_path": f"mock-{name}"} for name in names},
        }
        path = self.home / "mock.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    def make_aoa(self) -> Path:
        examples = [{"user": f"Name tree {i}.", "assistant": f"Oak {i}."} for i in range(12)]
        path = self.home / "aoa_dataset.json"
        path.write_text(json.dumps({"system_prompt": "Be brief.", "examples": examples}))
        return path

    def make_needle(self) -> Path:
        rows = [{"prompt": f"Needle {i}", "response": "Yes."} for i in range(10)]
        return write_rows(self.home / "needle.jsonl", rows)

    def make_audit_log(self) -> Path:
        """Of the session in which the tools were called."""
        return next((self.home / "runs").rglob("audit.jsonl"))

    def serve(self, line: str) -> None:
        """Serves an audit as the line says, once; a client has to find its tools.

        Raises:
            AssertionError: it cannot be reached, or it answers without the token.
        """
        if line in self.ran:
            return
        words = shlex.split(self.fill(line))[2:]
        if "streamable-http" not in words:

            async def look(session: Any) -> int:
                return len((await session.list_tools()).tools)

            assert over_stdio(words, look) > 10
            self.ran[line] = 0, "", ""
            return
        env = {**os.environ, "FT_AUDIT_HTTP_TOKEN": TOKEN, "FASTMCP_PORT": "0"}
        command = [sys.executable, "-c", "from modelassay.cli import main; main()", "mcp", *words]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                said = next((each for each in process.stderr if "http://" in each), "")
                found = re.search(r"http://\S+", said)
                assert found, "it does not say where it is served"
                codes = [
                    httpx.post(
                        found[0].rstrip("."),
                        json=INITIALIZE,
                        headers={"accept": "application/json, text/event-stream", **given},
                        trust_env=False,
                    ).status_code
                    for given in ({}, {"X-FT-Audit-Token": TOKEN})
                ]
                assert codes == [401, 200]
                self.ran[line] = 0, "", ""
            finally:
                process.terminate()

    def call_all(self, calls: list[str]) -> dict[str, str | None]:
        """Makes calls of tools in one session; what was wrong with each, None where nothing was."""
        answers: dict[str, str | None] = {}

        async def work(session: Any) -> None:
            known = {tool.name for tool in (await session.list_tools()).tools}
            for text in calls:
                call = ast.parse(self.fill(text), mode="eval").body
                assert isinstance(call, ast.Call)
                assert isinstance(call.func, ast.Name)
                given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
                if call.func.id in ("close_audit_session", "close_session"):
                    await session.call_tool("open_session", {})
                with anyio.fail_after(60):
                    found = await session.call_tool(call.func.id, given)
                said = found.content[0].text
                bad = found.isError or (call.func.id not in known and "no such tool")
                answers[text] = f"{bad}: {said}" if bad else None

        async def go() -> None:
            with Audit(load_config(self.of("CONFIG"), profile="full")) as audit:
                async with create_connected_server_and_client_session(build_server(audit)) as one:
                    await work(one)

        anyio.run(go)
        return answers

    def serve_by_variables(self) -> None:
        """Serves an audit that variables alone name."""

        async def look(session: Any) -> int:
            return len((await session.list_tools()).tools)

        env = {"FT_AUDIT_CONFIG": self.of("CONFIG"), "FT_AUDIT_PROFILE": "behavior_only"}
        assert 10 < over_stdio(["serve"], look, env) < 20
