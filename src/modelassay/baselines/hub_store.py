"""Baselines on the Hub: data sets that anybody can publish, find, pin and check.

A data set holds any number of baselines, each in `baselines/NAME/`. Its card carries a tag by which
all of them are found, and one tag for each model. What is pulled is a stranger's: sizes are checked
before anything is fetched, and only the two files that a baseline needs are.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from modelassay.baselines.stores import Origin
from modelassay.errors import InputError, UnavailableError, first_line
from modelassay.hub import ANSWER_SECONDS, hub_errors, no_answer

TAG, MODEL_TAG = "modelassay-baseline", "baseline-of-"
FOLDER = "baselines"
PUSH_ATTEMPTS = 5
"""Others may push to the same data set meanwhile; each time the push is put on top of theirs."""
SEARCH_LIMIT = 1000
ELSEWHERE = "use a baseline on this machine (`modelassay baseline list`)"
REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]{0,95}))?(@(?P<revision>[^\s:@]+))?"
)


@dataclass(frozen=True)
class Pushed:
    """Where a baseline went."""

    repo_id: str
    commit: str
    pull_request: str | None
    """Address of the pull request, if one was asked for."""


@dataclass(frozen=True)
class Listed:
    """A data set with baselines, as the Hub lists it."""

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
) -> Pushed:
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
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repo_id(repo_id)
    api = HfApi(token=token)
    with (
        tempfile.TemporaryDirectory() as scratch,
        hub_errors(repo_id, elsewhere=ELSEWHERE, kind="data set"),
    ):
        save_baseline(baseline, Path(scratch))
        if not create_pr:
            api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        for attempt in range(PUSH_ATTEMPTS):
            head = api.repo_info(repo_id, repo_type="dataset", timeout=ANSWER_SECONDS).sha
            try:
                done = api.create_commit(
                    repo_id,
                    _operations(api, baseline, repo_id, str(head), Path(scratch)),
                    repo_type="dataset",
                    commit_message=f"Add the baseline {baseline.name}",
                    create_pr=create_pr,
                    parent_commit=head,
                )
            except HfHubHTTPError as error:
                moved = error.response.status_code in (409, 412)
                if not moved or attempt == PUSH_ATTEMPTS - 1:
                    raise
                continue
            return Pushed(repo_id, done.oid, done.pr_url)
    raise UnavailableError(f"{repo_id} changes faster than it can be written; try again later.")


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
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InputError(f"{reference[:120]!r} is no Hub data set (owner/repo[:name][@revision]).")
    repo_id, name = match["repo"], match["name"]
    revision = revision or match["revision"]
    with hub_errors(repo_id, revision, elsewhere=ELSEWHERE, kind="data set"):
        reachable = True
        try:
            info = HfApi(token=token).dataset_info(
                repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS
            )
        except HfHubHTTPError:
            raise
        except no_answer():
            reachable = False  # what is in the cache then has to do
        else:
            sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
            name = _choose(repo_id, name, list(sizes))
            for file, most in ((INDEX_FILE, MAX_INDEX_BYTES), (VECTORS_FILE, MAX_VECTORS_BYTES)):
                if sizes.get(f"{FOLDER}/{name}/{file}", 0) > most:
                    raise InputError(f"{file} of {repo_id} is larger than a baseline's can be.")
        wanted = name or "*"
        folder = Path(
            snapshot_download(
                repo_id,
                repo_type="dataset",
                revision=revision,
                token=token,
                allow_patterns=[f"{FOLDER}/{wanted}/{f}" for f in (INDEX_FILE, VECTORS_FILE)],
                local_files_only=not reachable,
            )
        )
    files = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    name = _choose(repo_id, name, files)
    baseline = load_baseline(folder / FOLDER / name)
    if baseline.name != name:
        raise InputError(f"{repo_id} keeps under {name!r} a baseline of another name.")
    commit = folder.name
    return baseline, Origin(f"{repo_id}:{name}", "hub", repo_id.partition("/")[0], commit)


def search_baselines(
    *, model: str | None = None, author: str | None = None, token: str | bool | None = None
) -> list[Listed]:
    """Data sets on the Hub that say they hold baselines, in one request.

    Args:
        model: Only those with a baseline of this model.
        author: Only those of this namespace.
        token: Hub token, None for the stored one, False for none at all.

    Raises:
        UnavailableError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    with hub_errors("the list of baselines", elsewhere=ELSEWHERE):
        try:
            found = list(
                HfApi(token=token).list_datasets(
                    filter=[TAG, *([model_tag(model)] if model else [])],
                    author=author,
                    full=True,
                    limit=SEARCH_LIMIT,
                )
            )
        except OfflineModeIsEnabled as error:
            raise UnavailableError(
                "The Hub is switched off (HF_HUB_OFFLINE); `modelassay baseline list` shows those"
                " on this machine."
            ) from error
    return [
        Listed(
            repo_id=info.id,
            author=info.id.partition("/")[0],
            revision=info.sha,
            models=tuple(
                tag.removeprefix(MODEL_TAG) for tag in info.tags or [] if tag.startswith(MODEL_TAG)
            ),
            downloads=info.downloads or 0,
            updated=info.last_modified.isoformat() if info.last_modified else None,
        )
        for info in found
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


def _operations(api: Any, baseline: Baseline, repo_id: str, head: str, folder: Path) -> list[Any]:
    """What a push adds on top of `head`."""
    from huggingface_hub import CommitOperationAdd, DatasetCard
    from huggingface_hub.errors import EntryNotFoundError

    operations = [
        CommitOperationAdd(f"{FOLDER}/{baseline.name}/{file}", str(folder / file))
        for file in (INDEX_FILE, VECTORS_FILE, TABLE_FILE)
    ]
    try:
        path = api.hf_hub_download(repo_id, "README.md", repo_type="dataset", revision=head)
        card = DatasetCard(Path(path).read_text(encoding="utf-8"))
    except EntryNotFoundError:
        card = DatasetCard(new_card(repo_id))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The card of {repo_id} cannot be read ({first_line(error)}); mend its README.md."
        ) from error
    data: Any = card.data  # its fields are whatever the card's metadata has
    tags = list(data.tags or [])
    data.tags = list(dict.fromkeys([*tags, TAG, model_tag(baseline.index.model.id)]))
    if not getattr(data, "configs", None):
        data.configs = [
            {"config_name": "concepts", "data_files": f"{FOLDER}/*/{TABLE_FILE}", "default": True}
        ]
    return [*operations, CommitOperationAdd("README.md", str(card).encode())]


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
