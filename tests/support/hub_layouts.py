"""A loopback Hub with files in the real layouts of public data sets.

All texts are made up and harmless; only names of files, columns, configurations and splits are the
real ones.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from loopback_hub import LoopbackHub

ACCEPTED = "hf_accepted"
"""The token of somebody who accepted the terms of the gated sets."""
OTHER = "hf_other"
"""The token of somebody who did not."""
GATED = ("allenai/wildguardmix", "walledai/StrongREJECT", "walledai/HarmBench")
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


WILD = (
    ("Draw a map", "Here is a map.", True, "harmful", "compliance", "harmful", "toys"),
    ("Draw a cat", "I would rather not.", True, "harmful", "refusal", "unharmful", "toys"),
    ("Draw a dog", "Here is a dog.", False, "unharmful", "compliance", "unharmful", "benign"),
    ("Draw a hat", None, False, "unharmful", None, None, "benign"),
    ("Draw a bat", "Well.", False, "unharmful", "refusal", "harmful", "benign"),
    ("Draw a car", "Perhaps.", False, None, None, None, "benign"),
)
TOXIC = (
    "conv_id", "user_input", "model_output", "human_annotation", "toxicity", "jailbreaking",
    "openai_moderation",
)  # fmt: skip
HELPSTEER = (
    "prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity",
)  # fmt: skip
TAILS = (
    ("Sing a song", "La la la.", {"noise": False}, True),
    ("Sing a song", "LA LA LA!", {"noise": True}, False),
    ("sing  a SONG", "Hum.", {"noise": False}, True),
    ("Beat a drum", "BOOM.", {"calm": False, "noise": True}, False),
    ("Whistle", "Fweet.", {"noise": False}, True),
)
AEGIS = (
    "id", "reconstruction_id_if_redacted", "prompt", "response", "prompt_label", "response_label",
    "violated_categories", "prompt_label_source", "response_label_source",
)  # fmt: skip


def jsonl_of(columns, *rows):
    return "".join(json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in rows).encode()


def aegis_of(*rows):
    return json.dumps([dict(zip(AEGIS, row, strict=True)) for row in rows]).encode()


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
            "train/wildguard_train.parquet": parquet_of(WILDGUARD[:4] + WILDGUARD[5:8], *WILD),
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
        "nvidia/HelpSteer": {
            "README.md": card_of(
                ("default", {"train": "train.jsonl.gz", "validation": "validation.jsonl.gz"}),
                licence="cc-by-4.0",
            ),
            **{
                f"{part}.jsonl.gz": gzip.compress(
                    jsonl_of(HELPSTEER, *((f"q{i}", f"a{i}", i % 5, 2, 2, 2, 2) for i in range(20)))
                )
                for part in ("train", "validation")
            },
        },
        "PKU-Alignment/BeaverTails": {
            "README.md": card_of(
                (
                    "default",
                    {
                        f"{size}k_{part}": f"round0/{size}k/{part}.jsonl.xz"
                        for size in (330, 30)
                        for part in ("train", "test")
                    },
                ),
                licence="cc-by-nc-4.0",
            ),
            **{
                f"round0/{size}k/{part}.jsonl.xz": lzma.compress(
                    jsonl_of(("prompt", "response", "category", "is_safe"), *rows)
                )
                for size, rows in ((330, TAILS), (30, TAILS[:2]))
                for part in ("train", "test")
            },
        },
        "PKU-Alignment/PKU-SafeRLHF": {
            "README.md": card_of(
                ("default", {"train": "data/Alpaca-7B/train.jsonl"}), licence="cc-by-nc-4.0"
            ),
            "data/Alpaca-7B/train.jsonl": jsonl_of(
                (
                    "prompt", "response_0", "response_1", "is_response_0_safe",
                    "is_response_1_safe", "response_1_harm_category", "safer_response_id",
                ),
                ("Bake a cake", "Mix it.", "Throw it.", True, False, {"mess": True}, 0),
            ),
        },
        "lmsys/toxic-chat": {
            "README.md": card_of(
                *(
                    (
                        f"toxicchat{version}",
                        {
                            part: f"data/{version}/toxic-chat_annotation_{part}.csv"
                            for part in ("train", "test")
                        },
                    )
                    for version in ("0124", "1123")
                ),
                licence="cc-by-nc-4.0",
            ),
            **{
                f"data/{version}/toxic-chat_annotation_{part}.csv": csv_of(
                    TOXIC,
                    ("c1", "Hello\nthere", "Hello.", "True", "0", "0", "[]"),
                    ("c2", "Boo you", "Oh no.", "True", "1", "0", "[]"),
                    ("c3", "Pretend to be a pirate", "Arr.", "True", "0", "1", "[]"),
                    ("c4", "Silence", "", "False", "0", "0", "[]"),
                )
                for version in ("0124", "1123")
                for part in ("train", "test")
            },
        },
        "nvidia/Aegis-AI-Content-Safety-Dataset-2.0": {
            "README.md": card_of(
                (
                    "default",
                    {
                        "train": ["train.json", "refusals_train.json"],
                        "validation": ["validation.json", "refusals_validation.json"],
                        "test": "test.json",
                    },
                ),
                licence="cc-by-4.0",
            ),
            **{
                file: aegis_of(*rows)
                for file, rows in {
                    "train.json": (
                        ("a1", None, "Tell a joke", "Ha.", "safe", "safe", "", "human", "human"),
                        ("a2", None, "Tell a lie", "Lo.", "unsafe", "unsafe", "Fibs, Tales",
                         "human", "llm_jury"),
                        ("a3", 7.0, "REDACTED", None, "unsafe", None, "Woe", "human", None),
                        ("a4", None, "Tell the time", None, "safe", None, "", "human", None),
                    ),
                    "refusals_train.json": (
                        ("r1", None, "Tell a secret", "Let us talk of birds.", "unsafe", "safe",
                         "Secrets", "human", "refusal_data_augmentation"),
                    ),
                    "validation.json": (
                        ("v1", None, "Nod", "Yes.", "safe", "safe", "", "human", "human"),
                    ),
                    "refusals_validation.json": (
                        ("v2", None, "Bow", "No.", "safe", "safe", "", "human", "human"),
                    ),
                    "test.json": (
                        ("t1", None, "Wave", "Hi.", "safe", "safe", "", "human", "human"),
                    ),
                }.items()
            },
        },
    }  # fmt: skip


@contextmanager
def public_hub() -> Iterator[LoopbackHub]:
    """A Hub that has all of these."""
    with LoopbackHub() as hub:
        for repo_id, files in hub_files().items():
            gated = repo_id in GATED
            hub.add_repo("datasets", repo_id, files, gated=gated, token=ACCEPTED if gated else None)
        hub.tokens.add(OTHER)
        yield hub


def run_with(
    hub: LoopbackHub, home: Path, code: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs code in a process that knows this Hub alone."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env | environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


WORKER = """
import contextlib, io, json, sys
from modelassay.cli.main import run
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(json.loads(line))
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@contextmanager
def worker_at(hub: LoopbackHub, home: Path) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Runs commands in one process that knows this Hub alone, with a token that may read all."""
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
    env |= {"HF_TOKEN": ACCEPTED, "MODELASSAY_CACHE": str(home / "modelassay")}
    with subprocess.Popen(
        [sys.executable, "-c", WORKER],
        env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None

        def run(*arguments: str) -> tuple[int, str, str]:
            process.stdin.write(json.dumps(arguments) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()
