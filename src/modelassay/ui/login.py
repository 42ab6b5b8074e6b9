"""Logging in with a Hugging Face account, on a Space that was set up for it.

A visitor's token is handed to the one call that they started, and to nothing else: it is not kept,
logged or shown, and no other process gets it. Without a login there is no token at all, never the
server's own.
"""

from __future__ import annotations

import os

import gradio as gr
from gradio.utils import get_space

from modelassay.errors import InputError

SCOPES = ("gated-repos", "contribute-repos", "write-discussions")
"""What the Space asks for: to read gated models that the visitor may read, to make repositories and
write to those that it made, and to open pull requests. It can see no private repository and change
none that is there. README.md states the same."""


def is_offered() -> bool:
    """Whether visitors can log in.

    Not away from a Space, where gradio would have everybody log in as the owner of the machine.
    """
    return bool(os.environ.get("OAUTH_CLIENT_ID")) and get_space() is not None


def create_login() -> None:
    """Builds the button inside the current `gr.Blocks`, where visitors can log in."""
    if is_offered():
        gr.LoginButton("Log in with Hugging Face", logout_value="Log out ({})", size="sm")


def check_own_page(request: gr.Request) -> None:
    """Refuses what another site had a visitor's browser send, which adds the login to it.

    Args:
        request: A browser says in it which page it comes from.

    Raises:
        InputError: it comes from another page.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise InputError("This was asked for by another site; ask for it on this page.")


def token_of(visitor: gr.OAuthToken | None) -> str | bool:
    """A visitor's token for the Hub; False, which is none at all, of those who have not logged in.

    Args:
        visitor: As gradio hands it to a function that asks for it.
    """
    return visitor.token if visitor is not None else False


def needed_token(visitor: gr.OAuthToken | None) -> str:
    """A visitor's token, for what nobody can do without one.

    Raises:
        InputError: they have not logged in, or not lately.
    """
    if visitor is None:
        raise InputError("Log in first; the button is at the top of the page.")
    return visitor.token
