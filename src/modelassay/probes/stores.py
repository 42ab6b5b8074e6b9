"""Where probes are: shipped with modelassay, in the user's own store, in a folder, on the Hub."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelassay.data.exchanges import At
from modelassay.errors import AssayError, InputError
from modelassay.files import shipped
from modelassay.files.atomic import check_replaceable, explain_os_errors, locked, new_folder
from modelassay.files.records import NAME
from modelassay.hub import REFERENCE, Commit, Shelf, update_card
from modelassay.models import LoadedModel
from modelassay.probes.head import Head
from modelassay.probes.record import (
    MAX_RECORD_BYTES,
    MAX_WEIGHTS_BYTES,
    RECORD_FILE,
    WEIGHTS_FILE,
    Probe,
    ProbeRecord,
    load_probe,
    read_record,
    save_probe,
)

FILES = (RECORD_FILE, WEIGHTS_FILE)
TAG = "modelassay-probe"
SHELF = Shelf(
    what="probe",
    folder="probes",
    index_file=RECORD_FILE,
    files={RECORD_FILE: MAX_RECORD_BYTES, WEIGHTS_FILE: MAX_WEIGHTS_BYTES},
    elsewhere="use a probe on this machine, or train one with `modelassay probe train`",
)
TABLE_FILE = "metrics.jsonl"
"""A row a head, for the Hub's viewer and `load_dataset`; never read back."""
CONFIG = {"config_name": "metrics", "data_files": f"probes/*/{TABLE_FILE}", "default": True}


@dataclass(frozen=True)
class FoundProbe:
    """A probe and where it is from."""

    probe: Probe
    source: str
    """`shipped`, `local`, `folder`, or `owner/repo:name@commit by owner`."""


def shipped_folder() -> Path:
    """The probes that come with modelassay."""
    return shipped.shipped_folder("probes")


def local_folder() -> Path:
    """The user's own store: MODELASSAY_PROBES, else the platform's folder for user data."""
    override = os.environ.get("MODELASSAY_PROBES")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_data_path

    return user_data_path("modelassay") / "probes"


def list_probes() -> list[tuple[ProbeRecord, str]]:
    """Records of all that are on this machine; damaged ones are left out."""
    found = []
    for folder, source in _stores():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                found.append((read_record(path), source))
            except AssayError:
                continue
    return found


def find_probe(reference: str, *, token: str | bool | None = None) -> FoundProbe:
    """A probe by name, path or Hub reference.

    Raises:
        InputError: there is none, or it is damaged.
        UnavailableError: the Hub cannot be reached.
    """
    for folder, source in _stores():
        if re.fullmatch(NAME, reference) and (folder / reference / RECORD_FILE).is_file():
            return FoundProbe(load_probe(folder / reference), source)
    if (path := _folder(reference)) is not None:
        return FoundProbe(load_probe(path), "folder")
    for record, source in list_probes():
        if record.model.id == reference:
            folder = next(f for f, s in _stores() if s == source and (f / record.name).is_dir())
            return FoundProbe(load_probe(folder / record.name), source)
    if REFERENCE.fullmatch(reference):
        pulled = SHELF.pull(reference, token=token)
        where = f"{pulled.repo_id}:{pulled.name}@{pulled.commit} by {pulled.author}"
        return FoundProbe(load_probe(pulled.folder), where)
    raise InputError(
        f"No probe {reference[:80]!r}: give the name of one (`modelassay probe list`), its folder,"
        " or owner/repo[:name][@revision]."
    )


def probe_of(model: LoadedModel) -> FoundProbe | None:
    """The probe on this machine that was fitted on these very weights, if there is one."""
    for folder, source in _stores():
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                record = read_record(path)
                same = record.model.weights_sha256 == model.info.weights_sha256
                if same and record.model.organism == model.info.organism:
                    return FoundProbe(load_probe(path), source)
            except AssayError:
                continue
    return None


def store_probe(
    record: ProbeRecord,
    probe_heads: Mapping[At, Head],
    *,
    out: Path | None = None,
    force: bool = False,
) -> Path:
    """Keeps a probe in the user's store, or in a folder.

    Raises:
        InputError: there is one of that name.
        UnavailableError: no room, no permission, or another process is writing it.
    """
    target = out or local_folder() / record.name
    with explain_os_errors(f"writing the probe {target}"), locked(target):
        check_replaceable(target, FILES, "probe", force=force)
        with new_folder(target) as partial:
            save_probe(record, probe_heads, partial)
    return target


def push_probe(
    probe: Probe,
    repo_id: str,
    *,
    create_pr: bool = False,
    private: bool = False,
    token: str | None = None,
) -> Commit:
    """Publishes a probe in a Hub data set, or proposes it to one.

    Raises:
        InputError: no such data set, or a name that cannot be one.
        UnavailableError: no permission, or the Hub cannot be reached.
    """

    def write_card(present: str | None) -> str:
        text = present if present is not None else new_card(repo_id)
        return update_card(text, tags=[TAG], configs=[CONFIG])

    with tempfile.TemporaryDirectory() as scratch:
        save_probe(probe.record, probe.heads, Path(scratch))
        (Path(scratch) / TABLE_FILE).write_text(metrics_table(probe.record), encoding="utf-8")
        paths = {f: Path(scratch) / f for f in (RECORD_FILE, WEIGHTS_FILE, TABLE_FILE)}
        return SHELF.push(
            repo_id,
            probe.name,
            paths,
            write_card,
            create_pr=create_pr,
            private=private,
            token=token,
        )


def metrics_table(record: ProbeRecord) -> str:
    """JSON lines, one for each head."""
    rows = [
        {
            "probe": record.name,
            "model": record.model.id,
            "at": at,
            "kind": head.kind,
            "layers": list(head.layers),
            "auroc": head.metrics.auroc,
            "auroc_low": head.metrics.interval[0],
            "auroc_high": head.metrics.interval[1],
            "n": head.metrics.n,
            "worst_source_auroc": min((s.auroc for s in head.left_out.values()), default=None),
        }
        for at, head in record.heads.items()
    ]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def new_card(repo_id: str) -> str:
    """The card of a data set of probes."""
    return f"""---
license: cc0-1.0
pretty_name: modelassay probes
tags: [{TAG}]
---

# Probes of language models

Linear readouts of a model's residual stream that tell harmful prompts and unsafe answers while they
are generated. Made with [modelassay](https://pypi.org/project/modelassay/). Each belongs to one
model, named in `probes/NAME/probe.json` by the sha256 of its weights, beside how it scored on
prompts it was not fitted on, with intervals, source by source.

```bash
pip install modelassay
modelassay chat OWNER/MODEL --probe {repo_id}:NAME@COMMIT
```

A probe is as trustworthy as who published it: pin the commit, and evaluate it on data of your own
with `modelassay probe eval`.
"""


def _stores() -> Iterator[tuple[Path, str]]:
    # What comes with modelassay comes first: nothing that was pulled can pass for it.
    yield shipped_folder(), "shipped"
    yield local_folder(), "local"


def is_probe(reference: str) -> bool:
    """Whether a reference names a probe on this machine, or one inside a Hub data set."""
    if re.fullmatch(NAME, reference):
        own = ((folder / reference / RECORD_FILE).is_file() for folder, _ in _stores())
        # A model's name may be a probe's too (`embedded`); that probe is then the model's own.
        if any(own):
            return True
    if _folder(reference) is not None:
        return True
    return REFERENCE.fullmatch(reference) is not None and ":" in reference


def _folder(reference: str) -> Path | None:
    """The folder of a probe, if a reference is one."""
    try:
        path = Path(reference).expanduser()
        return path if reference and (path / RECORD_FILE).is_file() else None
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return None
