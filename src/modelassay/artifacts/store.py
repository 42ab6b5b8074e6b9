"""One store for every kind of artifact: shipped, the user's own, in a folder, on the Hub.

A reference is a name, a path, the id of a model, or `owner/repo[:name][@revision]` for a Hub data
set. Whatever it is, it is found as a `Found`: a checked record, its folder, and an `Origin` that
says whom one trusts by using it. What comes with modelassay comes first, so nothing that was pulled
can pass for it.

A data set holds any number of artifacts, each in `FOLDER/NAME/`. Its card carries a tag by which
all are found, and one for each model. Whoever wrote what is fetched is a stranger: sizes are
checked before anything is fetched, and only the files of the kind are.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic

from pydantic import ValidationError

from modelassay.artifacts.kind import ORIGIN_FILE, Kind, R
from modelassay.artifacts.origin import Origin, PulledFrom, Where
from modelassay.errors import InputError, with_article
from modelassay.files import shipped
from modelassay.files.atomic import (
    explain_os_errors,
    locked,
    new_folder,
    write_text_atomically,
)
from modelassay.files.records import NAME, read_record
from modelassay.hub import (
    Commit,
    RemoteFile,
    commit_files,
    fetch_snapshot,
    find_datasets,
    is_main_head,
    update_card,
)

log = logging.getLogger(__name__)

REPO = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
REFERENCE = re.compile(rf"(?P<repo>{REPO})(:(?P<name>{NAME}))?(@(?P<revision>[^\s:@]+))?")
"""`owner/repo[:name][@revision]`."""


@dataclass(frozen=True)
class Listing:
    """A data set that says it holds artifacts of a kind."""

    repo_id: str
    author: str
    revision: str | None
    models: tuple[str, ...]
    """Slugs of the models that its tags name."""
    downloads: int
    updated: str | None


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the id of a data set.

    Raises:
        InputError: says how one looks.
    """
    if not re.fullmatch(REPO, repo_id):
        raise InputError(f"{repo_id[:120]!r} is not a Hub data set; give OWNER/NAME.")


@dataclass(frozen=True)
class Found(Generic[R]):
    """An artifact: its record was checked, its other files are checked when they are loaded."""

    kind: Kind[R]
    record: R
    name: str
    folder: Path
    origin: Origin

    @property
    def model_id(self) -> str:
        """Id of the model that it belongs to."""
        return self.kind.model_id(self.record)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What to know of who published it; see `Origin.remarks`."""
        return self.origin.remarks(self.kind.noun, self.model_id)

    def warn(self) -> None:
        """Logs the remarks, where its report has no place for them."""
        for remark in self.remarks:
            log.warning("%s", remark)

    def row(self) -> dict[str, Any]:
        """JSON values for a list."""
        return {
            "name": self.name,
            "source": self.origin.source,
            **self.kind.values(self.record),
        }

    def to_dict(self) -> dict[str, Any]:
        """The record's JSON values, and `from`, `origin` and `remarks`."""
        values = self.record.model_dump(mode="json", by_alias=True)
        where = {"from": str(self.origin), "origin": self.origin.to_dict()}
        return {**values, **where, "remarks": list(self.remarks)}


@dataclass(frozen=True)
class Store(Generic[R]):
    """All artifacts of a kind, wherever they are."""

    kind: Kind[R]

    def shipped_folder(self) -> Path:
        """Those that come with modelassay."""
        return shipped.shipped_folder(self.kind.folder)

    def local_folder(self) -> Path:
        """The user's own: of the kind's variable, else the platform's folder for user data."""
        override = os.environ.get(self.kind.variable)
        if override:
            return Path(override).expanduser()
        from platformdirs import user_data_path

        return user_data_path("modelassay") / self.kind.folder

    def list(self, *, own: bool = True) -> tuple[Found[R], ...]:
        """All on this machine, the shipped ones first; damaged ones are left out.

        Args:
            own: False for the shipped ones alone.
        """
        found: dict[str, Found[R]] = {}
        for store, source in self._stores() if own else [*self._stores()][:1]:
            for folder in sorted(store.iterdir()) if store.is_dir() else ():
                hidden = folder.name.startswith(".")  # such as the remains of a killed run
                if not hidden and (folder / self.kind.record_file).is_file():
                    try:
                        found.setdefault(folder.name, self._stored(folder, source))
                    except InputError as error:
                        log.warning("%s", error)
        for each in self._foreign(warn=True) if own else ():
            found.setdefault(each.name, each)
        return tuple(found.values())

    def open(self, folder: Path) -> Found[R]:
        """The one in a folder, or of a record file of any name where the record is all there is.

        Raises:
            InputError: there is none, it is damaged, or a file is too large.
        """
        folder = folder.expanduser()
        if folder.is_file() and folder.name != self.kind.record_file:
            record = (self.kind.foreign or self._read)(folder)
            return Found(self.kind, record, folder.stem, folder, Origin(folder.stem, "folder"))
        folder = (folder.parent if folder.is_file() else folder).resolve()
        record = self._read(folder / self.kind.record_file)
        name = getattr(record, "name", folder.name)
        return Found(self.kind, record, name, folder, Origin(folder.name, "folder"))

    def here(self, reference: str) -> Found[R] | None:
        """The one on this machine of that name or path.

        Raises:
            InputError: it is there but damaged.
        """
        if re.fullmatch(NAME, reference):
            for store, source in self._stores():
                if (store / reference / self.kind.record_file).is_file():
                    return self._stored(store / reference, source)
        try:
            path = Path(reference).expanduser()
            alone = len(self.kind.files) == 1 or path.name == self.kind.record_file
            alone = alone or (self.kind.foreign is not None and path.suffix == ".json")
            is_one = (path / self.kind.record_file).is_file() or (alone and path.is_file())
        except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
            return None
        if reference and is_one:
            return self.open(path)
        named = (each for each in self._foreign() if reference in (each.name, each.folder.stem))
        return next(named, None)

    def of_model(self, model_id: str) -> Found[R] | None:
        """The first on this machine that belongs to a model of this id."""
        return next((found for found in self.list() if found.model_id == model_id), None)

    def find(
        self,
        reference: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        whole: bool = True,
    ) -> Found[R]:
        """The one of a name, a path, the id of its model, or a Hub data set.

        Args:
            reference: What names it.
            revision: Of a Hub data set, in place of the reference's own.
            token: Hub token, None for the stored one, False for none at all.
            whole: False fetches only the record of one that is on the Hub.

        Raises:
            InputError: there is none, or it is damaged.
            UnavailableError: it is on the Hub, which cannot be reached.
        """
        found = self.here(reference) or self.of_model(reference)
        if found is not None:
            if revision is not None:
                raise InputError(
                    f"{reference} has no revisions to choose from; leave --revision out."
                )
            return found
        if REFERENCE.fullmatch(reference):
            return self._fetch(reference, revision, token, whole=whole)
        if is_folder(reference):
            return self.open(Path(reference))  # which says what it lacks
        raise InputError(
            f"No {self.kind.noun} {reference[:120]!r}: give the name of one"
            f" (`modelassay {self.kind.command} list`), its folder, the id of its model, or a Hub"
            " data set (owner/repo[:name][@revision])."
        )

    def show(
        self, reference: str, *, revision: str | None = None, token: str | bool | None = None
    ) -> Found[R]:
        """As `find`, but of one that is on the Hub only the record is fetched."""
        return self.find(reference, revision=revision, token=token, whole=False)

    def check_free(
        self, name: str | None = None, *, force: bool = False, out: Path | None = None
    ) -> Path:
        """Where one would be saved, before the work for it is done.

        Args:
            name: Of one in the user's store.
            force: Whether one that is there may be replaced.
            out: Folder in place of the store's.

        Raises:
            InputError: no name that can be one, or something is there that may not be replaced.
        """
        target = out or self.local_folder() / self.kind.check_name(name or "")
        if not target.exists() and not target.is_symlink():
            return target
        names = {file.name for file in target.iterdir()} if target.is_dir() else {""}
        if self.kind.record_file not in names or not names <= self.kind.own_files:
            what = with_article(self.kind.noun)
            raise InputError(f"{target} is there and is not {what}; give a new folder.")
        if not force:
            raise InputError(f"{target} exists already; pass --force to replace it.")
        return target

    @contextmanager
    def new(
        self, name: str | None = None, *, force: bool = False, out: Path | None = None
    ) -> Iterator[Path]:
        """Gives an empty folder that takes its place, whole, when the work in it succeeds.

        Args:
            name: Under which it is kept in the user's store.
            force: Replace one that is there; nothing but one of this kind is ever replaced.
            out: Folder in place of the store's.

        Raises:
            InputError: something is there, or no name that can be one.
            UnavailableError: no room, no permission, or another process is writing it.
        """
        target = out or self.local_folder() / self.kind.check_name(name or "")
        with explain_os_errors(f"writing the {self.kind.noun} {target}"), locked(target):
            self.check_free(name, force=force, out=out)
            with new_folder(target) as partial:
                yield partial

    def save(
        self,
        write: Callable[[Path], object],
        name: str,
        *,
        origin: Origin | None = None,
        force: bool = False,
        out: Path | None = None,
    ) -> Path:
        """Keeps one in the user's store, or in a folder: whole or not at all.

        Args:
            write: Puts its files into an empty folder.
            name: Under which it is kept.
            origin: Where on the Hub it came from, to be remembered with it.
            force: As for `new`.
            out: As for `new`.

        Raises:
            InputError: something is there, or no name that can be one.
            UnavailableError: no room, no permission, or another process is writing it.
        """
        with self.new(name, force=force, out=out) as partial:
            write(partial)
            if origin is not None:
                text = json.dumps(origin.to_dict(), indent=1)
                write_text_atomically(partial / ORIGIN_FILE, text + "\n")
        return out or self.local_folder() / name

    def copy(self, folder: Path, into: Path) -> None:
        """Copies the files of this kind from one folder into another, and nothing else."""
        for name, path in self._files(folder):
            shutil.copyfile(path, into / name)

    def delete(self, name: str) -> Path:
        """Removes one from the user's store.

        Raises:
            InputError: there is none of that name, or it is a shipped one.
            UnavailableError: another process is writing it, or no permission.
        """
        kind, named = self.kind, re.fullmatch(NAME, name) is not None
        path = self.local_folder() / name
        if named and (path / kind.record_file).is_file():
            with explain_os_errors(f"deleting {path}"), locked(path):
                if path.is_symlink():
                    path.unlink()
                    return path
                aside = path.with_name(f".deleted-{name}")  # whole or not at all
                shutil.rmtree(aside, ignore_errors=True)
                path.rename(aside)
                shutil.rmtree(aside)
            return path
        if named and (self.shipped_folder() / name / kind.record_file).is_file():
            raise InputError(f"{name} comes with modelassay and cannot be deleted.")
        raise InputError(
            f"No {kind.noun} {name[:80]!r} in your store; see `modelassay {kind.command} list`."
        )

    def push(
        self,
        found: Found[R],
        repo_id: str,
        *,
        create_pr: bool = False,
        private: bool = False,
        token: str | None = None,
    ) -> Commit:
        """Publishes one in a Hub data set, or puts a newer one in its place.

        Args:
            found: What to publish; see `find` and `open`.
            repo_id: Data set, `owner/name`; made if it is not there (not for a pull request).
            create_pr: Propose it to somebody else's data set.
            private: Make a new data set private.
            token: Hub token, None for the stored one.

        Raises:
            InputError: it is damaged, no such data set, or a name that cannot be one.
            UnavailableError: no permission, or the Hub cannot be reached.
        """
        kind, folder = self.kind, found.folder
        if kind.foreign is not None and folder.is_file():
            raise InputError(
                f"{folder} is a file of another tool; keep it as {with_article(kind.noun)} first:"
                f" `modelassay {kind.command} import {folder}`."
            )
        name = kind.check_name(found.name)
        kind.check(folder)
        check_repo_id(repo_id)

        def write_card(present: str | None) -> str:
            return update_card(
                present if present is not None else kind.card(repo_id),
                tags=[kind.tag, kind.model_tag(found.model_id), *kind.more_tags],
                configs=[kind.table_config],
            )

        single = folder.is_file()
        files = {kind.record_file: folder} if single else dict(self._files(folder))
        with TemporaryDirectory() as scratch:
            files[kind.table_file] = Path(scratch) / kind.table_file
            kind.write_table(found.record, files[kind.table_file])
            return commit_files(
                repo_id,
                {f"{kind.folder}/{name}/{file}": path for file, path in files.items()},
                write_card,
                message=f"Add the {kind.noun} {name}",
                create_pr=create_pr,
                private=private,
                token=token,
                elsewhere=kind.elsewhere,
            )

    def push_new(
        self, write: Callable[[Path], object], repo_id: str, **options: Any
    ) -> tuple[Found[R], Commit]:
        """Publishes one that is kept nowhere.

        Args:
            write: Puts its files into an empty folder, which is then removed.
            repo_id: Data set, `owner/name`.
            **options: Of `push`.
        """
        with TemporaryDirectory() as scratch:
            write(Path(scratch))
            found = self.open(Path(scratch))
            return found, self.push(found, repo_id, **options)

    def pull(
        self,
        reference: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        force: bool = False,
    ) -> Found[R]:
        """Fetches one from the Hub, checks all of it, and keeps it with its origin.

        Args:
            reference: `owner/repo[:name][@revision]`.
            revision: In place of the reference's own.
            token: Hub token, None for the stored one, False for none at all.
            force: Replace one of the same name.

        Raises:
            InputError: no such data set, or one that holds none, several, or a damaged one.
            UnavailableError: the Hub cannot be reached and it is not in the cache.
        """
        found = self._fetch(reference, revision, token, whole=True)
        self.kind.check(found.folder)
        if (self.shipped_folder() / found.name).is_dir():
            raise InputError(
                f"A {self.kind.noun} {found.name!r} comes with modelassay and would be found in its"
                f" place; name this one as {found.origin.id}@{found.origin.revision}."
            )

        folder = self.save(
            lambda partial: self.copy(found.folder, partial),
            found.name,
            origin=found.origin,
            force=force,
        )
        return Found(self.kind, found.record, found.name, folder, found.origin)

    def search(
        self,
        *,
        model: str | None = None,
        author: str | None = None,
        token: str | bool | None = None,
    ) -> Sequence[Listing]:
        """Data sets on the Hub that say they hold some, in one request.

        Args:
            model: Only those with one of this model.
            author: Only those of this namespace.
            token: Hub token, None for the stored one, False for none at all.

        Raises:
            UnavailableError: the Hub cannot be reached.
        """
        kind = self.kind
        wanted = [kind.tag, *([kind.model_tag(model)] if model else [])]
        prefix = kind.model_tag_prefix
        return [
            Listing(
                repo_id=each.id,
                author=each.id.partition("/")[0],
                revision=each.sha,
                models=tuple(
                    tag.removeprefix(prefix) for tag in each.tags or () if tag.startswith(prefix)
                ),
                downloads=each.downloads or 0,
                updated=each.last_modified.isoformat() if each.last_modified else None,
            )
            for each in find_datasets(wanted, author=author, token=token, elsewhere=kind.elsewhere)
        ]

    def _stores(self) -> Iterator[tuple[Path, Where]]:
        yield self.shipped_folder(), "shipped"
        yield self.local_folder(), "local"

    def _foreign(self, *, warn: bool = False) -> Iterator[Found[R]]:
        """Those in the user's store that another tool wrote, each in a file; damaged left out."""
        store, read = self.local_folder(), self.kind.foreign
        if read is None or not store.is_dir():
            return
        for file in sorted(store.glob("*.json")):
            try:
                record = read(file)
            except InputError as error:
                if warn:
                    log.warning("%s", error)
                continue
            name = getattr(record, "name", file.stem)
            yield Found(self.kind, record, name, file, Origin(name, "local"))

    def _files(self, folder: Path) -> Iterator[tuple[str, Path]]:
        return ((name, folder / name) for name in self.kind.files if (folder / name).is_file())

    def _read(self, path: Path) -> R:
        kind = self.kind
        for name, file in self._files(path.parent) if path.name == kind.record_file else ():
            if file.stat().st_size > kind.files[name]:
                raise InputError(f"{file} is larger than the {kind.files[name]} bytes it may have.")
        return read_record(path, kind.record, kind.noun, kind.files[kind.record_file])

    def _named(self, record: R, name: str, where: object) -> None:
        if getattr(record, "name", name) != name:
            raise InputError(f"{where} keeps under {name!r} a {self.kind.noun} of another name.")

    def _stored(self, folder: Path, source: Where) -> Found[R]:
        """One of a store; one that was pulled remembers whose it is."""
        record = self._read(folder / self.kind.record_file)
        self._named(record, folder.name, folder.parent)
        origin = Origin(folder.name, source)
        if source == "local" and (folder / ORIGIN_FILE).is_file():
            try:
                kept = PulledFrom.model_validate_json((folder / ORIGIN_FILE).read_bytes())
                origin = Origin(folder.name, source, kept.author, kept.revision, kept.on_main)
            except (ValidationError, OSError):
                log.warning("%s is damaged; it is not known whose that is.", folder / ORIGIN_FILE)
                origin = Origin(folder.name, source, "an unknown author", None, on_main=False)
        return Found(self.kind, record, folder.name, folder, origin)

    def _fetch(
        self, reference: str, revision: str | None, token: str | bool | None, *, whole: bool
    ) -> Found[R]:
        """One on the Hub, in the Hub's cache: its record was checked, and its sizes."""
        kind = self.kind
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise InputError(
                f"{reference[:120]!r} is not a Hub data set (owner/repo[:name][@revision])."
            )
        repo_id, name = match["repo"], match["name"]
        wanted = revision or match["revision"]
        files = kind.files if whole else {kind.record_file: kind.files[kind.record_file]}

        def choose(listed: Mapping[str, RemoteFile]) -> list[str]:
            chosen = self._choose(repo_id, name, list(listed)) if listed else name or "*"
            for file, most in files.items():
                there = listed.get(f"{kind.folder}/{chosen}/{file}")
                if there is not None and there.size > most:
                    raise InputError(
                        f"{file} of {repo_id} is larger than the {most} bytes it may have."
                    )
            return [f"{kind.folder}/{chosen}/{file}" for file in files]

        snapshot = fetch_snapshot(
            repo_id,
            kind="dataset",
            revision=wanted,
            token=token,
            choose=choose,
            elsewhere=kind.elsewhere,
        )
        # Without the Hub there was no listing to choose from.
        name = self._choose(repo_id, name, list(snapshot.listing) or snapshot.names())
        on_main = wanted in (None, "main") or is_main_head(repo_id, snapshot.commit, token=token)
        author = repo_id.partition("/")[0]
        origin = Origin(f"{repo_id}:{name}", "hub", author, snapshot.commit, on_main)
        folder = snapshot.folder / kind.folder / name
        record = self._read(folder / kind.record_file)
        self._named(record, name, repo_id)
        return Found(kind, record, name, folder, origin)

    def _choose(self, repo_id: str, name: str | None, files: Sequence[str]) -> str:
        """The name of the one that is meant among a data set's files."""
        kind = self.kind
        pattern = rf"{kind.folder}/({NAME})/{re.escape(kind.record_file)}"
        names = sorted(match[1] for file in files if (match := re.fullmatch(pattern, file)))
        if name is None and len(names) == 1:
            return names[0]
        if name is not None and name in names:
            return name
        if not names:
            raise InputError(f"{repo_id} holds no {kind.noun}.")
        listed = ", ".join(names[:8]) + ("…" if len(names) > 8 else "")
        which = f"no {kind.noun} {name!r}" if name else f"{len(names)} {kind.plural}"
        raise InputError(f"{repo_id} holds {which}; choose one as {repo_id}:NAME from {listed}.")


def is_folder(reference: str) -> bool:
    """Whether a folder has this name; also of what cannot be a path."""
    try:
        return bool(reference) and Path(reference).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long, not permitted, or no such user's home
        return False
