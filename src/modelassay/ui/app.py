"""Puts the tabs together and launches the page."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from modelassay.ui import look
from modelassay.ui.about_tab import create_about_tab
from modelassay.ui.artifacts_tab import create_artifacts_tab
from modelassay.ui.audit_api import create_audit_api
from modelassay.ui.board_tab import create_board_tab
from modelassay.ui.chat_tab import create_chat_tab
from modelassay.ui.closed import Closed
from modelassay.ui.diff_tab import create_diff_tab
from modelassay.ui.limits import Limits
from modelassay.ui.login import create_login
from modelassay.ui.mechanism_tab import LINKED, create_mechanism_tab
from modelassay.ui.model_search import fill_on_choice
from modelassay.ui.running import PRIVATE
from modelassay.ui.scan_tab import create_scan_tab
from modelassay.ui.sharing import opens_linked_tab
from modelassay.ui.verify_tab import create_verify_tab

MOST_WAITING = 60
CHEAP_AT_ONCE = 8
"""Requests of one kind that are answered at a time, where nothing else is said."""
THREADS = 100
"""Of the server: those who wait for a run have one each, and must not use them up."""
TABS = {name: name for name in ("scan", "verify", "diff")} | dict.fromkeys(LINKED, "mechanism")
"""Which tab opens for what a link names."""
FILE_LIFETIME = 3600  # seconds that a report stays available for download


def build_app() -> gr.Blocks:
    """The page with all its tabs and endpoints."""
    lifetimes = (FILE_LIFETIME, FILE_LIFETIME)
    with gr.Blocks(
        title=look.TITLE,
        analytics_enabled=False,  # nobody is told that this page was started
        delete_cache=lifetimes,
        fill_width=True,
    ) as demo:
        gr.HTML(look.MASTHEAD, padding=False)
        create_login()
        # On a phone tabs stand in two lines: nothing hides behind a menu.
        with gr.Tabs(overflow_behavior="wrap") as tabs:
            with gr.Tab("Board", id="board"):
                hits = create_board_tab(demo)
            with gr.Tab("Scan", id="scan"):
                scanned = create_scan_tab()
            with gr.Tab("Verify", id="verify"):
                verified = create_verify_tab()
            with gr.Tab("Diff", id="diff"):
                compared = create_diff_tab()
            with gr.Tab("Guarded chat", id="chat"):
                create_chat_tab()
            with gr.Tab("Mechanism", id="mechanism"):
                create_mechanism_tab()
            with gr.Tab("About", id="about"):
                create_about_tab()
            with gr.Tab("Artifacts", id="artifacts"):
                create_artifacts_tab()
        create_audit_api()
        opens_linked_tab(tabs, TABS)
        chosen = fill_on_choice(hits, [scanned, verified, compared])
        chosen.then(lambda: gr.Tabs(selected="scan"), None, [tabs], **PRIVATE)
    name_tools(demo)
    # Runs have a line of their own (see `ui.runs`); here what is cheap must never stand behind one.
    return demo.queue(max_size=MOST_WAITING, default_concurrency_limit=CHEAP_AT_ONCE)


def name_tools(demo: gr.Blocks) -> None:
    """Gives each MCP tool the name of its endpoint, which gradio takes from the function.

    What gradio itself listens to, for the login, is no endpoint.
    """
    for event in demo.fns.values():
        if inspect.isfunction(event.fn) and isinstance(event.api_name, str):
            if event.api_visibility == "public":
                event.fn.__name__ = event.api_name
        else:
            event.api_visibility = "private"


def launch(demo: gr.Blocks, **options: Any) -> Any:
    """Launches the page; serves MCP as well when `gradio[mcp]` is installed."""
    options.setdefault("mcp_server", importlib.util.find_spec("mcp") is not None)
    options.setdefault("run_history", False)  # else a browser keeps prompts
    # uvicorn believes what this machine says of others' addresses, unless it is told not to.
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "")
    layers = [Middleware(each) for each in (Limits, Closed, look.OwnPreview)]
    options.setdefault("app_kwargs", {"routes": look.routes(), "middleware": layers})
    options.setdefault("max_threads", THREADS)
    return demo.launch(
        theme=look.theme(),
        css=look.style(),
        head=look.head(),
        favicon_path=str(look.ASSETS / "favicon.svg"),
        footer_links=["api", "settings"],
        ssr_mode=False,
        max_file_size="5mb",
        **options,
    )
