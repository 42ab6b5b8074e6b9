"""Dictionaries in Hub data sets: each in `dictionaries/NAME/`, found by the card's tag."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from modelassay.errors import InputError
from modelassay.hub import Commit, Shelf, update_card
from modelassay.sae.dictionary import (
    CONFIG_FILE,
    FILES,
    MAX_CONFIG_BYTES,
    MAX_WEIGHTS_BYTES,
    WEIGHTS_FILE,
    Dictionary,
)
from modelassay.sae.labels import LABELS_FILE, MAX_LABELS_BYTES, MAX_TABLE_BYTES
from modelassay.sae.labels import TABLE_FILE as LABEL_TABLE
from modelassay.sae.record import MAX_RECORD_BYTES, RECORD_FILE, DictionaryRecord

TAG = "modelassay-dictionary"
LABEL_FILES = {LABELS_FILE: MAX_LABELS_BYTES, LABEL_TABLE: MAX_TABLE_BYTES}
"""What lies beside a dictionary that was labelled, with the largest size of each."""
SHELF = Shelf(
    what="dictionary",
    folder="dictionaries",
    index_file=RECORD_FILE,
    files={
        RECORD_FILE: MAX_RECORD_BYTES,
        CONFIG_FILE: MAX_CONFIG_BYTES,
        WEIGHTS_FILE: MAX_WEIGHTS_BYTES,
        **LABEL_FILES,
    },
    elsewhere="use a dictionary on this machine, or train one with `modelassay sae train`",
)
TABLE_FILE = "metrics.jsonl"
"""A row for the Hub's viewer and `load_dataset`; never read back."""
CONFIG = {"config_name": "metrics", "data_files": f"dictionaries/*/{TABLE_FILE}", "default": True}


def push_dictionary(
    dictionary: Dictionary,
    repo_id: str,
    *,
    create_pr: bool = False,
    private: bool = False,
    token: str | None = None,
) -> Commit:
    """Publishes a dictionary, with its labels if it has some, in a Hub data set.

    Raises:
        InputError: it is not one that modelassay trained, or there is no such data set.
        UnavailableError: no permission, or the Hub cannot be reached.
    """
    record, folder = dictionary.record, dictionary.folder
    if record is None or folder is None:
        raise InputError(
            f"{dictionary.name} has no {RECORD_FILE}; only dictionaries that `modelassay sae train`"
            " made are published."
        )

    def write_card(present: str | None) -> str:
        text = present if present is not None else new_card(repo_id)
        return update_card(text, tags=[TAG, "sparse-autoencoder", "saelens"], configs=[CONFIG])

    with tempfile.TemporaryDirectory() as scratch:
        table = Path(scratch) / TABLE_FILE
        table.write_text(metrics_row(record), encoding="utf-8")
        names = [*FILES, *LABEL_FILES]
        paths = {name: folder / name for name in names if (folder / name).is_file()}
        return SHELF.push(
            repo_id,
            record.name,
            {**paths, TABLE_FILE: table},
            write_card,
            create_pr=create_pr,
            private=private,
            token=token,
        )


def metrics_row(record: DictionaryRecord) -> str:
    """A JSON line: what the dictionary is, and how it scored on held-out text."""
    row = {
        "dictionary": record.name,
        "model": record.model.id,
        "layer": record.layer,
        "kind": record.kind,
        "width": record.width,
        "k": record.k,
        "tokens": record.tokens,
        **record.metrics.model_dump(mode="json"),
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def new_card(repo_id: str) -> str:
    """The card of a data set of dictionaries."""
    return f"""---
license: cc0-1.0
pretty_name: modelassay dictionaries
tags: [{TAG}]
---

# Dictionaries of language models

Sparse autoencoders that take the output of one block of a language model apart into features. Made
with [modelassay](https://pypi.org/project/modelassay/) and sae-lens; `cfg.json` and
`sae_weights.safetensors` open in sae-lens as they are. `dictionaries/NAME/dictionary.json` names
the model by the sha256 of its weights, beside how the dictionary scored on text that it was not
trained on: variance explained, features a token, features that never fire, and the loss of
splicing its reconstruction in. `labels.parquet`, where there is one, holds automatic labels, each
with how well it predicts on held-out text when the feature fires.

```bash
pip install 'modelassay[sae]'
modelassay sae info {repo_id}:NAME@COMMIT
```

Labels are guesses of a machine: read a label's reliability before you believe it.
"""
