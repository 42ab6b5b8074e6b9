"""Baselines on the Hub: data sets that anybody can publish, find, pin and check.

A data set holds any number of baselines, each in `baselines/NAME/`. Its card carries a tag by which
all of them are found, and one tag for each model. What is pulled is a stranger's: sizes are checked
before anything is fetched, and only the two files that a baseline needs are.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelassay.errors import InputError
from modelassay.hub import Commit, Shelf, find_datasets, update_card
from modelassay.verify.baseline import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    MAX_VECTORS_BYTES,
    TABLE_FILE,
    VECTORS_FILE,
    Baseline,
    load_baseline,
    save_baseline,
)
from modelassay.verify.creating import slug
from modelassay.verify.report import Origin

TAG, MODEL_TAG = "modelassay-baseline", "baseline-of-"
FOLDER = "baselines"
ELSEWHERE = "use a baseline on this machine (`modelassay baseline list`)"
SHELF = Shelf(
    what="baseline",
    folder=FOLDER,
    index_file=INDEX_FILE,
    files={INDEX_FILE: MAX_INDEX_BYTES, VECTORS_FILE: MAX_VECTORS_BYTES},
    elsewhere=ELSEWHERE,
)


@dataclass(frozen=True)
class Found:
    """A data set that says it holds baselines."""

    repo_id: str
    author: str
    revision: str | None
    models: tuple[str, ...]
    """Slugs of the models that its tags name."""
    downloads: int
    updated: str | None


def model_tag(model_id: str) -> str:
    """The tag that a data set with a baseline of this model carries."""
    return MODEL_TAG + slug(model_id).lower()


def push_baseline(
    baseline: Baseline,
    repo_id: str,
    *,
    create_pr: bool = False,
    private: bool = False,
    token: str | None = None,
) -> Commit:
    """Publishes a baseline, or puts a newer one in its place.

    Args:
        baseline: What to publish.
        repo_id: Data set, `owner/name`; made if it is not there (not for a pull request).
        create_pr: Propose it to somebody else's data set.
        private: Make a new data set private.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data set, or a name that cannot be one.
        UnavailableError: no permission, or the Hub cannot be reached.
    """

    def write_card(present: str | None) -> str:
        return update_card(
            present if present is not None else new_card(repo_id),
            tags=[TAG, model_tag(baseline.index.model.id)],
            configs=[CONFIG],
        )

    with tempfile.TemporaryDirectory() as scratch:
        save_baseline(baseline, Path(scratch))
        files = {file: Path(scratch) / file for file in (INDEX_FILE, VECTORS_FILE, TABLE_FILE)}
        return SHELF.push(
            repo_id,
            baseline.name,
            files,
            write_card,
            create_pr=create_pr,
            private=private,
            token=token,
        )


def pull_baseline(
    reference: str, *, revision: str | None = None, token: str | bool | None = None
) -> tuple[Baseline, Origin]:
    """Fetches a baseline and checks it.

    Args:
        reference: `owner/repo[:name][@revision]`.
        revision: In place of the reference's own.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        InputError: no such data set, or one that holds no baseline, several, or a damaged one.
        UnavailableError: the Hub cannot be reached and it is not in the cache.
    """
    pulled = SHELF.pull(reference, revision=revision, token=token)
    baseline = load_baseline(pulled.folder)
    if baseline.name != pulled.name:
        raise InputError(
            f"{pulled.repo_id} keeps under {pulled.name!r} a baseline of another name."
        )
    where = f"{pulled.repo_id}:{pulled.name}"
    return baseline, Origin(where, "hub", pulled.author, pulled.commit, pulled.on_main)


def search_baselines(
    *, model: str | None = None, author: str | None = None, token: str | bool | None = None
) -> list[Found]:
    """Data sets on the Hub that say they hold baselines, in one request.

    Args:
        model: Only those with a baseline of this model.
        author: Only those of this namespace.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        UnavailableError: the Hub cannot be reached.
    """
    wanted = [TAG, *([model_tag(model)] if model else [])]
    return [
        Found(
            repo_id=each.repo_id,
            author=each.author,
            revision=each.revision,
            models=tuple(t.removeprefix(MODEL_TAG) for t in each.tags if t.startswith(MODEL_TAG)),
            downloads=each.downloads,
            updated=each.updated,
        )
        for each in find_datasets(wanted, author=author, token=token, elsewhere=ELSEWHERE)
    ]


CONFIG = {"config_name": "concepts", "data_files": f"{FOLDER}/*/{TABLE_FILE}", "default": True}
"""What `load_dataset` and the Hub's viewer open."""


def new_card(repo_id: str) -> str:
    """The card of a data set of baselines."""
    return f"""---
license: cc0-1.0
pretty_name: modelassay baselines
language: [en]
tags: [{TAG}]
---

# Baselines of language models

Measurements that identify a model: sha256 of its files, directions of safety concepts and how far
they are held apart, refusal behaviour, and a signature of its activations on public prompts. Made
with [modelassay](https://pypi.org/project/modelassay/); no weights, no answers and no prompts are
in here.

To check a model against one of them:

```bash
pip install modelassay
modelassay verify OWNER/MODEL --against {repo_id}:NAME@COMMIT
```

To read the measurements as a table:

```python
from datasets import load_dataset

load_dataset("{repo_id}")
```

A baseline is as trustworthy as who published it: pin the commit, and prefer the model's own
publisher. `baselines/NAME/baseline.json` is the record, `vectors.safetensors` holds its vectors.
"""
