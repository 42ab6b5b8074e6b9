"""Known suites: read with the real clients from a Hub that holds files in each one's real layout.

All texts are made up and harmless; only names of files, columns, configurations and splits are the
real ones.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopback_hub import LoopbackHub
from modelassay.errors import InputError
from modelassay.guard_bench.known import KNOWN_SUITES, known_suite, place_of
from modelassay.guard_bench.suites import as_suite, read_suite

BEHAVIOURS = ("Index", "Goal", "Target", "Behavior", "Category", "Source")
COMPARED = (
    "Index", "goal", "prompt", "target_response", "human1", "human2", "human3", "human_majority",
    "harmbench_cf", "gpt4_cf", "llama2_cf", "llamaguard_cf", "llama3_cf",
)  # fmt: skip
XSTEST = ("id", "prompt", "type", "label", "focus", "note")
WILDGUARD = (
    "prompt", "response", "adversarial", "prompt_harm_label", "response_refusal_agreement",
    "response_refusal_label", "response_harm_label", "subcategory", "prompt_harm_agreement",
    "response_harm_agreement",
)  # fmt: skip


def csv_of(columns, *rows):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode()


def parquet_of(columns, *rows):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(zip(columns, r, strict=True)) for r in rows]), buffer)
    return buffer.getvalue()


def card_of(*configs, licence="mit"):
    """A card whose configurations are (name, {split: path})."""
    listed = [
        {"config_name": name, "data_files": [{"split": s, "path": p} for s, p in splits.items()]}
        for name, splits in configs
    ]
    return f"---\n{json.dumps({'license': licence, 'configs': listed})}\n---\n".encode()


def hub_files():
    """Files of each data set, as they are named on the Hub."""
    behaviour = ("Make a kite", "Sure, here is", "Kites", "Toys", "Original")
    unpaired = ["0"] * 9
    wild = ("a reply", True, "harmful", 1.0, "compliance", "unharmful", "toys", 1.0, 1.0)
    mild = ("a reply", False, "unharmful", 1.0, "compliance", "unharmful", "benign", 1.0, 1.0)
    unsure = ("a reply", False, None, None, None, None, "benign", None, None)
    return {
        "JailbreakBench/JBB-Behaviors": {
            "README.md": card_of(
                ("behaviors", {s: f"data/{s}-behaviors.csv" for s in ("harmful", "benign")}),
                ("judge_comparison", {"test": "data/judge-comparison.csv"}),
            ),
            "data/harmful-behaviors.csv": csv_of(BEHAVIOURS, ("0", *behaviour)),
            "data/benign-behaviors.csv": csv_of(BEHAVIOURS, ("0", "Fly a kite", *behaviour[1:])),
            "data/judge-comparison.csv": csv_of(
                COMPARED, ("0", "Make a kite", "Pretend, then make a kite", "no", *unpaired)
            ),
        },
        "Paul/XSTest": {
            "README.md": card_of(("default", {"train": "xstest_prompts.csv"})),
            "xstest_prompts.csv": csv_of(
                XSTEST,
                ("1", "How do I kill a process?", "homonyms", "safe", "kill", ""),
                ("2", "How do I spoil a picnic?", "contrast_homonyms", "unsafe", "spoil", ""),
            ),
        },
        "allenai/wildguardmix": {
            "README.md": card_of(
                ("wildguardtrain", {"train": "train/wildguard_train.parquet"}),
                ("wildguardtest", {"test": "test/wildguard_test.parquet"}),
                licence="odc-by",
            ),
            "train/wildguard_train.parquet": parquet_of(WILDGUARD, ("Not this one", *wild)),
            "test/wildguard_test.parquet": parquet_of(
                WILDGUARD, ("Make a kite", *wild), ("Fly a kite", *mild), ("Who knows", *unsure)
            ),
        },
        "walledai/StrongREJECT": {
            "data/train-00000-of-00001.parquet": parquet_of(
                ("prompt", "category", "source"), ("Make a kite", "toys", "custom")
            )
        },
        "walledai/HarmBench": {
            "README.md": card_of(
                ("contextual", {"train": "contextual/train-00000-of-00001.parquet"}),
                ("copyright", {"train": "copyright/train-00000-of-00001.parquet"}),
                ("standard", {"train": "standard/train-00000-of-00001.parquet"}),
            ),
            "standard/train-00000-of-00001.parquet": parquet_of(
                ("prompt", "category"), ("Make a kite", "toys")
            ),
            "contextual/train-00000-of-00001.parquet": parquet_of(
                ("prompt", "context", "category"), ("Make a kite", "Paper is at hand.", "toys")
            ),
            "copyright/train-00000-of-00001.parquet": parquet_of(
                ("prompt", "tags"), ("Sing a song", ["lyrics"])
            ),
        },
    }  # fmt: skip


ASKED = """
import json, sys
from modelassay.errors import AssayError
from modelassay.guard_bench.suites import read_suite
for asked, options in json.loads(sys.argv[1]):
    try:
        data = read_suite(*asked, **options)
        print(json.dumps([data.source, data.config, data.split, data.suite, data.n_unlabelled,
                          [[p.prompt, p.category] for p in data.prompts]]))
    except AssayError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""
GATED = "hf_accepted"


@pytest.fixture(scope="module")
def read_there(tmp_path_factory):
    """Reads suites in a process that knows the loopback Hub alone."""
    with LoopbackHub() as hub:
        for repo_id, files in hub_files().items():
            gated = any(s.where == repo_id and s.gated for s in KNOWN_SUITES)
            hub.add_repo("datasets", repo_id, files, gated=gated, token=GATED if gated else None)

        def read(*asked):
            env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0"}
            env["HF_HOME"] = str(tmp_path_factory.mktemp("hf"))
            run = subprocess.run(
                [sys.executable, "-c", ASKED, json.dumps(asked)],
                env=env, capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            assert run.returncode == 0, run.stderr[-2000:]
            return [json.loads(line) for line in run.stdout.splitlines()]

        yield read


def test_each_known_suite_is_read_by_its_name(read_there):
    found = read_there(*([[suite.name], {"token": GATED}] for suite in KNOWN_SUITES))
    prompts = {}
    for suite, (source, config, split, kind, _, asked) in zip(KNOWN_SUITES, found, strict=True):
        assert (source, config, split) == (suite.where, suite.config, suite.split)
        assert kind == ("jailbreak" if suite.side == "harmful" else "overrefusal")
        prompts[suite.name] = asked
    assert prompts == {
        "jailbreakbench": [["Make a kite", "Toys"]],
        "jailbreakbench-benign": [["Fly a kite", "Toys"]],
        "jailbreakbench-judges": [["Pretend, then make a kite", "none"]],
        "xstest": [["How do I kill a process?", "homonyms"]],
        "xstest-unsafe": [["How do I spoil a picnic?", "contrast_homonyms"]],
        "wildguard": [["Make a kite", "toys"]],
        "wildguard-benign": [["Fly a kite", "benign"]],
        "strongreject": [["Make a kite", "toys"]],
        "harmbench": [["Make a kite", "toys"]],
        "harmbench-contextual": [["Paper is at hand.\n\n---\n\nMake a kite", "toys"]],
    }
    assert found[5][4] == 1  # the row of WildGuard that no side is told of


def test_hub_ids_splits_and_gates(read_there):
    jailbreakbench, harmbench = "JailbreakBench/JBB-Behaviors", "walledai/HarmBench"
    by_id, benign, judges, bad_split, bad_config, gated, one_sided = read_there(
        [[jailbreakbench], {}],
        [["overrefusal", jailbreakbench], {}],
        [["jailbreak", "judge_comparison"], {}],
        [["jailbreak", jailbreakbench], {"split": "train"}],
        [["jailbreak", jailbreakbench], {"config": "behaviours"}],
        [["harmbench"], {}],
        [["overrefusal", harmbench], {"token": GATED}],
    )
    assert by_id[:3] == [jailbreakbench, "behaviors", "harmful"]
    assert benign[2:4] == ["benign", "overrefusal"]
    assert judges[:3] == [jailbreakbench, "judge_comparison", "test"]
    assert bad_split == [
        "InputError",
        f"{jailbreakbench} has no split 'train'; give --split harmful or benign.",
    ]
    assert bad_config == [
        "InputError",
        f"{jailbreakbench} has no configuration 'behaviours'; give --config, one of"
        " behaviors, judge_comparison.",
    ]
    assert gated == [
        "UnavailableError",
        f"{harmbench} is gated: accept its terms on its Hub page, then pass --token or run"
        " `hf auth login`.",
    ]
    assert one_sided[0] == "InputError"  # all of it is harmful, whoever asks
    assert "no benign prompts" in one_sided[1]


def test_names():
    assert as_suite("HarmBench") == "jailbreak"
    assert as_suite("paul/xstest") == "overrefusal"
    with pytest.raises(InputError, match=r"Unknown suite 'nope'; choose jailbreak,.*harmbench"):
        as_suite("nope")
    with pytest.raises(InputError, match="has data of its own"):
        read_suite("harmbench", "walledai/HarmBench")
    names = [name for suite in KNOWN_SUITES for name in (suite.name, *suite.aliases)]
    assert len(set(names)) == len(names)
    assert all(known_suite(name) is not None for name in names)
    assert place_of("Paul/XSTest", None, "harmful").name == "xstest-unsafe"
    assert place_of("some/data", None, "harmful") is None
