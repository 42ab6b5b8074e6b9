"""Options that several commands share, and how a command takes them as one value.

    @options.grouped
    def scan_command(model: options.Model, loading: options.Loading, ...):
        scan(model, **loading)

`modelassay scan` then has an argument MODEL and the options --revision, --adapter, ... --token.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from typer.models import ArgumentInfo

from modelassay.cli.output import Output, show_progress
from modelassay.errors import InputError
from modelassay.hub.prices import Prices
from modelassay.models.refs import (
    LoadOptions,
    ModelOptions,
    ModelRef,
    check_device_name,
    check_dtype_name,
)
from modelassay.progress import OnPhase

if TYPE_CHECKING:
    from modelassay.guard import SecondOpinion, Thresholds
    from modelassay.probes.head import Head

ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`embedded`, `gemma`, `organism:NAME`, `gemma:NAME`, a Hub id, a folder, a .gguf"
        " file or a PEFT adapter.",
    ),
]
ConceptsFile = Annotated[
    Path | None,
    typer.Option(
        "--concepts",
        "--concepts-file",
        metavar="FILE",
        help="Concepts to put over the shipped ones.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Hub branch, tag or commit.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Load8bit = Annotated[bool, typer.Option("--load-8bit", help="Quantise to 8 bits on loading.")]
Load4bit = Annotated[bool, typer.Option("--load-4bit", help="Quantise to 4 bits on loading.")]
Token = Annotated[
    str | None, typer.Option(help="Hub token; better set HF_TOKEN.", envvar="HF_TOKEN")
]
NoChatTemplate = Annotated[
    bool, typer.Option("--no-chat-template", help="Read prompts as plain text, outside of it.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the repository's own Python code.")
]
Labels = Annotated[
    str | None,
    typer.Option(
        metavar="binary|three-class",
        help="What the labels 0 and 1 mean: safe and unsafe, or with 2 response, refusal and"
        " unsafe response; else the data tells.",
    ),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Most prompts in a batch.")]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds that one answer may take; 60 if left out.")
]
Attempts = Annotated[
    int | None,
    typer.Option(min=1, help="How often the endpoint is asked before giving up; 5 if left out."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON only.")]
HtmlReport = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a self-contained HTML report.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there already.")]


@dataclass(frozen=True)
class From:
    """Marks a parameter of a command whose value a function makes of options of its own."""

    make: Callable[..., Any]


def grouped(command: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a command take values that are made of several options.

    On the command line each parameter that is marked with `From` gives way to the parameters of its
    function, which may be marked so themselves. An option that is in several groups, or beside
    them, is one option.
    """
    own = inspect.signature(command, eval_str=True)
    shown, call = _take_apart(command)

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return call(given)

    def place(parameter: inspect.Parameter) -> int:
        """In the help, arguments come first, and the command's own options before the shared."""
        argument = any(isinstance(mark, ArgumentInfo) for mark in _marks(parameter))
        return 0 if argument else 1 if parameter.name in own.parameters else 2

    parameters = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in sorted(shown.values(), key=place)
    ]
    run.__dict__["__signature__"] = own.replace(parameters=parameters)
    run.__annotations__ = {name: each.annotation for name, each in shown.items()}
    return run


def with_groups(command: Callable[..., Any], **groups: Callable[..., Any]) -> Callable[..., Any]:
    """A command that was written elsewhere, with values that are made of several options.

    Args:
        command: The command.
        **groups: What makes the value of a parameter; where the command has no parameter of that
            name, its options are there and the value is not handed on.
    """
    own = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def run(**given: Any) -> Any:
        return command(**{name: value for name, value in given.items() if name in own.parameters})

    kind = inspect.Parameter.KEYWORD_ONLY
    made = {
        name: inspect.Parameter(name, kind, annotation=Annotated[Any, From(make)])
        for name, make in groups.items()
    }
    kept = {name: each.replace(kind=kind) for name, each in own.parameters.items()}
    run.__dict__["__signature__"] = own.replace(parameters=[*(kept | made).values()])
    return grouped(run)


def _take_apart(
    make: Callable[..., Any],
) -> tuple[dict[str, inspect.Parameter], Callable[[dict[str, Any]], Any]]:
    """The options that a function's parameters come down to, and a call of it with their values."""
    shown: dict[str, inspect.Parameter] = {}
    values: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for name, parameter in inspect.signature(make, eval_str=True).parameters.items():
        group = next((mark.make for mark in _marks(parameter) if isinstance(mark, From)), None)
        if group is None:
            shown[name], values[name] = parameter, operator.itemgetter(name)
        else:
            options, values[name] = _take_apart(group)
            shown |= options
    return shown, lambda given: make(**{name: value(given) for name, value in values.items()})


def _marks(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return getattr(parameter.annotation, "__metadata__", ())


@dataclass(frozen=True)
class _Parts:
    """What goes with MODEL."""

    revision: Revision = None
    adapter: Annotated[str | None, typer.Option(help="PEFT adapter to apply over MODEL.")] = None
    gguf_file: Annotated[
        str | None, typer.Option(help="GGUF file inside the folder or repository.")
    ] = None
    base: Annotated[
        str | None,
        typer.Option(help="Base of MODEL, an adapter that names none that can be found."),
    ] = None


def _model(model: ModelArg, parts: Annotated[_Parts, From(_Parts)]) -> ModelRef:
    return ModelRef(model, **vars(parts))


@dataclass(frozen=True)
class BaseParts:
    """What goes with BASE, of two models; as `PairOptions` name it."""

    base_revision: Annotated[
        str | None, typer.Option(help="Hub branch, tag or commit of BASE.")
    ] = None
    base_adapter: Annotated[
        str | None, typer.Option(metavar="ADAPTER", help="PEFT adapter over the base.")
    ] = None
    base_gguf_file: Annotated[
        str | None, typer.Option(help="GGUF file inside the folder or repository of BASE.")
    ] = None

    def of(self, model: str) -> ModelRef:
        """The model with them."""
        return ModelRef(model, self.base_revision, self.base_adapter, self.base_gguf_file)


@dataclass(frozen=True)
class CandidateParts:
    """What goes with CANDIDATE."""

    candidate_revision: Annotated[
        str | None, typer.Option(help="Hub branch, tag or commit of CANDIDATE.")
    ] = None
    candidate_adapter: Annotated[
        str | None,
        typer.Option(metavar="ADAPTER", help="PEFT adapter over the candidate, or BASE."),
    ] = None
    candidate_gguf_file: Annotated[
        str | None, typer.Option(help="GGUF file inside the folder or repository of CANDIDATE.")
    ] = None

    def of(self, model: str) -> ModelRef:
        """The model with them."""
        return ModelRef(
            model, self.candidate_revision, self.candidate_adapter, self.candidate_gguf_file
        )


def _base(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before, as for `scan`.")],
    parts: Annotated[BaseParts, From(BaseParts)],
    revision: Annotated[
        str | None, typer.Option(hidden=True, help="The name that --base-revision had.")
    ] = None,
) -> ModelRef:
    if None not in (revision, parts.base_revision):
        raise InputError("--revision is --base-revision; give one of them.")
    return replace(parts.of(base), revision=revision or parts.base_revision)


def _candidate(
    candidate: Annotated[
        str, typer.Argument(metavar="CANDIDATE", help="The model after; a PEFT adapter will do.")
    ],
    parts: Annotated[CandidateParts, From(CandidateParts)],
) -> ModelRef:
    return parts.of(candidate)


def _load_as_trained(
    device: Device = "auto",
    dtype: Dtype = "auto",
    load_8bit: Load8bit = False,
    load_4bit: Load4bit = False,
    token: Token = None,
    trust_remote_code: TrustRemoteCode = False,
) -> LoadOptions:
    if load_8bit and load_4bit:
        raise InputError("Choose one of --load-8bit and --load-4bit.")
    check_device_name(device)
    check_dtype_name(dtype)
    return {
        "device": device,
        "dtype": dtype,
        "quantization": "8bit" if load_8bit else "4bit" if load_4bit else None,
        "token": token,
        "trust_remote_code": trust_remote_code,
    }


def _load_options(
    loading: Annotated[LoadOptions, From(_load_as_trained)],
    no_chat_template: NoChatTemplate = False,
) -> LoadOptions:
    return {**loading, "chat_template": not no_chat_template}


def _progress(quiet: Quiet = False) -> Callable[[], AbstractContextManager[OnPhase]]:
    return functools.partial(show_progress, quiet=quiet)


def _json_output(json: Json = False) -> Output:
    return Output(json)


def _output(json: Json = False, html: HtmlReport = None) -> Output:
    return Output(json, html)


def _layers(
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            "--layer",
            metavar="I,J,…",
            help="Layers to read, -1 for the last; spread over the depth if left out.",
        ),
    ] = None,
) -> tuple[int, ...] | None:
    if layers is None:
        return None
    try:
        found = tuple(int(part) for part in layers.split(","))
    except ValueError as error:
        raise InputError(
            "--layers takes numbers with commas between them, such as 3,9,28 or, from the end,"
            f" -4,-1, not {layers[:60]!r}."
        ) from error
    if len(set(found)) != len(found):
        raise InputError(f"--layers names a layer twice in {layers[:60]}.")
    return found


def _max_examples(
    max_examples: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most rows to use, drawn evenly over labels and sources, always the same ones; 0"
            " for all.",
        ),
    ] = None,
) -> int | None:
    if max_examples == 1:
        raise InputError("--max-examples is at least 2, or 0 for all, not 1.")
    return max_examples


def _prices(
    max_cost: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Stop when X is spent, over all runs together; needs both prices."
        ),
    ] = None,
    price_in: Annotated[
        float | None,
        typer.Option(metavar="X", help="What the endpoint takes for a million tokens sent."),
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(metavar="X", help="What it takes for a million tokens received.")
    ] = None,
) -> Prices:
    return Prices(price_in, price_out, max_cost)


Model = Annotated[ModelRef, From(_model)]
"""MODEL and what goes with it: --revision, --adapter, --gguf-file, --base."""
Base = Annotated[ModelRef, From(_base)]
"""BASE and what goes with it, of two models."""
Candidate = Annotated[ModelRef, From(_candidate)]
"""CANDIDATE and what goes with it."""
Loading = Annotated[LoadOptions, From(_load_options)]
"""How models are loaded: --device, --dtype, --load-8bit, --load-4bit, --token, --trust-remote-code,
and how prompts are read: --no-chat-template."""
LoadingAsTrained = Annotated[LoadOptions, From(_load_as_trained)]
"""The same for what only means something inside a model's chat template."""


Spending = Annotated[Prices, From(_prices)]
"""What may be spent at an endpoint: --max-cost, --price-in, --price-out."""


def _model_options(parts: Annotated[_Parts, From(_Parts)], loading: Loading) -> ModelOptions:
    return cast("ModelOptions", {**vars(parts), **loading})


AnyModel = Annotated[ModelOptions, From(_model_options)]
"""All of these, for a command that finds its model by other means."""
Progress = Annotated[Callable[[], AbstractContextManager[OnPhase]], From(_progress)]
"""--quiet; `with progress() as on_progress` shows progress on standard error."""
JsonReport = Annotated[Output, From(_json_output)]
"""--json, of a report."""
Reported = Annotated[Output, From(_output)]
"""--json and --html, of a report."""
Layers = Annotated[tuple[int, ...] | None, From(_layers)]
"""--layers."""
MaxExamples = Annotated[int | None, From(_max_examples)]
"""--max-examples, of labelled rows."""


@dataclass(frozen=True)
class ThresholdOptions:
    """Risks at which a guard acts, as they were given; None leaves the probe's own."""

    pause: float | None
    block: float | None

    def __post_init__(self) -> None:
        """Refuses, before a model is loaded, what no probe's own thresholds could make right."""
        if self:
            from modelassay.guard import Thresholds

            highest = 1.0 if self.block is None else self.block
            Thresholds(highest if self.pause is None else self.pause, highest)

    def __bool__(self) -> bool:
        return (self.pause, self.block) != (None, None)

    def over(self, head: Head) -> Thresholds:
        """These where they were given, else those of a probe's head."""
        from modelassay.guard import Thresholds

        return Thresholds(
            head.pause if self.pause is None else self.pause,
            head.block if self.block is None else self.block,
        )


def _response_limits(
    pause: Annotated[
        float | None, typer.Option(help="Risk of the response from which it is held back.")
    ] = None,
    block: Annotated[
        float | None, typer.Option(help="Risk of the response from which it is refused.")
    ] = None,
) -> ThresholdOptions:
    return ThresholdOptions(pause, block)


def _prompt_limits(
    prompt_pause: Annotated[
        float | None,
        typer.Option(help="Risk of the prompt from which the response begins held back."),
    ] = None,
    prompt_block: Annotated[
        float | None, typer.Option(help="Risk of the prompt from which it is refused.")
    ] = None,
) -> ThresholdOptions:
    return ThresholdOptions(prompt_pause, prompt_block)


def _guard_parts(
    probe: Annotated[
        str | None, typer.Option(help="A probe; the one fitted on MODEL if left out.")
    ] = None,
    classifier: Annotated[
        str, typer.Option(help="`embedded`, a folder, a Hub id, or `none`.")
    ] = "embedded",
    monitor: Annotated[
        str | None, typer.Option(help="A monitor to watch besides; it alerts and changes nothing.")
    ] = None,
) -> dict[str, Any]:
    judge = None if classifier.lower() == "none" else classifier
    return {"probe": probe, "classifier": judge, "monitor": monitor}


def _second_opinion(
    block_at: Annotated[
        float | None,
        typer.Option(
            "--block-at",
            "--classifier-block-threshold",
            help="P(unsafe) from which the classifier refuses a response; else its own threshold,"
            " at most 0.9.",
        ),
    ] = None,
    uncertain_at: Annotated[
        float | None,
        typer.Option(
            "--uncertain-at",
            "--classifier-allow-threshold",
            help="P(unsafe) from which the classifier is uncertain: the response stays held and is"
            " read again; else its own threshold, if it has one.",
        ),
    ] = None,
    when_uncertain: Annotated[
        str,
        typer.Option(metavar="show|refuse", help="What becomes of a response that ends in doubt."),
    ] = "show",
    final_check: Annotated[
        bool,
        typer.Option(
            "--final-check",
            "--final-classifier-check",
            help="Have the classifier read every response before its end is shown.",
        ),
    ] = False,
    keep_back: Annotated[
        int | None,
        typer.Option(min=1, help="Newest tokens that wait for the final check; 24 if left out."),
    ] = None,
) -> Any:
    from modelassay.guard import SecondOpinion

    if keep_back is not None and not final_check:
        raise InputError("--keep-back needs --final-check.")
    kept = {} if keep_back is None else {"keep_back": keep_back}
    return SecondOpinion(
        block_at, uncertain_at, cast("Any", when_uncertain), final_check=final_check, **kept
    )


def check_opinion(opinion: SecondOpinion, parts: Mapping[str, Any]) -> None:
    """Refuses, before a model is loaded, options of a classifier where there is none.

    Args:
        opinion: From `Opinion`.
        parts: From `GuardParts`.

    Raises:
        InputError: says what to do.
    """
    from modelassay.guard import SecondOpinion

    if parts["classifier"] is None and opinion != SecondOpinion():
        raise InputError(
            "--block-at, --uncertain-at and --final-check are for a classifier; leave them or"
            " --classifier none out."
        )


def _sampling(
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Share of probability to sample from.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
) -> Any:
    from modelassay.guard import Sampling

    return Sampling(temperature=temperature, top_p=top_p, seed=seed)


ResponseLimits = Annotated[ThresholdOptions, From(_response_limits)]
"""--pause and --block."""
PromptLimits = Annotated[ThresholdOptions, From(_prompt_limits)]
"""--prompt-pause and --prompt-block."""
GuardParts = Annotated[dict[str, Any], From(_guard_parts)]
"""--probe, --classifier and --monitor, as `load_guard` takes them."""
Opinion = Annotated[Any, From(_second_opinion)]
"""--block-at, --uncertain-at, --when-uncertain, --final-check and --keep-back, as a
`SecondOpinion`."""
SamplingOptions = Annotated[Any, From(_sampling)]
"""--temperature, --top-p and --seed, as a `Sampling`."""
