"""The pages that are written from the code, their links, and the length of the README."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import architecture
import docs_site

ROOT = architecture.ROOT
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WRITTEN_BY_THE_SITE = {ROOT / "docs/reference/cli.md"}
NAMES_OF_FILES = re.compile(
    r"`((?:src|tests|scripts|concepts|examples|docs|benchmarks)/[\w./-]+|[\w/]+\.py)`"
)


def test_the_architecture_page_is_up_to_date():
    written = architecture.PAGE.read_text(encoding="utf-8")
    assert written == architecture.page(), "run `python scripts/architecture.py`"


def test_the_architecture_page_names_every_module():
    written = architecture.PAGE.read_text(encoding="utf-8")
    for path in architecture.modules():
        if path.name != "__init__.py":
            assert path.relative_to(architecture.PACKAGE).with_suffix("").as_posix() in written


def test_the_readme_fits_on_a_page_and_configures_the_space():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    header = yaml.safe_load(text.split("---\n")[1])
    assert {"title", "sdk", "sdk_version", "python_version", "app_file", "license"} <= set(header)
    assert "mcp-server" in header["tags"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_names_lead_to_files(page: Path):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text):
        if not target.startswith("http"):
            path = (page.parent / target).resolve()
            assert path.exists() or path in WRITTEN_BY_THE_SITE, f"{page.name}: {target}"
    for name in NAMES_OF_FILES.findall(text):
        there = (ROOT / name).exists() or (architecture.PACKAGE / name).exists()
        assert there or "NAME" in name, f"{page.name}: {name}"


def found_in_the_code(pattern: str) -> set[str]:
    return {
        name
        for path in architecture.modules()
        for name in re.findall(pattern, path.read_text(encoding="utf-8"))
    }


def test_every_environment_variable_and_schema_is_in_the_reference():
    environment = (ROOT / "docs/reference/environment.md").read_text(encoding="utf-8")
    for name in found_in_the_code(r"\bMODELASSAY_[A-Z_]+\b"):
        assert f"`{name}`" in environment, name
    schemas = (ROOT / "docs/reference/json.md").read_text(encoding="utf-8")
    for name in found_in_the_code(r"\bmodelassay\.[a-z-]+/\d\b"):
        assert f"`{name}`" in schemas, name


def page_of_the_site(uri: str) -> SimpleNamespace:
    return SimpleNamespace(file=SimpleNamespace(src_uri=uri))


@pytest.mark.parametrize(
    ("html", "warns"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<img alt="" src=//cdn.example/x.png>', True),
        ('<link rel="stylesheet" href="https://fonts.example/x.css">', True),
        ('<a href="https://example.org">a link</a><img src="../assets/page.png">', False),
        ('<link rel="canonical" href="https://example.org/">', False),
    ],
)
def test_the_site_may_load_nothing_from_another_host(html, warns, caplog):
    docs_site.on_post_page(html, page=page_of_the_site("x.md"), config=None)
    assert bool(caplog.records) == warns


def test_links_that_leave_the_docs_need_a_repository(monkeypatch):
    def rewritten(text: str) -> str:
        page = page_of_the_site("how-to/x.md")
        return docs_site.on_page_markdown(text, page=page, config=None, files=None)

    monkeypatch.delenv("DOCS_REPOSITORY", raising=False)
    assert rewritten("[see](../guard.md#limits)") == "[see](../guard.md#limits)"
    assert rewritten("[see](../../examples/ci)") == "see (`examples/ci`)"
    assert rewritten("[see](../../CONTRIBUTING.md)") == "[see](../contributing.md)"
    monkeypatch.setenv("DOCS_REPOSITORY", "https://example.org/r/blob/main/")
    assert rewritten("[a](../../app.py)") == "[a](https://example.org/r/blob/main/app.py)"


def test_the_command_line_reference_names_every_command():
    text = docs_site.cli_reference()
    for command in (
        "scan",
        "verify",
        "baseline push",
        "diff calibrate",
        "guard bench",
        "sae label",
    ):
        assert f"# `modelassay {command}`" in text
    assert "..." not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
