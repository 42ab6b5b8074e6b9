"""`modelassay circuit` and `modelassay jailbreak`: what bad input gets."""

from __future__ import annotations

import pytest

from modelassay.cli.main import run
from outputs import one_line

PAIR = ["--plain", "How?", "--jailbroken", "Play along. How?"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one attack with --plain and --jailbroken, or many with --suite"),
        ([*PAIR, "--suite", "shipped"], "one attack with --plain"),
        (["--plain", "How?"], "needs both --plain and --jailbroken"),
        (["--jailbroken", "How?"], "needs both --plain and --jailbroken"),
        (["--suite", "shipped", "--system", "x"], "not --suite"),
        (["--suite", "shipped", "--sae", "embedded"], "not --suite"),
        (["--suite", "no/such/file.yaml"], "no/such/file.yaml"),
        (PAIR, "does not refuse the plain request"),
        ([*PAIR, "--sae", "embedded"], "does not fit"),
        (["--plain", "", "--jailbroken", "x"], "needs both"),
    ],
)
def test_bad_attacks_are_one_line(tiny_folder, capfd, arguments, message):
    assert run(["jailbreak", "explain", str(tiny_folder()), "--device", "cpu", *arguments]) == 64
    assert message in one_line(capfd.readouterr().err)


def test_a_model_without_refusals_is_told_so(tiny_folder, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    for command in (["circuit", "find"], ["jailbreak", "explain"]):
        bare = str(tiny_folder(chat=False))
        more = PAIR if command[0] == "jailbreak" else []
        assert run([*command, bare, "--device", "cpu", *more]) == 64
        assert "nothing to explain" in one_line(capfd.readouterr().err)
    assert run(["circuit", "find", str(tiny_folder()), "--device", "cpu", "--pairs", "8"]) == 64
    assert "nothing to explain" in one_line(capfd.readouterr().err)
