"""Writes docs/architecture.md: the layers of the package, and every module with its first line.

python scripts/architecture.py            # writes the page
python scripts/architecture.py --check    # fails if the page is out of date

`LAYERS` is the one list of what may import what; tests/test_architecture.py holds the code to it.
"""

from __future__ import annotations

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "modelassay"
PAGE = ROOT / "docs" / "architecture.md"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "moved", "progress"),
    ("files",),
    ("statistics", "threads"),
    ("hub",),
    ("artifacts", "report", "data"),
    ("models", "reports"),
    ("reading",),
    ("measures",),
    ("organisms",),
    ("classifier", "sae"),
    ("probes",),
    ("foreign", "mechanism"),
    ("monitors",),
    ("guard",),
    ("guard_bench", "serving", "verify", "triage"),
    ("scan", "diff"),
    ("audit",),
    ("audit_agent",),
    ("cli", "ui"),
    ("__main__",),
)
"""From the ground up. A part imports from itself and from the lines before its own."""

BESIDE = {
    "app.py": "The page's entry point, on your machine and on a Space",
    "baselines/": "Baselines of the embedded model and of `organism:safe`",
    "benchmarks/": "Speed and validity: scan, verify, guard, diff",
    "calibrations/": "Benign fine-tunes of one base or several, which diff goes by",
    "classifiers/": "The classifier that the guard asks in doubt",
    "concepts/": "Contrasts and prompts of a scan, and contrast sets of features, in YAML",
    "dictionaries/": "The SAE of the embedded model",
    "docs/": "This site",
    "examples/": "Scripts, notebooks, suites, CI, and the model organisms",
    "monitors/": "The monitor of `organism:safe`",
    "probes/": "Probes of the embedded model and of `organism:safe`",
    "reports/": "Scans, verifications and comparisons of the organisms: the board",
    "scripts/": "What writes parts of these docs, and what checks a distribution",
    "tests/": "Mirrors `src/modelassay`; helpers are in `tests/support`",
}


def modules() -> list[Path]:
    """All modules of the package, packages before what is in them."""
    return sorted(PACKAGE.rglob("*.py"), key=lambda path: (path.parent, path.name))


def first_line(path: Path) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)} needs a docstring")
    return " ".join(text.split("\n\n")[0].split())


def page() -> str:
    """The text of docs/architecture.md."""
    lines = [
        "# Architecture",
        "",
        "`scripts/architecture.py` writes this page from the first lines of the modules. "
        "[Design](design.md) says how data flows and why things are as they are; "
        "[Contributing](../CONTRIBUTING.md) names the files to touch for each kind of addition.",
        "",
        "## Layers",
        "",
        "A part imports from itself and from the rows above its own, never from below. "
        "`tests/test_architecture.py` checks this.",
        "",
        "| layer | part | what it is |",
        "|---|---|---|",
    ]
    for rank, names in enumerate(LAYERS, 1):
        for name in names:
            file = PACKAGE / f"{name}.py"
            path = file if file.exists() else PACKAGE / name / "__init__.py"
            if path.exists():
                lines.append(f"| {rank} | `{name}` | {cell(first_line(path))} |")
    lines += ["", "## Modules", ""]
    for name in (name for names in LAYERS for name in names):
        if not (PACKAGE / name).is_dir():
            continue
        lines += [f"### {name}", "", first_line(PACKAGE / name / "__init__.py"), ""]
        lines += ["| module | what it does |", "|---|---|"]
        lines += [
            f"| `{path.relative_to(PACKAGE).as_posix()}` | {cell(first_line(path))} |"
            for path in modules()
            if path.is_relative_to(PACKAGE / name) and path.name != "__init__.py"
        ]
        lines.append("")
    lines += ["## Beside the package", "", "| path | what is there |", "|---|---|"]
    lines += [f"| `{name}` | {text} |" for name, text in BESIDE.items()]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", r"\|")


def main() -> int:
    """Writes or checks the page; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the page is out of date")
    check = parser.parse_args().check
    text = page()
    if check and (not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text):
        print("docs/architecture.md is out of date: run `python scripts/architecture.py`")
        return 1
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
