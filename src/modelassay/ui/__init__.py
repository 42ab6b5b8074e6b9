"""The Gradio page. Layout and wiring only; the work is done by the package."""

from modelassay.ui.app import build_app, launch

__all__ = ["build_app", "launch"]
