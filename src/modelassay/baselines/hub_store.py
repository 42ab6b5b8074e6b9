"""Baselines on the Hub: data sets that anybody can publish, find, pin and check.

A data set holds any number of baselines, each in `baselines/NAME/`. Its card carries a tag by which
all of them are found, and one tag for each model. What is pulled is a stranger's: sizes are checked
before anything is fetched, and only the two files that a baseline needs are.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelassay.baselines.creating import slug
from modelassay.baselines.record import (
    INDEX_FILE,
    MAX_INDEX_BYTES,
    MAX_VECTORS_BYTES,
    TABLE_FILE,
    VECTORS_FILE,
    Baseline,
    load_baseline,
    save_baseline,
)
from modelassay.errors import InputError
from modelassay.hub import (
    Commit,
    RemoteFile,
    commit_files,
    fetch_snapshot,
    find_datasets,
    is_main_head,
    update_card,
)
from modelassay.verification_report import Origin

TAG, MODEL_TAG = "modelassay-baseline", "baseline-of-"
FOLDER = "baselines"
ELSEWHERE = "use a baseline on this machine (`modelassay baseline list`)"
REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]{0,95}))?(@(?P<revision>[^\s:@]+))?"
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
    check_repo_id(repo_id)

    def write_card(present: str | None) -> str:
        return update_card(
            present if present is not None else new_card(repo_id),
            tags=[TAG, model_tag(baseline.index.model.id)],
            configs=[CONFIG],
        )

    with tempfile.TemporaryDirectory() as scratch:
        save_baseline(baseline, Path(scratch))
        files = {
            f"{FOLDER}/{baseline.name}/{file}": Path(scratch) / file
            for file in (INDEX_FILE, VECTORS_FILE, TABLE_FILE)
        }
        return commit_files(
            repo_id,
            files,
            write_card,
            message=f"Add the baseline {baseline.name}",
            create_pr=create_pr,
            private=private,
            token=token,
            elsewhere=ELSEWHERE,
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
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference[:120]!r} is no Hub data set (owner/repo[:name][@revision]).")
    repo_id, name = match["repo"], match["name"]

    def choose(files: Mapping[str, RemoteFile]) -> list[str]:
        chosen = _choose(repo_id, name, list(files)) if files else name or "*"
        for file, most in ((INDEX_FILE, MAX_INDEX_BYTES), (VECTORS_FILE, MAX_VECTORS_BYTES)):
            there = files.get(f"{FOLDER}/{chosen}/{file}")
            if there is not None and there.size > most:
                raise InputError(f"{file} of {repo_id} is larger than a baseline's can be.")
        return [f"{FOLDER}/{chosen}/{file}" for file in (INDEX_FILE, VECTORS_FILE)]

    wanted = revision or match["revision"]
    snapshot = fetch_snapshot(
        repo_id,
        kind="dataset",
        revision=wanted,
        token=token,
        choose=choose,
        elsewhere=ELSEWHERE,
    )
    # Without the Hub there was no listing to choose from.
    name = _choose(repo_id, name, list(snapshot.listing) or snapshot.names())
    baseline = load_baseline(snapshot.folder / FOLDER / name)
    if baseline.name != name:
        raise InputError(f"{repo_id} keeps under {name!r} a baseline of another name.")
    author = repo_id.partition("/")[0]
    on_main = wanted in (None, "main") or is_main_head(repo_id, snapshot.commit, token=token)
    return baseline, Origin(f"{repo_id}:{name}", "hub", author, snapshot.commit, on_main)


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


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the id of a data set.

    Raises:
        InputError: says how one looks.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise InputError(f"{repo_id[:120]!r} is no Hub data set; give OWNER/NAME.")


def _choose(repo_id: str, name: str | None, files: Sequence[str]) -> str:
    pattern = rf"{FOLDER}/([A-Za-z0-9][A-Za-z0-9_.-]{{0,95}})/{re.escape(INDEX_FILE)}"
    names = sorted(m[1] for file in files if (m := re.fullmatch(pattern, file)))
    if name is None and len(names) == 1:
        return names[0]
    if name in names and name is not None:
        return name
    if not names:
        raise InputError(f"{repo_id} holds no baseline.")
    listed = ", ".join(names[:8]) + ("…" if len(names) > 8 else "")
    which = f"no baseline {name!r}" if name else f"{len(names)} baselines"
    raise InputError(f"{repo_id} holds {which}; choose one as {repo_id}:NAME from {listed}.")


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
