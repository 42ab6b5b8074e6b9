"""The tables of docs/migrating.md, what runs their rows, and files that the predecessors write."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from typer.main import get_command

from exchanges import save_tiny_bert, synthetic
from foreign_files import save_classifier_folder, save_probe_folder
from modelassay.cli.main import app, run
from modelassay.data.labels import LABELS
from probe_rows import exchanges
from tiny import save_tiny

PAGE = Path(__file__).parents[2] / "docs" / "migrating.md"
HUB_WORDS = (
    *("jailbreakbench", "judge_comparison", "wildguard"),
    *("PKU-Alignment", "saferlhf", "toxicchat", "HelpSteer"),
)
"""Lines with one of these read public data sets."""


@dataclass(frozen=True)
class Row:
    """One row of the page."""

    predecessor: str
    section: str
    theirs: str
    ours: str
    note: str

    @cached_property
    def spans(self) -> list[str]:
        """What stands as code in our column."""
        return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", self.ours)]

    @property
    def commands(self) -> list[str]:
        return [span for span in self.spans if span.startswith("modelassay ")]

    @property
    def exits(self) -> set[int]:
        """The exit codes that the note allows."""
        told = re.search(r"\bexit ([^;]*)", self.note)
        return {int(number) for number in re.findall(r"\b\d+\b", told.group(1))} if told else {0}


def rows_of(page: Path = PAGE) -> list[Row]:
    """All rows, in order."""
    predecessor = section = ""
    found = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            predecessor, section = line[3:], ""
        elif line.startswith("### "):
            section = line[4:]
        elif line.startswith("|") and not line.startswith(("| theirs", "|---")):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 3, line
            found.append(Row(predecessor, section, *cells))
    return found


def option_names(words: list[str]) -> set[str]:
    """The options of the command that a line names."""
    command: Any = get_command(app)
    names: set[str] = set()
    for word in words:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            names = {name for each in command.params for name in each.opts}
    return names


def at_path(values: Any, path: str) -> list[Any]:
    """What lies at a path like `.a.KEY.b`, in which capitals stand for every key."""
    found = [values]
    for part in path.strip(".").split("."):
        if part.isupper():
            found = [value for each in found for value in each.values()]
            assert found, path
        else:
            found = [each[part] for each in found]
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@dataclass
class World:
    """What the words in capitals stand for, and the lines that have run."""

    home: Path
    url: str
    on_the_hub: Callable[..., tuple[int, str, str]]
    made: dict[str, str] = field(default_factory=dict)
    ran: dict[str, tuple[int, str, str]] = field(default_factory=dict)

    def of(self, name: str) -> str:
        """What a word in capitals stands for, made once."""
        if name in ("OUT", "NEW"):
            return str(self.home / f"out-{len(list(self.home.glob('count-*')))}")
        if name not in self.made:
            self.made[name] = str(getattr(self, f"make_{name.lower()}")())
        return self.made[name]

    def fill(self, text: str) -> str:
        """A line with all words in capitals filled in."""
        (self.home / f"count-{len(list(self.home.glob('count-*')))}").touch()
        names = [name[5:].upper() for name in dir(self) if name.startswith("make_")] + ["OUT"]
        return re.sub(rf"\b({'|'.join(names)})\b", lambda found: self.of(found.group()), text)

    def run(self, line: str) -> tuple[int, str, str]:
        """Exit code, output and errors of a line of the page; each runs once."""
        if line not in self.ran:
            words = shlex.split(self.fill(line))[1:]
            if any(word in line for word in HUB_WORDS):
                self.ran[line] = self.on_the_hub(*words)
            else:
                self.ran[line] = run_here(words)
        return self.ran[line]

    def evaluate(self, expression: str) -> Any:
        """The value of a Python expression of the page."""
        scope: dict[str, Any] = {}
        for name in re.findall(r"\bmodelassay(?:\.\w+)*", expression):
            parts = name.split(".")
            for n in range(1, len(parts) + 1):
                with contextlib.suppress(ModuleNotFoundError):
                    scope["modelassay"] = importlib.import_module(".".join(parts[:n])) and (
                        importlib.import_module("modelassay")
                    )
        return eval(self.fill(expression), scope)  # noqa: S307

    def make_model(self) -> Path:
        return save_tiny(self.home / "model")

    def make_concepts(self) -> Path:
        """A concept file as ams-scanner's users write them."""
        nouns = ["bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork"]
        concepts = {
            name: {
                "description": "test",
                "min_separation": 2.5,
                "pairs": [
                    {"positive": f"{name}: {n}?", "negative": f"{n}, not {name}?"} for n in nouns
                ],
            }
            for name in ("harmful_content", "refusal_capability", "injection_resistance")
        }
        path = self.home / "concepts.json"
        path.write_text(json.dumps(concepts))
        return path

    def make_baselines(self) -> Path:
        """A folder in which ams-scanner itself has put a baseline of the model."""
        import ams.scanner
        from ams.concepts import load_concepts_from_json

        folder = self.home / "baselines"
        own = list(load_concepts_from_json(self.of("CONCEPTS")).values())
        kept, ams.scanner.get_scan_concepts = ams.scanner.get_scan_concepts, lambda _mode: own
        try:
            scanner = ams.scanner.ModelScanner(str(folder), device="cpu", dtype="float32")
            scanner.create_baseline(self.of("MODEL"), model_id="meta-llama/Tiny")
        finally:
            ams.scanner.get_scan_concepts = kept
        return folder

    def make_baseline(self) -> Path:
        return self.make_baseline_file()

    def make_baseline_file(self) -> Path:
        return Path(self.of("BASELINES")) / "meta-llama__Tiny.json"

    def make_rows(self) -> Path:
        rows = [
            {"prompt": row.prompt, "response": row.response, "label": int(row.unsafe)}
            for row in exchanges()
        ]
        return write_rows(self.home / "rows.jsonl", rows)

    def make_labelled(self) -> Path:
        """As training_data_classifier.jsonl."""
        return self._labelled("labelled.jsonl", 0)

    def make_more(self) -> Path:
        return self._labelled("more.jsonl", 900)

    def _labelled(self, name: str, first: int) -> Path:
        rows = [
            {
                "prompt": row.prompt,
                "response": row.response,
                "label": LABELS.index(row.label),
                "label_name": row.label,
            }
            for row in synthetic(120, first=first)
            if row.label is not None
        ]
        return write_rows(self.home / name, rows)

    def make_binary(self) -> Path:
        """As training_data.jsonl."""
        rows = [
            {"prompt": row.prompt, "response": row.response, "label": int(row.unsafe)}
            for row in synthetic(90)
        ]
        return write_rows(self.home / "binary.jsonl", rows)

    def make_unlabelled(self) -> Path:
        rows = [{"prompt": f"Name tree {i}.", "response": f"Oak {i}."} for i in range(4)]
        return write_rows(self.home / "unlabelled.jsonl", rows)

    def make_unanswered(self) -> Path:
        rows = [{"prompt": f"Name tree {i}."} for i in range(4)]
        return write_rows(self.home / "unanswered.jsonl", rows)

    def make_prompts(self) -> Path:
        rows = [{"prompt": f"Name tree {i}.", "label": i % 2} for i in range(4)]
        return write_rows(self.home / "prompts.jsonl", rows)

    def make_encoder(self) -> Path:
        return save_tiny_bert(self.home / "encoder")

    def make_probe_out(self) -> Path:
        return save_probe_folder(self.home / "probe_out", self.of("MODEL"))

    def make_classifier_out(self) -> Path:
        classes = {str(i): name for i, name in enumerate(LABELS)}
        return save_classifier_folder(
            self.home / "classifier_out", Path(self.of("ENCODER")), classes
        )

    def make_classifier_bin(self) -> Path:
        """The same with its weights in a pickle."""
        folder = shutil.copytree(self.of("CLASSIFIER_OUT"), self.home / "classifier_bin")
        weights = folder / "model.safetensors"
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
        return folder

    def make_untemplated(self) -> Path:
        """A probe of theirs that was fitted outside of the chat template, imported."""
        folder = self.home / "untemplated_out"
        self.made["UNTEMPLATED_OUT"] = str(
            save_probe_folder(folder, self.of("MODEL"), use_chat_template=False)
        )
        return self._imported("UNTEMPLATED_OUT", "untemplated")

    def make_probe(self) -> Path:
        return self._imported("PROBE_OUT", "probe")

    def make_plain_probe(self) -> Path:
        """One that was trained outside of the chat template."""
        out = self.home / "plain_probe"
        words = ["probe", "train", self.of("MODEL"), "--data", self.of("ROWS"), "--out", str(out)]
        code, _, error = run_here([*words, "--labels", "binary", "--no-chat-template", "-q"])
        assert code == 0, error
        return out

    def make_classifier(self) -> Path:
        return self._imported("CLASSIFIER_OUT", "classifier")

    def _imported(self, name: str, kind: str) -> Path:
        out = self.home / kind
        code, _, error = run_here(["import", self.of(name), "--out", str(out), "-q"])
        assert code == 0, error
        return out

    def make_url(self) -> str:
        return self.url


def run_here(words: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = run(words)
    return code, out.getvalue(), error.getvalue()
