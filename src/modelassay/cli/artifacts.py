"""The verbs that every kind of artifact has: list, show, pull, push, search, delete."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.output import give
from modelassay.errors import InputError, with_article
from modelassay.report.sections import Section, Table, columns

if TYPE_CHECKING:
    from modelassay.artifacts import Store

NAMED = "A name, a folder, the id of its model, or owner/repo[:name][@revision]."
Reference = Annotated[str, typer.Argument(metavar="NAME", help=NAMED)]
Published = Annotated[str, typer.Argument(metavar="OWNER/REPO[:NAME][@REV]")]
CreatePr = Annotated[
    bool, typer.Option("--create-pr", help="Propose it to somebody else's data set.")
]
Private = Annotated[bool, typer.Option("--private", help="Make a new data set private.")]
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
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda verb: verb,
) -> None:
    """Gives a command the verbs of a kind of artifact.

    Args:
        app: Of the kind's command.
        store: The kind's `Store`, as `package:NAME`, imported when a verb is used.
        noun: What people call one, such as `probe`.
        find: In place of the store's `show`, a function that also finds what is elsewhere.
        make: For `push`: makes one of a model that none is found for.
        own: Verbs that the command has of its own.
        wrap: Gives each verb an option that all verbs of this kind have.
    """
    command = f"modelassay {noun.lower()}"

    def kept() -> Store[Any]:
        return _load(store)

    def list_command(json: options.Json = False) -> None:
        found = kept().list()
        items = []
        for each in found:
            by = f", by {each.origin.author}" if each.origin.author else ""
            what = each.kind.summary(each.record)
            items.append(f"{each.name} ({each.origin.source}{by}): {each.model_id}; {what}")
        give([each.row() for each in found], json, Section(items=tuple(items)))

    def show_command(
        reference: Reference,
        revision: options.Revision = None,
        token: options.Token = None,
        json: options.Json = False,
    ) -> None:
        found = (_load(find) if find else kept().show)(reference, revision=revision, token=token)
        lines = (*found.kind.describe(found.record), *found.remarks)
        give(found.to_dict(), json, Section(items=(f"{found.name} ({found.origin})", *lines)))

    def pull_command(
        reference: Published,
        revision: options.Revision = None,
        token: options.Token = None,
        force: options.Force = False,
    ) -> None:
        found = kept().pull(reference, revision=revision, token=token, force=force)
        typer.echo(str(found.origin), err=True)
        for remark in found.remarks:
            typer.echo(remark, err=True)
        typer.echo(str(found.folder))

    def push_command(
        context: typer.Context,
        reference: Reference,
        repo: Repo = None,
        create_pr: CreatePr = False,
        private: Private = False,
        token: options.Token = None,
        quiet: options.Quiet = False,
    ) -> None:
        from modelassay.artifacts import check_repo_id

        old = context.args  # where the data set was once given
        if len(old) > 1:
            raise InputError(f"Got unexpected extra argument ({old[1]})")
        if (where := repo or next(iter(old), None)) is None:
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
        if old:
            say_new_name(f"{command} push NAME {old[0]}", f"{command} push NAME --repo {old[0]}")

    def search_command(
        model: Annotated[
            str | None, typer.Option(metavar="ID", help="Only those of this model.")
        ] = None,
        author: Annotated[str | None, typer.Option(help="Only those of this namespace.")] = None,
        token: options.Token = None,
        json: options.Json = False,
    ) -> None:
        found = kept().search(model=model, author=author, token=token)
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
        table = Table(columns(*names, right=(2,)), rows)
        give([vars(each) for each in found], json, Section(table=table))

    def delete_command(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
        typer.echo(f"deleted {kept().delete(name)}", err=True)

    one = with_article(noun)
    verbs = {
        "list": (list_command, f"List the {noun}s on this machine."),
        "show": (show_command, f"Print what {one} is and how good."),
        "pull": (pull_command, f"Fetch {one} from the Hub, check it, and keep it."),
        "push": (push_command, f"Publish {one} in a Hub data set, or propose it to one."),
        "search": (search_command, f"Find {noun}s on the Hub."),
        "delete": (delete_command, f"Delete {one} that you keep."),
    }
    for name, (verb, text) in verbs.items():
        if name not in own:
            more = {"allow_extra_args": name == "push"}
            app.command(name, help=text, context_settings=more)(wrap(verb))
    if "show" not in own:
        add_old_info(app, command, wrap(show_command))


def add_old_info(app: typer.Typer, command: str, show: Callable[..., Any]) -> None:
    """Gives a command `info`, the name that `show` had, which says at last what it is now."""

    @app.command("info", hidden=True)
    @wraps(show)
    def run(*args: Any, **options: Any) -> None:
        show(*args, **options)
        say_new_name(f"{command} info", f"{command} show")


def say_new_name(old: str, new: str) -> None:
    """Says on stderr what a command is called now."""
    typer.echo(f"`{old}` is now `{new}`.", err=True)


def _load(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
