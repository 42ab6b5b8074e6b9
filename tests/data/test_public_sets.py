"""Public sets: built with the real clients from a Hub with files in each one's real layout."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from hub_layouts import OTHER, public_hub, worker_at
from modelassay.data.labelled import read_labelled
from modelassay.data.public_sets import PUBLIC_SETS


@pytest.fixture(scope="module")
def build_there(tmp_path_factory):
    """Runs `data build` in a process that knows the loopback Hub alone; gives its rows."""
    with public_hub() as hub, worker_at(hub, tmp_path_factory.mktemp("hf")) as run:

        def build(source, *options):
            out = tmp_path_factory.mktemp("built") / "rows.jsonl"
            code, printed, error = run(
                "data", "build", source, "--out", str(out), "--json", "-q", *options
            )
            if code:
                return code, error.strip(), out
            rows = [json.loads(line) for line in out.read_text().splitlines()]
            return json.loads(printed), rows, out

        yield build


def said(rows):
    return [(row["prompt"], row["response"], row.get("label")) for row in rows]


def test_beavertails(build_there):
    told, rows, out = build_there("beavertails")
    assert said(rows) == [
        ("Sing a song", "La la la.", "safe"),
        ("Beat a drum", "BOOM.", "unsafe"),
        ("Whistle", "Fweet.", "safe"),
    ]
    assert told["left_out"] == {"its prompt was taken already": 2}  # whatever case and space
    assert told["first_left_out"] == {"its prompt was taken already": 2}
    assert told["labels"] == {"safe": 2, "unsafe": 1}
    assert (told["rows"], told["rows_read"], told["layout"]) == (3, 5, "beavertails")
    assert rows[1]["topic"] == "noise"
    provenance = {name: rows[1][name] for name in ("source", "split", "licence", "row", "commit")}
    assert provenance == {
        "source": "PKU-Alignment/BeaverTails",
        "split": "330k_train",
        "licence": "cc-by-nc-4.0",
        "row": 4,
        "commit": told["commit"],
    }
    assert len(told["commit"]) == 40
    read = read_labelled(out)
    assert [row.unsafe for row in read] == [False, True, False]
    assert {row.source for row in read} == {"PKU-Alignment/BeaverTails"}
    assert [path.name for path in out.parent.iterdir()] == ["rows.jsonl"]
    _, rows, _ = build_there("beavertails", "--per-prompt", "0", "--three-class")
    assert Counter(row["label"] for row in rows) == {"safe_compliance": 3, "unsafe_compliance": 2}


def test_a_pair_of_responses_gives_two_rows(build_there):
    told, rows, _ = build_there("PKU-Alignment/PKU-SafeRLHF", "--per-prompt", "2")
    assert said(rows) == [
        ("Bake a cake", "Mix it.", "safe"),
        ("Bake a cake", "Throw it.", "unsafe"),
    ]
    assert rows[1]["topic"] == "mess"
    assert told["layout"] == "saferlhf"


def test_wildguard_tells_refusals(build_there):
    told, rows, out = build_there("wildguardmix")
    assert said(rows) == [
        ("Draw a map", "Here is a map.", "unsafe_compliance"),
        ("Draw a cat", "I would rather not.", "safe_refusal"),
        ("Draw a dog", "Here is a dog.", "safe_compliance"),
    ]
    assert told["left_out"] == {
        "it has no response": 1,
        "its labels contradict each other": 1,
        "it has no label that people agree on": 1,
    }
    assert told["licence"] == "odc-by"
    assert [row.label for row in read_labelled(out)] == [row["label"] for row in rows]
    _, rows, out = build_there("allenai/wildguardmix", "--at", "prompt")
    assert Counter(row["label"] for row in rows) == {"unsafe": 2, "safe": 3}
    assert [row.unsafe for row in read_labelled(out, at="prompt")][:3] == [True, True, False]
    _, rows, _ = build_there("wildguardmix", "--config", "wildguardtest", "--split", "test")
    assert said(rows) == [
        ("Make a kite", "a reply", "safe_compliance"),
        ("Fly a kite", "a reply", "safe_compliance"),
    ]


def test_toxicchat_labels_prompts_alone(build_there):
    _, rows, _ = build_there("toxicchat", "--at", "prompt")
    assert said(rows) == [
        ("Hello\nthere", "", "safe"),
        ("Boo you", "", "unsafe"),
        ("Pretend to be a pirate", "", "unsafe"),
        ("Silence", "", "safe"),
    ]
    assert rows[2]["topic"] == "jailbreaking"
    assert rows[0]["id"] == "c1"
    told, rows, _ = build_there("lmsys/toxic-chat", "--config", "toxicchat0124", "--limit", "2")
    assert said(rows) == [("Hello\nthere", "Hello.", None), ("Boo you", "Oh no.", None)]
    assert told["labels"] == {"none": 2}
    code, error, out = build_there("toxicchat", "--balanced", "--limit", "2")
    assert code == 64
    assert "nothing to balance by" in error
    assert list(out.parent.iterdir()) == []


def test_aegis(build_there):
    told, rows, _ = build_there("aegis")
    assert isinstance(told, dict), rows
    assert said(rows) == [
        ("Tell a joke", "Ha.", "safe"),
        ("Tell a lie", "Lo.", "unsafe"),
        ("Tell a secret", "Let us talk of birds.", "safe_refusal"),
    ]
    assert told["left_out"] == {"its prompt is redacted": 1, "it has no response": 1}
    assert rows[1]["topic"] == "Fibs"
    _, rows, _ = build_there("aegis", "--at", "prompt")
    assert [row["label"] for row in rows] == ["safe", "unsafe", "safe", "unsafe"]
    _, rows, _ = build_there("aegis", "--split", "validation")
    assert [row["id"] for row in rows] == ["v1", "v2"]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["beavertails", "--split", "train"], 64, "no split 'train'; it has 330k_train, 330k_test"),
        (["JailbreakBench/JBB-Behaviors"], 64, "configurations, and one must be named: behav"),
        (["wildguardmix", "--token", "hf_none"], 69, "Hub does not let this token"),
        (["wildguardmix", "--token", OTHER], 69, "allenai/wildguardmix is gated: accept its terms"),
        (["some/thing"], 64, "No data set 'some/thing' on the Hub"),
        (["beavertails", "--at", "prompt"], 64, "labels no prompts; leave --at prompt out"),
        (["Paul/XSTest"], 64, "gives no rows"),
        (["JailbreakBench/JBB-Behaviors", "--config", "behaviors", "--split", "benign"], 64,
         "one of these is needed: beavertails (prompt, response, is_safe)"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(build_there, options, code, says):
    found, error, out = build_there(*options)
    assert (found, says in error) == (code, True), error
    assert len(error.splitlines()) == 1
    assert list(out.parent.iterdir()) == []


def test_the_table_names_each_set_once():
    names = [name for each in PUBLIC_SETS for name in (each.name, each.where)]
    assert len(set(names)) == len(names)
