"""The rows that the shipped classifier is made of."""

from __future__ import annotations

import json

from modelassay.classifier import recipe
from modelassay.cli.main import run


def test_refusals_are_found_in_every_chat_format(tmp_path):
    folder = tmp_path / recipe.SAFE_DECODING
    folder.mkdir()
    texts = [
        "USER: How? ASSISTANT: I'm sorry, but I can't help with that.</s>",
        "User: How?\nAssistant: I cannot assist with this request.<|endoftext|>",
        "### Human: How?\n### Assistant: I'm sorry, I cannot do that.",
        "[INST] How? [/INST] I can't help with this request. </s>",
        "USER: How? ASSISTANT: Mix flour and water.</s>",
        "no format at all",
    ]
    (folder / "a.json").write_text(json.dumps([{"text": text} for text in texts]))
    found = list(recipe._safe_decoding(tmp_path))
    assert [(row.prompt, row.label, group) for row, group in found] == [
        ("How?", "safe_refusal", "How?")
    ] * 4
    assert not any(end in row.response for row, _ in found for end in ("</s>", "<|"))


def test_a_folder_without_the_sets_says_which_is_missing(tmp_path, capsys):
    out = tmp_path / "out"
    command = ["classifier", "train", "--folder", str(tmp_path), "--encoder", "embedded"]
    assert run([*command, "--out", str(out)]) == 64
    assert f"{tmp_path} has no exchanges/dev.jsonl.gz" in capsys.readouterr().err
    assert not out.exists()
