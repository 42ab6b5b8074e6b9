"""A shelf: a kind of folder (baselines, probes) that data sets on the Hub hold any number of.

Each lies in `FOLDER/NAME/` of a data set whose card carries a tag by which all are found. What is
pulled is a stranger's: sizes are checked before anything is fetched, and only the files that are
needed are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelassay.errors import InputError
from modelassay.hub.repositories import Commit, commit_files, is_main_head
from modelassay.hub.snapshots import RemoteFile, fetch_snapshot

REFERENCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(:(?P<name>[A-Za-z0-9][A-Za-z0-9_.-]{0,95}))?(@(?P<revision>[^\s:@]+))?"
)
"""`owner/repo[:name][@revision]`."""


@dataclass(frozen=True)
class Pulled:
    """A folder of a shelf as it was fetched; nothing in it has been checked but the sizes."""

    folder: Path
    name: str
    repo_id: str
    author: str
    commit: str
    on_main: bool
    """Whether the data set's main branch holds this commit."""


@dataclass(frozen=True)
class Shelf:
    """A kind of folder in data sets."""

    what: str
    """What one is called, such as `baseline`."""
    folder: str
    index_file: str
    """The file that every one of them has."""
    files: Mapping[str, int]
    """What is fetched, with the largest size of each."""
    elsewhere: str
    """What to do without the Hub, for errors."""

    def push(
        self,
        repo_id: str,
        name: str,
        files: Mapping[str, Path],
        write_card: Callable[[str | None], str],
        *,
        create_pr: bool = False,
        private: bool = False,
        token: str | None = None,
    ) -> Commit:
        """Puts files under a name, in one commit with the card.

        Raises:
            InputError: no such data set, or a name that cannot be one.
            UnavailableError: no permission, or the Hub cannot be reached.
        """
        check_repo_id(repo_id)
        return commit_files(
            repo_id,
            {f"{self.folder}/{name}/{file}": path for file, path in files.items()},
            write_card,
            message=f"Add the {self.what} {name}",
            create_pr=create_pr,
            private=private,
            token=token,
            elsewhere=self.elsewhere,
        )

    def pull(
        self, reference: str, *, revision: str | None = None, token: str | bool | None = None
    ) -> Pulled:
        """Fetches one.

        Args:
            reference: `owner/repo[:name][@revision]`.
            revision: In place of the reference's own.
            token: Hub token, None for the stored one, False for none at all.

        Raises:
            InputError: no such data set, or one that holds none, or several to choose from.
            UnavailableError: the Hub cannot be reached and it is not in the cache.
        """
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise InputError(
                f"{reference[:120]!r} is no Hub data set (owner/repo[:name][@revision])."
            )
        repo_id, name = match["repo"], match["name"]

        def choose(files: Mapping[str, RemoteFile]) -> list[str]:
            chosen = self._choose(repo_id, name, list(files)) if files else name or "*"
            for file, most in self.files.items():
                there = files.get(f"{self.folder}/{chosen}/{file}")
                if there is not None and there.size > most:
                    raise InputError(f"{file} of {repo_id} is larger than a {self.what}'s can be.")
            return [f"{self.folder}/{chosen}/{file}" for file in self.files]

        wanted = revision or match["revision"]
        snapshot = fetch_snapshot(
            repo_id,
            kind="dataset",
            revision=wanted,
            token=token,
            choose=choose,
            elsewhere=self.elsewhere,
        )
        # Without the Hub there was no listing to choose from.
        name = self._choose(repo_id, name, list(snapshot.listing) or snapshot.names())
        on_main = wanted in (None, "main") or is_main_head(repo_id, snapshot.commit, token=token)
        return Pulled(
            folder=snapshot.folder / self.folder / name,
            name=name,
            repo_id=repo_id,
            author=repo_id.partition("/")[0],
            commit=snapshot.commit,
            on_main=on_main,
        )

    def _choose(self, repo_id: str, name: str | None, files: Sequence[str]) -> str:
        index = re.escape(self.index_file)
        pattern = rf"{self.folder}/([A-Za-z0-9][A-Za-z0-9_.-]{{0,95}})/{index}"
        names = sorted(m[1] for file in files if (m := re.fullmatch(pattern, file)))
        if name is None and len(names) == 1:
            return names[0]
        if name in names and name is not None:
            return name
        if not names:
            raise InputError(f"{repo_id} holds no {self.what}.")
        listed = ", ".join(names[:8]) + ("…" if len(names) > 8 else "")
        which = f"no {self.what} {name!r}" if name else f"{len(names)} {self.what}s"
        raise InputError(f"{repo_id} holds {which}; choose one as {repo_id}:NAME from {listed}.")


def check_repo_id(repo_id: str) -> None:
    """Refuses what cannot be the id of a data set.

    Raises:
        InputError: says how one looks.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo_id):
        raise InputError(f"{repo_id[:120]!r} is no Hub data set; give OWNER/NAME.")
