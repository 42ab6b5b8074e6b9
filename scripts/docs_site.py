"""Hooks of mkdocs: the command-line reference, links to the repository, and no outside request.

`mkdocs.yml` names this file. typer writes `reference/cli.md` from the commands; links to files
outside `docs/` become links to DOCS_REPOSITORY where that is set (the docs workflow sets it) and
plain names elsewhere; a page that would load anything from another host fails a strict build.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

log = logging.getLogger("mkdocs.hooks.docs_site")
ROOT = Path(__file__).resolve().parents[1]
ROOT_PAGES = ("changelog", "contributing")
CLI_PAGE = "reference/cli.md"
CLI_HEAD = """# Command line

Written from the commands themselves; `modelassay COMMAND --help` prints the same.
[Exit codes](exit-codes.md) and [environment variables](environment.md) have their own pages."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*\brel=[\"']?(?:canonical|next|prev|alternate))[^>]*\bhref=[\"']?"
    r"((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the reference of the command line, and the pages that lie in the repository's root."""
    files.append(File.generated(config, CLI_PAGE, content=cli_reference()))
    for name in ROOT_PAGES:
        text = (ROOT / name.upper()).with_suffix(".md").read_text(encoding="utf-8")
        text = re.sub(r"\]\((?!https?:|docs/|#)", "](../", text).replace("](docs/", "](")
        files.append(File.generated(config, f"{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links that leave `docs/` to the repository, if there is an address for it."""
    root = os.environ.get("DOCS_REPOSITORY", "").rstrip("/")
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join("docs", folder, target.split("#")[0]))
        if path.startswith("docs/"):
            return match.group()
        if (name := path.removesuffix(".md").lower()) in ROOT_PAGES:
            return f"[{text}]({posixpath.relpath(f'{name}.md', folder or '.')})"
        if root:
            return f"[{text}]({root}/{path})"
        return text if "`" in text or text == path else f"{text} (`{path}`)"

    return LINK.sub(replace, markdown)


def on_post_page(output: str, *, page: Page, config: MkDocsConfig) -> str:
    """Warns, which a strict build fails on, of what a page would load from another host."""
    for match in LOADED.finditer(output):
        log.warning("%s loads %s", page.file.src_uri, match.group(1) or match.group(2))
    return output


def cli_reference() -> str:
    """All commands with their arguments and options, as typer writes them, but hidden ones."""
    typer = [sys.executable, "-m", "typer", "modelassay.cli.main"]
    written = subprocess.run(
        [*typer, "utils", "docs", "--name=modelassay"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    ).stdout
    heading = re.compile(r"^#+ `([^`]+)`\n\n(.+)$", re.MULTILINE)
    summaries = dict(heading.findall(written))  # typer cuts them where it lists commands
    hidden = _hidden_commands()
    lines, current = [], "modelassay"
    for line in written.splitlines():
        if found := re.fullmatch(r"#+ `(.+)`", line):
            current = found[1]
        elif found := re.fullmatch(r"\* `([a-z]+)`(: .*)?", line):
            name = f"{current} {found[1]}"
            line = "" if name in hidden else f"* `{found[1]}`: {summaries[name]}"
        if current not in hidden and not line.startswith(("* `--help`", "# `")):
            line = line.replace(" [old_repo]", "")
            lines.append(line.replace("[:", r"\[:").replace("[@", r"\[@"))
    return "\n".join([CLI_HEAD, *lines]) + "\n"


def _hidden_commands() -> set[str]:
    """Old names that still work: typer would write them into the reference as well."""
    import typer

    from modelassay.cli.main import app

    def walk(command: Any, name: str) -> Iterator[str]:
        for child, each in getattr(command, "commands", {}).items():
            if each.hidden:
                yield f"{name} {child}"
            yield from walk(each, f"{name} {child}")

    return set(walk(typer.main.get_command(app), "modelassay"))
