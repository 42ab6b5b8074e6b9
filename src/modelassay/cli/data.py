"""`modelassay data`: build labelled exchanges from public sets, and have a teacher label more."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.output import GATED, check_file, give
from modelassay.errors import InputError
from modelassay.progress import phase_of
from modelassay.report.sections import Column, Section, Table, columns
from modelassay.report.text import plain_line

if TYPE_CHECKING:
    from modelassay.data.building import BuiltData
    from modelassay.data.teaching import TaughtData
    from modelassay.hub.chat_completions import ChatModel

app = typer.Typer(
    help="Build training data from public sets, and label it by a teacher.", no_args_is_help=True
)
SHOWN = 12
"""Numbers of rows that are named for one reason; --json has all."""

Out = Annotated[Path, typer.Option(metavar="FILE", help="JSON lines to write.")]
SplitOption = Annotated[str | None, typer.Option(help="Split of a Hub data set.")]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")]


@app.command("sets")
def sets_command(json: options.Json = False) -> None:
    """List the public sets whose layouts `data build` reads."""
    from modelassay.data.public_sets import PUBLIC_SETS

    rows, cells = [], []
    for each in PUBLIC_SETS:
        row = {name: value for name, value in vars(each).items() if name != "read"}
        rows.append(row | {"columns": list(each.columns), "labels_at": list(each.labels_at)})
        of = " and ".join("response" if at == "answer" else at for at in each.labels_at)
        gated = "yes" if each.gated else "no"
        cells.append((each.name, each.where, each.config or "-", each.split, of, gated))
    names = ("set", "data set", "config", "split", "labels of", "gated")
    shown = [Column(name, shown="wide" if name == "config" else "always") for name in names]
    give(rows, json, Section(table=Table(tuple(shown), cells), note=GATED))


@app.command("build")
@options.grouped
def build_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A name of `data sets`, a Hub id, or a file in such a layout."
        ),
    ],
    out: Out,
    progress: options.Progress,
    config: ConfigOption = None,
    split: SplitOption = None,
    at: Annotated[
        str, typer.Option(metavar="answer|prompt", help="What is labelled: response or prompt.")
    ] = "answer",
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Most rows.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw --limit rows by this seed, not the first ones."),
    ] = None,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Draw as many rows of each label.")
    ] = False,
    per_prompt: Annotated[
        int, typer.Option(min=0, metavar="N", help="Most rows of one prompt; 0 for all.")
    ] = 1,
    three_class: Annotated[
        bool,
        typer.Option(
            "--three-class", help="Tell refusals among safe responses by rules, for a classifier."
        ),
    ] = False,
    without: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Leave out prompts that are in FILE, a test set say."),
    ] = None,
    labels: options.Labels = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence to note in each row; else the data set's own.")
    ] = None,
    force: options.Force = False,
    token: options.Token = None,
    json: options.Json = False,
) -> None:
    """Write rows of a public set as exchanges {prompt, response, label, source, …}.

    A stopped build goes on where it was with the same command.
    """
    from modelassay.data.building import BuildOptions, build_data
    from modelassay.data.labels import check_scheme

    asked: Any = at  # an unknown one is refused by the options
    chosen = BuildOptions(asked, limit, seed, balanced, per_prompt, check_scheme(labels), licence)
    check_file(out, "--out")
    is_refusal = None
    if three_class:
        from modelassay.measures.refusal_judge import is_refusal
    with progress() as on_phase:
        built = build_data(
            source,
            out,
            chosen,
            config=config,
            split=split,
            without=without,
            is_refusal=is_refusal,
            token=token,
            force=force,
            on_progress=phase_of(on_phase, "building"),
        )
    give(asdict(built), json, *_of_build(built))


def _of_build(built: BuiltData) -> list[Section]:
    """What was built, and what was left out."""
    rows = [(label, str(n)) for label, n in built.labels.items()]
    drawn = "drawn" if built.sampled else "taken in order"
    place = ", ".join(filter(None, (built.config, built.split)))
    lines = [
        f"{built.file}: {built.rows} rows of {built.source}{f' ({place})' if place else ''},"
        f" {drawn}, {built.rows_read} read; licence {built.licence or 'unknown'}"
    ]
    if built.resumed_at:
        lines.append(f"A stopped build had read {built.resumed_at} rows; it went on from there.")
    if "none" in built.labels:
        lines.append(
            "The set says nothing of responses: rows without a label are for `data label`."
        )
    left = [(why, str(n), str(built.first_left_out[why])) for why, n in built.left_out.items()]
    sections = [
        Section(table=Table(columns("label", "rows", right=(1,)), rows), lines=tuple(lines))
    ]
    if left:
        names = columns("left out because", "rows", "first row", right=(1, 2))
        sections.append(Section(table=Table(names, left)))
    return sections


@dataclass(frozen=True)
class _Teacher:
    """Who labels."""

    endpoint: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint, such as https://host/v1; prompts and responses are"
            " sent there, with the key in OPENAI_API_KEY.",
        ),
    ]
    model: Annotated[
        list[str],
        typer.Option(
            metavar="NAME", help="Model there; give several times, and all must say the same."
        ),
    ]
    timeout: options.Timeout = None
    attempts: options.Attempts = None

    def opened(self, name: str = "The teacher", **settings: Any) -> list[ChatModel]:
        """The models; nothing is sent yet.

        Args:
            name: What an error calls it.
            **settings: Of the request.
        """
        from modelassay.hub.chat_completions import ATTEMPTS, SETTINGS, TIMEOUT, open_chat

        twice = next((name for name in self.model if self.model.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"--model {twice} is given twice; name different ones.")
        return [
            open_chat(
                self.endpoint,
                model,
                name=name,
                url_option="--endpoint",
                model_option="--model",
                advice="run the same command again to go on where it stopped.",
                settings={**SETTINGS, **settings},
                timeout=TIMEOUT if self.timeout is None else self.timeout,
                attempts=self.attempts or ATTEMPTS,
            )
            for model in self.model
        ]


def _budget(
    prices: options.Spending,
    max_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N rows.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop when N tokens are used.")
    ] = None,
) -> Any:
    from modelassay.data.teaching import Budget

    return Budget(max_rows, max_tokens, prices)


@app.command("label")
@options.grouped
def label_command(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Exchanges to label: a file or Hub data set.")
    ],
    out: Out,
    teacher: Annotated[_Teacher, options.From(_Teacher)],
    budget: Annotated[Any, options.From(_budget)],
    progress: options.Progress,
    config: ConfigOption = None,
    split: SplitOption = None,
    recheck: Annotated[
        bool,
        typer.Option("--recheck", help="Ask about rows that have a label too, to compare."),
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Ask again where no plain verdict was given.")
    ] = False,
    labels: options.Labels = None,
    force: options.Force = False,
    token: options.Token = None,
    json: options.Json = False,
) -> None:
    """Label the exchanges in FILE by what a language model says, and write those with a label.

    Answers are kept as they come: the same command goes on after a stop, and asks nothing twice.
    Rows without a plain verdict, or on which models disagree, get no label and are named.
    """
    from modelassay.data.labels import check_scheme
    from modelassay.data.teaching import label_data

    scheme = check_scheme(labels)
    teachers = teacher.opened()
    check_file(out, "--out")
    with progress() as on_phase:
        found = label_data(
            file,
            out,
            teachers,
            budget,
            config=config,
            split=split,
            recheck=recheck,
            retry=retry,
            labels=scheme,
            token=token,
            force=force,
            on_progress=phase_of(on_phase, "teaching"),
        )
    give(asdict(found), json, *_of_labels(found))


@app.command("answer")
@options.grouped
def answer_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Prompts: a file or Hub data set.")],
    out: Out,
    writer: Annotated[_Teacher, options.From(_Teacher)],
    budget: Annotated[Any, options.From(_budget)],
    progress: options.Progress,
    config: ConfigOption = None,
    split: SplitOption = None,
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=4096, help="Most tokens of an answer.")
    ] = 256,
    force: options.Force = False,
    token: options.Token = None,
    json: options.Json = False,
) -> None:
    """Have a language model answer the prompts in FILE harmlessly, and write the exchanges.

    For prompts that a guard stops wrongly. Rows that have a response stay as they are, refusals are
    left out, and no row gets a label: `data label` asks for one. Answers are kept as they come, as
    with `data label`.
    """
    from modelassay.data.answering import answer_data
    from modelassay.measures.refusal_judge import is_refusal

    if len(writer.model) > 1:
        raise InputError("One model answers; give --model once.")
    (chat,) = writer.opened("The endpoint", max_tokens=answer_tokens)
    check_file(out, "--out")
    with progress() as on_phase:
        found = answer_data(
            file,
            out,
            chat,
            is_refusal,
            budget,
            config=config,
            split=split,
            token=token,
            force=force,
            on_progress=phase_of(on_phase, "teaching"),
        )
    lines = [
        f"{found.file}: {found.answered} rows answered by {plain_line(found.model)},"
        f" {found.had_response} had a response"
    ]
    if found.tokens_in is not None and found.tokens_out is not None:
        cost = "" if found.cost is None else f", cost {found.cost:.4g}"
        lines.append(f"{found.tokens_in} tokens of prompts, {found.tokens_out} of answers{cost}")
    if found.stopped_by is not None:
        lines.append(
            f"Stopped by {found.stopped_by}: {found.left} rows are left. The same command with a"
            " larger bound goes on."
        )
    cells = [(why, str(n)) for why, n in found.left_out.items()]
    left = Table(columns("no answer because", "rows", right=(1,)), cells) if cells else None
    give(asdict(found), json, Section(table=left, lines=tuple(lines)))


def _of_labels(found: TaughtData) -> list[Section]:
    """What was labelled, what was not, and what it took."""
    rows = [(label, str(n)) for label, n in found.labels.items()]
    lines = [
        f"{found.file}: {found.labelled} of {found.rows} rows have a label;"
        f" {', '.join(found.models)} was asked about {found.asked}"
    ]
    if found.had_label:
        lines.append(f"{found.had_label} rows had a label and were not asked about.")
    if found.other_hosts:
        hosts = ", ".join(map(plain_line, found.other_hosts))
        lines.append(f"Answers that were kept before came from {hosts}.")
    if found.agreed is not None:
        lines.append(f"{found.agreed} rows had a label that the teacher confirms.")
    if found.tokens_in is not None and found.tokens_out is not None:
        cost = "" if found.cost is None else f", cost {found.cost:.4g}"
        lines.append(f"{found.tokens_in} tokens of prompts, {found.tokens_out} of answers{cost}")
    else:
        lines.append("The endpoint does not tell how many tokens it used.")
    if found.stopped_by is not None:
        lines.append(
            f"Stopped by {found.stopped_by}: {found.left} rows are left. The same command with a"
            " larger bound goes on."
        )
    sections = [
        Section(table=Table(columns("label", "rows", right=(1,)), rows), lines=tuple(lines))
    ]
    if found.unlabelled:
        cells = [(why, str(n), _numbers(found.named[why])) for why, n in found.unlabelled.items()]
        names = columns("no label because", "rows", "which", right=(1,))
        sections.append(Section(table=Table(names, cells)))
    return sections


def _numbers(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:SHOWN]))
    return shown if len(rows) <= SHOWN else f"{shown}, … (--json names all)"
