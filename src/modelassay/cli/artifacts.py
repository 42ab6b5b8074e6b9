"""The verbs that every kind of artifact has: list, show, pull, push, search, delete."""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.errors import InputError
from modelassay.report.sections import Section, Table, columns

if TYPE_CHECKING:
    from modelassay.artifacts import Found, Store

Force = Annotated[bool, typer.Option("--force", help="Replace one of the same name.")]
Reference = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A name, a folder, the id of its model, or owner/repo[:name][@revision].",
    ),
]
Published = Annotated[str, typer.Argument(metavar="OWNER/REPO[:NAME][@REV]")]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Propose it to somebody else's data set.")
]
Private = Annotated[bool, typer.Option("--private", help="Make a new data set private.")]
OldRepo = Annotated[str | None, typer.Argument(hidden=True)]
Repo = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Hub data set.")]
Make = Callable[[str, bool, str | None, Path], object]
"""Makes one of a model: told the model, whether to be quiet, the token, and an empty folder."""


def add_verbs(
    app: typer.Typer,
    store: str,
    noun: str,
    *,
    find: str | None = None,
    make: Make | None = None,
    own: Sequence[str] = (),
) -> None:
    """Gives a command the verbs of a kind of artifact.

    Args:
        app: Of the kind's command.
        store: The kind's `Store`, as `package:NAME`, imported when a verb is used.
        noun: What people call one, such as `probe`.
        find: In place of the store's `show`, a function that also finds what is elsewhere.
        make: For `push`: makes one of a model that none is found for.
        own: Verbs that the command has of its own.
    """

    def kept() -> Store[Any]:
        return _load(store)

    def shown(reference: str, **source: Any) -> Found[Any]:
        return (_load(find) if find else kept().show)(reference, **source)

    def list_command(json: options.Json = False) -> None:
        print_list(kept().list(), json)

    def show_command(
        reference: Reference,
        revision: options.Revision = None,
        token: options.Token = None,
        json: options.Json = False,
    ) -> None:
        print_found(shown(reference, revision=revision, token=token), json)

    def pull_command(
        reference: Published,
        revision: options.Revision = None,
        token: options.Token = None,
        force: Force = False,
    ) -> None:
        found = kept().pull(reference, revision=revision, token=token, force=force)
        typer.echo(str(found.origin), err=True)
        for remark in found.remarks:
            typer.echo(remark, err=True)
        typer.echo(str(found.folder))

    def push_command(
        reference: Reference,
        old_repo: OldRepo = None,
        repo: Repo = None,
        create_pr: CreatePr = False,
        private: Private = False,
        token: options.Token = None,
        quiet: options.Quiet = False,
    ) -> None:
        from modelassay.artifacts import check_repo_id

        if (where := repo or old_repo) is None:
            raise InputError("Give the Hub data set with --repo OWNER/NAME.")
        check_repo_id(where)
        how: dict[str, Any] = {"create_pr": create_pr, "private": private, "token": token}
        found = kept().here(reference)
        if found is None and make is not None:
            write = partial(make, reference, quiet, token)
            found, pushed = kept().push_new(write, where, **how)
        else:
            find_whole = _load(find) if find else kept().find
            found = found or find_whole(reference, token=token)
            pushed = kept().push(found, where, **how)
        typer.echo(pushed.pull_request or f"{pushed.repo_id}:{found.name}@{pushed.commit}")
        if old_repo is not None:
            say_new_name(f"push NAME {old_repo}", f"push NAME --repo {old_repo}")

    def search_command(
        model: Annotated[
            str | None, typer.Option(metavar="ID", help="Only those of this model.")
        ] = None,
        author: Annotated[str | None, typer.Option(help="Only those of this namespace.")] = None,
        token: options.Token = None,
        json: options.Json = False,
    ) -> None:
        print_listings(kept().search(model=model, author=author, token=token), json)

    def delete_command(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
        typer.echo(f"deleted {kept().delete(name)}", err=True)

    one = f"{'an' if noun[0] in 'aeiouS' else 'a'} {noun}"
    verbs = {
        "list": (list_command, f"List the {noun}s on this machine."),
        "show": (show_command, f"Print what {one} is and how good."),
        "pull": (pull_command, f"Fetch {one} from the Hub, check it, and keep it."),
        "push": (push_command, f"Publish {one} in a Hub data set, or propose it to one."),
        "search": (search_command, f"Find {noun}s on the Hub."),
        "delete": (delete_command, f"Delete {one} that you keep."),
    }
    for name, (command, text) in verbs.items():
        if name not in own:
            app.command(name, help=text)(command)
    if "show" not in own:
        app.command("info", hidden=True)(renamed("info", "show", show_command))


def print_list(found: Sequence[Found[Any]], json: bool) -> None:
    """What is on this machine."""
    if json:
        rows = [each.row() for each in found]
        typer.echo(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    items = []
    for each in found:
        by = f", by {each.origin.author}" if each.origin.author else ""
        what = each.kind.summary(each.record)
        items.append(f"{each.name} ({each.origin.source}{by}): {each.model_id}; {what}")
    show_sections(Section(items=tuple(items)))


def print_found(found: Found[Any], json: bool) -> None:
    """What one is, and what to know of who published it."""
    if json:
        typer.echo(json_module.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    lines = (*found.kind.describe(found.record), *found.remarks)
    show_sections(Section(items=(f"{found.name} ({found.origin})", *lines)))


def print_listings(found: Sequence[Any], json: bool) -> None:
    """Data sets on the Hub."""
    if json:
        typer.echo(json_module.dumps([vars(each) for each in found], indent=2))
        return
    rows = [
        (
            each.repo_id,
            ", ".join(each.models[:4]),
            str(each.downloads),
            (each.updated or "")[:10],
            (each.revision or "")[:12],
        )
        for each in found
    ]
    names = ("data set", "models", "downloads", "updated", "commit")
    show_sections(Section(table=Table(columns(*names, right=(2,)), rows)))


def show_sections(*sections: Section) -> None:
    """Prints sections on standard output."""
    from rich.console import Console

    from modelassay.report import print_report

    print_report(sections, Console())


def renamed(old: str, new: str, command: Callable[..., Any]) -> Callable[..., Any]:
    """A command under the name that it had, which says at last what it is called now."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        command(*args, **options)
        say_new_name(old, new)

    return run


def say_new_name(old: str, new: str) -> None:
    """Says on stderr what a command is called now."""
    typer.echo(f"`{old}` is now `{new}`.", err=True)


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
