"""The notebooks run as they stand, and their committed outputs are of a kind to be published."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NAMES = ("diff", "guard", "scan_and_verify")
WORDS = {
    "diff": ("COMPROMISED", "Streams of evidence", "changed as ablation does"),
    "guard": ("I can't help with that.", "prompt refused", "judge refusal"),
    "scan_and_verify": ("CRITICAL", "NOT VERIFIED: ablated", "harmful_content"),
}
MOST_BYTES = 200_000


def outputs(book) -> list:
    return [output for cell in book.cells for output in cell.get("outputs", ())]


def text_of(book) -> str:
    return str([output.get("data", output.get("text")) for output in outputs(book)])


def test_these_are_all():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_committed_and_hold_nothing_of_a_machine(name):
    path = FOLDER / f"{name}.ipynb"
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert path.stat().st_size < MOST_BYTES
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    kinds = {output.output_type for output in outputs(book)}
    assert kinds <= {"execute_result", "stream", "display_data"}
    assert all(output.get("name") != "stderr" for output in outputs(book))
    assert not re.search(r"/(home|root|work|tmp|usr|Users)/|[A-Z]:\\", text_of(book))
    assert "application/vnd.plotly.v1+json" in text_of(book)
    for words in WORDS[name]:
        assert words in text_of(book).replace("\\'", "'")


@pytest.mark.real_model
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(name, monkeypatch, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PLOTLY_RENDERER", "plotly_mimetype")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    nbclient.NotebookClient(
        book, timeout=1500, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    for words in WORDS[name]:
        assert words in text_of(book).replace("\\'", "'")
