"""Puts the tabs together and launches the page."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from modelassay.ui.artifacts_tab import create_artifacts_tab
from modelassay.ui.audit_api import create_audit_api
from modelassay.ui.chat_tab import create_chat_tab
from modelassay.ui.closed import Closed
from modelassay.ui.diff_tab import create_diff_tab
from modelassay.ui.limits import Limits
from modelassay.ui.login import create_login
from modelassay.ui.mechanism_tab import create_mechanism_tab
from modelassay.ui.scan_tab import create_scan_tab
from modelassay.ui.verify_tab import create_verify_tab

INTRO = """# modelassay
Anyone can strip the safety training out of an open-weight model and upload it again under a
friendly name. This page looks inside the weights and the activations, and says what it found and
how sure it is."""
THEME = gr.themes.Soft(primary_hue="blue", neutral_hue="slate")
MOST_WAITING = 60
CHEAP_AT_ONCE = 8
"""Requests of one kind that are answered at a time, where nothing else is said."""
THREADS = 100
"""Of the server: those who wait for a run have one each, and must not use them up."""
FILE_LIFETIME = 3600  # seconds that a report stays available for download


def build_app() -> gr.Blocks:
    """The page with all its tabs and endpoints."""
    with gr.Blocks(title="modelassay", delete_cache=(FILE_LIFETIME, FILE_LIFETIME)) as demo:
        gr.Markdown(INTRO)
        create_login()
        with gr.Tab("Scan"):
            create_scan_tab()
        with gr.Tab("Verify"):
            create_verify_tab()
        with gr.Tab("Diff"):
            create_diff_tab()
        with gr.Tab("Guarded chat"):
            create_chat_tab()
        with gr.Tab("Mechanism"):
            create_mechanism_tab()
        with gr.Tab("Artifacts"):
            create_artifacts_tab()
        create_audit_api()
    # Runs have a line of their own (see `ui.runs`); here what is cheap must never stand behind one.
    return demo.queue(max_size=MOST_WAITING, default_concurrency_limit=CHEAP_AT_ONCE)


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Launches the page; serves MCP as well when `gradio[mcp]` is installed."""
    options.setdefault("mcp_server", importlib.util.find_spec("mcp") is not None)
    options.setdefault("run_history", False)  # else a browser keeps prompts
    # uvicorn believes what this machine says of others' addresses, unless it is told not to.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    options.setdefault("app_kwargs", {"middleware": [Middleware(Limits), Middleware(Closed)]})
    options.setdefault("max_threads", THREADS)
    return demo.launch(theme=THEME, max_file_size="5mb", **options)
