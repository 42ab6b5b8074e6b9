"""Training a probe: features once, a fit per kind, metrics on prompts that no fit saw.

The default probes follow a shipped recipe: the prompt's head learns from prompts of 21 sources
(`training_data`), the response's from the exchanges that the classifier learns from. An exchange
without a prompt is read after a neutral one, because a guarded response always follows something.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.classifier.recipe import recipe_rows
from modelassay.data.fingerprints import fingerprints
from modelassay.data.labelled import (
    At,
    LabelledExchange,
    data_hash,
    draw,
    prompt_groups,
    require_classes,
    rows_at,
)
from modelassay.data.training_data import prompt_head_rows
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import LoadedModel
from modelassay.models.layers import resolve_layers
from modelassay.probes.features import (
    CHECKPOINTS,
    DENSE,
    MAX_RESPONSE_TOKENS,
    POOLINGS,
    pooled_features,
    read_spans,
)
from modelassay.probes.fitting import (
    EPOCHS,
    FITTERS,
    MIN_PROMPTS,
    RATE,
    Readout,
    calibrated,
    check_classes,
    factored_fit,
    fit_attention,
    left_out_scores,
    linear_fit,
)
from modelassay.probes.head import (
    ComplyReadout,
    Head,
    Pooling,
    SpanRisks,
    block_rates,
    choose_thresholds,
    reached_thresholds,
    span_risks,
)
from modelassay.probes.lessons import (
    Judge,
    TokenLabels,
    TokenWeights,
    check_lesson,
    check_spans,
    make_lesson,
)
from modelassay.probes.record import (
    STATED,
    HeadRecord,
    Metrics,
    Probe,
    ProbeRecord,
    SourceMetrics,
    TrainedOn,
)
from modelassay.probes.surface import left_out_sources
from modelassay.progress import OnPhase, OnProgress, phase_of, silent
from modelassay.statistics import binary_metrics

Array = np.ndarray
GRADIENT_KINDS = ("attention",)
"""Kinds that are trained by gradient, in epochs; the others are solved at once."""
FACTORED = "factored"
SOLVED = (*FITTERS, FACTORED)
KINDS = (*SOLVED, *GRADIENT_KINDS)
DEPTHS = (1 / 3, 8 / 15, 11 / 15)
"""Relative depths of the layers that a probe reads unless told otherwise; together they are better
than any one of them on every source that was tried (docs/guard.md)."""
NO_WEIGHTS = "0" * 64  # until the weights are on disk
NEUTRAL_PROMPTS = ("Go on.", "Please continue.", "Write a short text.", "Answer my question.")
MOST_TEXTS = 2000
"""Prompts that the recipe's factored head reads as texts."""
RESPONSE_TOKENS = 96
"""Longer responses cost more and teach an average over their tokens little."""


@dataclass(frozen=True)
class TrainedHead:
    """A head and what is known of it."""

    head: Head
    record: HeadRecord

    @property
    def metrics(self) -> Metrics:
        """Scores on prompts that it was not fitted on."""
        assert self.record.metrics is not None  # noqa: S101 (only another tool's heads lack them)
        return self.record.metrics


def default_layers(n_layers: int) -> tuple[int, ...]:
    """The layers at `DEPTHS`."""
    return tuple(dict.fromkeys(min(n_layers - 1, round(depth * n_layers)) for depth in DEPTHS))


def train_head(
    model: LoadedModel,
    rows: Sequence[LabelledExchange],
    at: At,
    *,
    kind: str = "logistic",
    layers: Sequence[int] | None = None,
    group_by: Sequence[str] | None = None,
    max_response_tokens: int = MAX_RESPONSE_TOKENS,
    max_examples: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    token_labels: TokenLabels = "exchange",  # noqa: S107 (no password)
    token_weights: TokenWeights = "even",  # noqa: S107
    judge: Judge | None = None,
    texts: Sequence[LabelledExchange] = (),
    on_progress: OnProgress | None = None,
) -> TrainedHead:
    """Fits a head and scores it on prompts that it was not fitted on.

    Args:
        model: The model that it will watch.
        rows: Labelled exchanges; at the prompt they count as `labelled.rows_at` says.
        at: Where it reads.
        kind: One of `KINDS`.
        layers: Layers to read, negative ones counted from the end; None for those at `DEPTHS` (of
            attention, the middle one).
        group_by: What stands for each row's prompt in splits; None for the prompt itself.
        max_response_tokens: Where responses are cut.
        max_examples: Most rows to learn from, drawn evenly over labels and sources; None for all.
        epochs: Of a kind that is trained by gradient, passes over the data; None for `EPOCHS`.
        learning_rate: Of such a kind; None for `RATE`.
        token_labels: What the samples of a response are labelled by, see `probes.lessons`.
        token_weights: How they count.
        judge: The classifier that labels them, if one does.
        texts: Prompts or other texts that are harmful or not by themselves. A head of responses
            reads them as responses and learns from them, and is not scored on them.
        on_progress: Told how far reading is.

    Raises:
        InputError: what `check_training`, `check_lesson` and `check_spans` refuse, a layer out of
            range, a classifier that is missing, or data without both classes.
    """
    check_training(kind, layers, epochs, learning_rate)
    check_place(at, kind, texts=bool(texts))
    check_lesson(at, kind, token_labels, token_weights)
    check_spans(token_labels, rows)
    if token_labels == "classifier" and judge is None:
        raise InputError("token_labels='classifier' needs the classifier as `judge`.")
    rows = rows if group_by else rows_at(rows, at)
    require_classes(rows, (True, False), "A probe")
    drawn = draw(rows, max_examples)
    drawn_from = len(rows) if len(drawn) < len(rows) else None
    rows = [rows[i] for i in drawn]
    group_by = [group_by[i] for i in drawn] if group_by else None
    if kind == FACTORED:
        check_refusals(rows)
    chosen = tuple(layers) if layers else default_layers(len(model.layers))
    by_gradient: dict[str, Any] = {}
    if kind in GRADIENT_KINDS:
        chosen = (chosen[len(chosen) // 2],)
        by_gradient = {"epochs": epochs or EPOCHS, "learning_rate": learning_rate or RATE}
    chosen = resolve_layers(chosen, len(model.layers))
    names = list(group_by) if group_by else [row.prompt for row in rows]
    every = [*rows, *as_responses(texts)]
    names += [text.prompt for text in texts]
    n = len(rows)
    groups = prompt_groups(names)
    unsafe = np.array([row.unsafe for row in rows])
    options: dict[str, Any] = {
        "max_response_tokens": max_response_tokens,
        "on_progress": on_progress,
    }
    left_out: dict[str, SourceMetrics] = {}
    risks: SpanRisks | None = None
    pools: tuple[Pooling, ...] = POOLINGS
    if kind == "attention":
        pools = ("attention",)
        activations = {i: each[:, 0] for i, each in read_spans(model, rows, at, chosen, **options)}
        fit = fit_attention(
            [activations[i] for i in range(len(rows))], unsafe, groups, **by_gradient
        )
        fold = fit.fold
        spans: Iterable[tuple[int, Tensor]] = (
            (i, each[:, None]) for i, each in activations.items()
        )
    else:
        alike = token_labels == "exchange" and token_weights != "soft"
        lengths = CHECKPOINTS if alike else DENSE
        features = pooled_features(model, every, at, layers=chosen, lengths=lengths, **options)
        x, of = features.values.float().flatten(1).numpy(), features.row
        lesson = make_lesson(model, every, features, token_labels, token_weights, judge)
        if kind == FACTORED:
            fit_rows = factored_fit(x, groups[of], lesson, refusals(every)[of])
        else:
            fit_rows = linear_fit(x, groups[of], lesson, FITTERS[kind])
        fit = calibrated(fit_rows, x, lesson.unsafe >= 0.5, groups[of])
        fold = fit.fold[features.last][:n]
        last, labels = features.last, np.array([row.unsafe for row in every])
        left_out = left_out_sources(
            every,
            n,
            at,
            groups,
            lambda sources: left_out_scores(fit_rows, x, labels, groups, sources, lesson, last),
            max_response_tokens,
        )
        if at == "prompt":  # one sample a row, and that is where a guard asks
            risks = SpanRisks(fit.risk, fit.risk)
        # The fit saw responses at a few lengths; it is judged at every token.
        spans = read_spans(model, rows, at, chosen, **options)

    def head(readout: Readout, pause: float = 1.0, block: float = 1.0) -> Head:
        shape = (len(chosen), len(pools), model.info.hidden_size)
        weight = torch.from_numpy(readout.weight).float().reshape(shape)
        query = None if readout.query is None else torch.from_numpy(readout.query).float()[None]
        comply = None
        if (second := readout.comply) is not None:
            also = torch.from_numpy(second.weight).float().reshape(shape)
            comply = ComplyReadout(also, second.bias, second.slope, second.offset)
        return Head(at, kind, chosen, pools, weight, readout.bias, pause, block, query, comply)

    risks = risks or span_risks(spans, [head(readout) for readout in fit.folds], fold)
    served = head(fit.readout, *choose_thresholds(risks.highest[~unsafe]))
    paused, blocked = reached_thresholds(risks.highest, unsafe, fold)
    record = HeadRecord.model_validate(
        {
            "kind": kind,
            "layers": chosen,
            "poolings": pools,
            "bias": served.bias,
            "comply": served.comply
            and {name: getattr(served.comply, name) for name in ("bias", "slope", "offset")},
            "pause": served.pause,
            "block": served.block,
            **block_rates(blocked, unsafe),
            "pause_rate": float(paused[~unsafe].mean()),
            "held_rate": float(paused[unsafe].mean()),
            "metrics": binary_metrics(risks.final, unsafe, groups[:n]).to_dict(),
            "left_out": left_out,
            "trained_on": _trained_on(every, names, drawn_from),
            "token_labels": token_labels,
            "token_weights": token_weights,
            **by_gradient,
        }
    )
    return TrainedHead(served, record)


def as_responses(texts: Sequence[LabelledExchange]) -> list[LabelledExchange]:
    """Texts as responses to prompts that say nothing."""
    return [
        replace(
            text,
            prompt=NEUTRAL_PROMPTS[i % len(NEUTRAL_PROMPTS)],
            response=text.prompt,
            label=None,
            source=f"texts: {text.source}",
        )
        for i, text in enumerate(texts)
    ]


def check_training(
    kind: str,
    layers: Sequence[int] | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
) -> None:
    """Refuses, without a model, what no head can be trained by; arguments as in `train_head`.

    Raises:
        InputError: an unknown kind, more layers than it reads, or settings that it does not have.
    """
    if kind not in KINDS:
        raise InputError(f"Unknown kind {kind!r}; choose {', '.join(KINDS)}.")
    if kind in GRADIENT_KINDS and len(layers or ()) > 1:
        raise InputError(f"Attention pools one layer; give one, not {list(layers or ())}.")
    for option, value in (("--epochs", epochs), ("--learning-rate", learning_rate)):
        if value is not None and kind not in GRADIENT_KINDS:
            raise InputError(
                f"{option} is for kinds that are trained by gradient ({', '.join(GRADIENT_KINDS)});"
                f" {', '.join(SOLVED)} are solved at once."
            )
    if epochs is not None and epochs < 1:
        raise InputError(f"--epochs must be at least 1, got {epochs}.")
    if learning_rate is not None and not 0 < learning_rate < 1:
        raise InputError(f"--learning-rate must lie between 0 and 1, got {learning_rate:g}.")


def check_place(at: At, kind: str, *, texts: bool) -> None:
    """Refuses what only a head of responses can be, or learn from.

    Raises:
        InputError: says so.
    """
    if at == "prompt" and kind == FACTORED:
        raise InputError(f"--kind {FACTORED} is for responses; a prompt does not refuse.")
    if texts and (at == "prompt" or kind in GRADIENT_KINDS):
        raise InputError(f"--texts are for a head of responses of the kinds {', '.join(SOLVED)}.")


def check_rows(
    rows: Sequence[LabelledExchange], at: At, max_examples: int | None = None
) -> list[LabelledExchange]:
    """The rows as `rows_at` counts them, refused without a model where no head can learn of them.

    Raises:
        InputError: a class is missing, or has too few prompts.
    """
    rows = rows_at(rows, at)
    require_classes(rows, (True, False), "A probe")
    some = [rows[i] for i in draw(rows, max_examples)]
    _, groups = np.unique([row.prompt for row in some], return_inverse=True)
    check_classes(np.array([row.unsafe for row in some]), groups)
    return rows


def refusals(rows: Sequence[LabelledExchange]) -> Array:
    """Which responses refuse, bool [row]: by their label, or by wording where there are two."""
    return np.array(
        [
            row.label == "safe_refusal"
            or (row.label is None and not row.unsafe and is_refusal(row.response))
            for row in rows
        ]
    )


def check_refusals(rows: Sequence[LabelledExchange]) -> None:
    """Refuses data that cannot tell refusing from harmless.

    Raises:
        InputError: too few prompts were refused, or answered harmlessly.
    """
    refuses = refusals(rows).tolist()
    for wanted, name in ((True, "refused"), (False, "answered harmlessly")):
        found = zip(rows, refuses, strict=True)
        n = len({row.prompt for row, refused in found if not row.unsafe and refused == wanted})
        if n < MIN_PROMPTS:
            raise InputError(
                f"--kind {FACTORED} tells refusals from harmless responses, and the data has {n}"
                f" distinct prompts that are {name}; at least {MIN_PROMPTS} are needed."
            )


def probe_record(model: LoadedModel, name: str, heads: Mapping[At, TrainedHead]) -> ProbeRecord:
    """The record of a probe of these heads, to be saved."""
    return ProbeRecord(
        name=name,
        created=utc_now(),
        model=model.info.keep(*STATED, "revision", "organism", "chat_template_sha256"),
        heads={at: trained.record for at, trained in heads.items()},
        versions=installed_versions("torch", "transformers", "scikit-learn", "numpy"),
        weights_sha256=NO_WEIGHTS,
    )


def make_probe(model: LoadedModel, name: str, heads: Mapping[At, TrainedHead]) -> Probe:
    """A probe of these heads, as `save_probe` writes it."""
    return Probe(
        probe_record(model, name, heads), {at: trained.head for at, trained in heads.items()}
    )


def _trained_on(
    rows: Sequence[LabelledExchange], prompts: Sequence[str], drawn_from: int | None
) -> TrainedOn:
    return TrainedOn(
        sha256=data_hash(rows),
        sources=dict(Counter(row.source for row in rows)),
        n_unsafe=sum(row.unsafe for row in rows),
        n_safe=sum(not row.unsafe for row in rows),
        prompts=fingerprints(prompts),
        drawn_from=drawn_from,
    )


def train_default_heads(
    model: LoadedModel,
    folder: Path,
    *,
    token: str | None = None,
    kind: str = "logistic",
    max_examples: int | None = None,
    on_phase: OnPhase = silent,
) -> dict[At, TrainedHead]:
    """Trains both heads, by default as the shipped ones were.

    Args:
        model: The model to watch.
        folder: Folder of the public sets.
        token: Hub token, None for the stored one.
        kind: Of the response's head: `logistic`, or `factored`, which also learns from the prompts
            as texts, and from whole responses only.
        max_examples: As in `train_head`.
        on_phase: Told (phase, done, total).

    Raises:
        InputError: the folder lacks a set.
        UnavailableError: the embedded model cannot be fetched.
    """
    prompts = prompt_head_rows(folder, token)
    prompt_head = train_head(
        model,
        prompts,
        "prompt",
        max_examples=max_examples,
        on_progress=phase_of(on_phase, "reading"),
    )
    rows, group_by = response_rows(folder, on_progress=phase_of(on_phase, "answering"))
    factored: dict[str, Any] = {}
    if kind == FACTORED:  # what held best on sources that were left out (docs/guard.md)
        texts = [prompts[i] for i in draw(prompts, MOST_TEXTS)]
        factored = {"texts": texts, "token_weights": "whole"}
    response_head = train_head(
        model,
        rows,
        "answer",
        group_by=group_by,
        kind=kind,
        max_response_tokens=RESPONSE_TOKENS,
        max_examples=max_examples,
        **factored,
        on_progress=phase_of(on_phase, "reading responses"),
    )
    return {"prompt": prompt_head, "answer": response_head}


def response_rows(
    folder: Path, *, on_progress: OnProgress | None = None
) -> tuple[list[LabelledExchange], list[str]]:
    """Exchanges, and the text that stands for each one's prompt when they are split."""
    recipe = recipe_rows(folder, on_progress=on_progress)
    rows = [
        row if row.prompt else replace(row, prompt=NEUTRAL_PROMPTS[i % len(NEUTRAL_PROMPTS)])
        for i, row in enumerate(recipe.rows)
    ]
    return rows, recipe.group_by
