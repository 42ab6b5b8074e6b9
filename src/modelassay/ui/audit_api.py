"""An audit's tools as endpoints of a local page, and so on the page's own MCP server.

They are there only if MODELASSAY_AUDIT_CONFIG names a config, and never on a Space, whose visitors
are strangers.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import gradio as gr

from modelassay.ui.running import QUEUE, errors_for_caller

if TYPE_CHECKING:
    from modelassay.audit import Audit, Tool

log = logging.getLogger(__name__)
VARIABLE = "MODELASSAY_AUDIT_CONFIG"


def create_audit_api() -> None:
    """Adds the endpoints inside the current `gr.Blocks`, where an audit is asked for.

    Raises:
        InputError: the config cannot be used.
    """
    where = os.environ.get(VARIABLE)
    if not where:
        return
    if os.environ.get("SPACE_ID"):
        log.warning("%s is ignored on a Space: its visitors would run the audit.", VARIABLE)
        return
    from modelassay.audit import Audit, load_config

    audit = Audit(load_config(Path(where)))
    for tool in audit.tools.values():
        gr.api(endpoint(audit, tool), api_name=tool.name, **QUEUE)


def endpoint(audit: Audit, tool: Tool) -> Callable[..., dict]:
    """A function with the tool's arguments, from which gradio makes an endpoint."""

    def call(*given: Any, **named: Any) -> dict:
        bound = signature.bind(*given, **named)
        with errors_for_caller():
            return audit.call(tool.name, dict(bound.arguments))

    hints = get_type_hints(tool.function)  # without the bounds, which the audit checks itself
    own = inspect.signature(tool.function)
    parameters = [
        each.replace(annotation=hints[name])
        for name, each in list(own.parameters.items())[1:]  # the first is the `Work`
    ]
    signature = inspect.Signature(parameters, return_annotation=dict)
    told = {name: field.description or "" for name, field in tool.arguments.model_fields.items()}
    lines = "\n".join(f"    {name}: {text}" for name, text in told.items())
    made: Any = call
    made.__name__ = tool.name
    made.__doc__ = f"{tool.description}\n\nArgs:\n{lines}" if told else tool.description
    made.__signature__ = signature
    made.__annotations__ = {each.name: each.annotation for each in parameters} | {"return": dict}
    return call
