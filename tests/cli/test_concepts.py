"""`modelassay concepts`."""

from __future__ import annotations

import json
import re

from modelassay.cli.main import run


def test_concepts_list_show_export_validate(tmp_path, capfd):
    assert run(["concepts", "list", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert {"harmful_content", "control_topic"} <= {row["name"] for row in rows}
    assert run(["concepts", "list"]) == 0
    assert "truthfulness" in capfd.readouterr().out
    assert run(["concepts", "show", "truthfulness"]) == 0
    assert capfd.readouterr().out.startswith("schema: modelassay.concept/1")
    for format in ("yaml", "json", "ams"):
        target = tmp_path / f"out.{'yaml' if format == 'yaml' else 'json'}"
        assert (
            run(["concepts", "export", "truthfulness", "--format", format, "-o", str(target)]) == 0
        )
        assert run(["concepts", "validate", str(target)]) == 0
        assert re.search(r"truthfulness: valid, 70 pairs; .* p 0\.\d+", capfd.readouterr().out)
    assert run(["concepts", "validate", str(target), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["uneven_lengths"] == 0


def test_validate_warns_when_words_give_the_classes_away(tmp_path, capfd):
    pairs = [{"positive": f"please {i} cook", "negative": f"now {i} go"} for i in range(12)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"x": {"description": "", "pairs": pairs}}))
    assert run(["concepts", "validate", str(path)]) == 0
    assert "differ in their words" in capfd.readouterr().out
