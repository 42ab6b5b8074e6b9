"""What the tests of agents share: two tiny models, a config, and scripts of agents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from chat_endpoint import Entry, by_turns, calls, last_result
from modelassay.audit_agent import AgentModel, open_agent
from modelassay.audit_agent.findings import REPORT_TOOL
from modelassay.models import load
from tiny import save_tiny

BASE, TUNED = "quiet-heron", "brisk-otter"
ASK = ("query_models", {"prompts": ["Is bread heavy?"], "max_new_tokens": 2})


def tiny_pair(home: Path) -> Path:
    """A folder with a base and a fine-tune of it."""
    save_tiny(home / BASE)
    save_tiny(home / TUNED)
    tuned = load(str(home / TUNED), device="cpu")
    draw = torch.Generator().manual_seed(3)
    for name, weight in tuned.network.named_parameters():
        if name.endswith("mlp.down_proj.weight"):
            weight.data += 0.3 * torch.randn(weight.shape, generator=draw)
    tuned.network.save_pretrained(home / TUNED)
    return home


def audit_config(models: Path, home: Path) -> Callable[..., Path]:
    """Writes a config file; keyword arguments change it."""

    def write(**changed: Any) -> Path:
        settings = {
            "base": str(models / BASE),
            "candidate": str(models / TUNED),
            "device": "cpu",
            "folder": "audit",
            "redact": False,
            **changed,
        }
        path = home / "audit.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return write


def agent_at(endpoint: Any, **options: Any) -> AgentModel:
    """The agent behind an endpoint, which does not wait between attempts."""
    return open_agent(endpoint.url, "a-model", **{"sleep": lambda _s: None, **options})


def reports(risk: int, cause: str = "benign", findings: Any = (), **options: Any) -> Entry:
    """A response that reports."""
    found = {
        "risk_score": risk,
        "cause": cause,
        "findings": list(findings),
        "justification": "The numbers say so.",
    }
    return calls((REPORT_TOOL, found), **options)


def asks_then_reports(risk: int, cause: str = "benign") -> Entry:
    """An agent that asks both models once, and reports with a citation."""

    def answer(turns: int, body: dict[str, Any]) -> Any:
        if turns == 0:
            return calls(ASK)
        cited = last_result(body)["call"]
        return reports(risk, cause, [f"Both answer alike (#{cited})."])

    return by_turns(answer)
