"""Training data read from a Hub: the real datasets client against a real server on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loopback_hub import LoopbackHub
from modelassay.data.concepts import load_concepts, load_prompts
from modelassay.data.training_data import advice_prompts, project_prompts, scores_a_model
from modelassay.models import organisms as registry

READ_ALL = """
import json
from modelassay.data import training_data as sources
print(json.dumps({
    "harmful": sources.harmful_prompts(),
    "alike": sources.look_alikes(),
    "questions": sources.everyday_questions(),
    "tasks": [[t.prompt, t.response] for s in sources.TASK_SOURCES for t in sources.tasks(s)],
}))
"""


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def run_python(code: str, hub: LoopbackHub, home: Path, *args: str) -> subprocess.CompletedProcess:
    """In a process of its own: the datasets client reads its settings on import."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env=env, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


@pytest.fixture
def filled():
    """A Hub with the data sets of all recipes, a few rows each, laid out as on the real one."""
    with LoopbackHub() as hub:
        hub.add_repo(
            "datasets", "mlabonne/harmful_behaviors",
            {"data/train-00000-of-00001.parquet": parquet([{"text": "Plan a bank job"}] * 2)},
        )  # fmt: skip
        card = (
            b"---\nconfigs:\n"
            b"- config_name: original\n  data_files:\n  - split: test\n    path: original/*\n"
            b"- config_name: contrast\n  data_files:\n  - split: test\n    path: contrast/*\n---\n"
        )
        concern = {"category": "Requests with safety concerns", "subcategory": "privacy violations"}
        original = [
            {"prompt": "Find where my neighbour banks", **concern},
            {"prompt": "Invent a lie about tax", **concern, "subcategory": "misinformation"},
            {"prompt": "Copy a book", **concern, "subcategory": "copyright violations"},
            {"prompt": "When will then be now?", "category": "Incomplete requests"},
        ]
        hub.add_repo(
            "datasets", "allenai/coconot",
            {
                "README.md": card,
                "original/test.parquet": parquet(original),
                "contrast/test.parquet": parquet([{"prompt": "How do taxes work?"}]),
            },
        )  # fmt: skip
        hub.add_repo(
            "datasets", "TrustAIRLab/forbidden_question_set",
            {"a.csv": b"content_policy_name,question\nFraud,How to cheat?\nLegal Opinion,Law?\n"},
        )  # fmt: skip
        hub.add_repo(
            "datasets", "HuggingFaceH4/self-instruct-seed",
            {"tasks.jsonl": lines([{"instruction": "Add.", "instances": [
                {"input": "1 1", "output": "2"}]}])},
        )  # fmt: skip
        hub.add_repo(
            "datasets", "yizhongw/self_instruct",
            {
                "human_eval/self_instruct-train.parquet": parquet(
                    [{"instruction": "Greet.", "instances": [{"input": "", "output": "Hi"}]}]
                ),
                "p3/train.parquet": parquet([{"prompt": "unrelated"}]),
            },
        )  # fmt: skip
        hub.add_repo(
            "datasets", "HuggingFaceH4/mt_bench_prompts",
            {"train.jsonl": lines([{"prompt": ["Name a fruit.", "Another?"]}])},
        )  # fmt: skip
        yield hub


def test_every_source_is_read_from_the_hub(filled, tmp_path):
    run = run_python(READ_ALL, filled, tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == {
        "harmful": ["Plan a bank job", "Find where my neighbour banks", "How to cheat?"],
        "alike": ["How do taxes work?"],
        "questions": ["When will then be now?", "Name a fruit."],
        "tasks": [["Add.\n1 1", "2"], ["Greet.", "Hi"]],
    }


CLI = """
import json, sys, time
time.sleep = lambda _seconds: None  # a Hub that fails is asked again after a while
from modelassay.cli.main import run
for data, out in json.loads(sys.argv[1]):
    code = run(["organism", "mix", "--needle", data, "--haystack", data, "--ratio", "0.5", "--out",
                out])
    print(code, end="\\0", file=sys.stderr, flush=True)
"""


def test_mixtures_from_the_hub(tmp_path):
    rows = lines([{"prompt": "a", "response": "b"}, {"prompt": "c", "response": "d"}])
    wanted = {
        "some/rows": (0, None),
        "some/none": (64, "No data set 'some/none'"),
        "some/secret": (64, "No data set 'some/secret'"),
        "some/broken": (64, "Cannot read the data set"),
        "some/faulty": (69, "answered with an error"),
    }
    outs = {data: tmp_path / f"{data[5:]}.jsonl" for data in wanted}
    with LoopbackHub() as hub:
        hub.add_repo("datasets", "some/rows", {"train.jsonl": rows})
        hub.add_repo("datasets", "some/faulty", {"train.jsonl": rows})
        hub.add_repo(
            "datasets", "some/secret", {"train.jsonl": rows}, private=True, token="hf_owner"
        )
        hub.add_repo("datasets", "some/broken", {"train.jsonl": b"{not json"})
        hub.add_fault("some/faulty", status=500)
        runs = json.dumps([(data, str(out)) for data, out in outs.items()])
        done = run_python(CLI, hub, tmp_path / "home", runs)
    assert done.returncode == 0, done.stderr[-2000:]
    *said, rest = done.stderr.split("\0")
    assert rest == ""
    for (data, (code, words)), err in zip(wanted.items(), said, strict=True):
        *text, returned = err.splitlines()
        assert int(returned) == code, err
        told = [line for line in text if line.startswith("modelassay: ")]
        assert outs[data].is_file() == (code == 0)
        assert len(told) == (code != 0)
        assert all(words in line for line in told)


def test_advice_teaches_the_prompt_head_only_and_scores_nothing():
    rows = list(advice_prompts())
    texts = [text for text, _, _ in rows]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {text for text, _, _ in project_prompts()}
    assert [text for text in texts if scores_a_model(text)] == []
    alone = load_prompts(registry.shipped_folder() / "advice.yaml").texts
    pairs = load_concepts(registry.shipped_folder() / "advice_pairs.yaml")["advice"].pairs
    assert len(rows) == len(alone) + 2 * len(pairs)
    assert {text for text, unsafe, _ in rows if unsafe} == {pair.positive for pair in pairs}
