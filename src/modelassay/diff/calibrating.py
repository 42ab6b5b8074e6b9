"""What benign fine-tunes of a base read in each stream: the measure for all others of that base.

Every fine-tune changes a model, so a candidate is held against those that are known to be harmless.
Each counts once, so copies are refused; and one that `diff` finds damning evidence in is refused
too, for a calibration that holds it would excuse all that are as bad.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from typing_extensions import Unpack

from modelassay.diff.base_reading import read_base
from modelassay.diff.calibration import BenignRow, Calibration, check_calibration
from modelassay.diff.comparing import Depth, diff
from modelassay.diff.report import DiffReport
from modelassay.diff.suites import Suite, default_suite
from modelassay.diff.verdict import DiffVerdict
from modelassay.errors import InputError
from modelassay.models import ModelIdentity, ModelRef, PairOptions, open_model
from modelassay.models.refs import take_ref
from modelassay.progress import OnPhase, silent
from modelassay.sae import SAE

MAX_NAME = 300


def calibrate(
    base: str | ModelRef,
    finetunes: Sequence[str | ModelRef],
    suite: Suite | None = None,
    *,
    known: Calibration | None = None,
    saes: Sequence[SAE] = (),
    layers: Sequence[int] | None = None,
    depth: Depth | None = None,
    keep: Callable[[Calibration], None] | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[PairOptions],
) -> Calibration:
    """Compares benign fine-tunes with their base and keeps what the streams read.

    Args:
        base: The model before.
        finetunes: Fine-tunes that are known to be harmless; PEFT adapters are models as well.
        suite: What all are asked; None takes the default suite.
        known: A calibration of the same base and suite that these are added to.
        saes: As in `diff`.
        layers: As in `diff`.
        depth: As in `diff`; causes are never searched, for no stream needs them.
        keep: Told the calibration after each fine-tune, so that a run that stops loses nothing.
        on_progress: Told (phase, done, total); `fine-tunes` counts these.
        **load_options: Passed to `modelassay.load` for all models; `base_adapter` and the like for
            the base alone.

    Raises:
        InputError: a model cannot be read or compared, two have the same weights, one is not
            benign, or `known` is of another base, suite or length of responses.
        UnavailableError: something needed is not there now.
    """
    suite = suite or default_suite()
    depth = replace(depth or Depth(), causal=False)
    if not finetunes:
        raise InputError("Give at least one benign fine-tune of the base.")
    ref, options = take_ref(base, load_options, "base_")
    loaded = open_model(ref, on_progress=on_progress, **options)
    of_base = read_base(
        loaded,
        suite,
        saes=saes,
        layers=layers,
        response_tokens=depth.response_tokens,
        on_progress=on_progress,
    )
    if known is not None:
        check_calibration(known, of_base.info, of_base.suite, of_base.response_tokens)
    found = known
    for done, finetune in enumerate(finetunes):
        on_progress("fine-tunes", done, len(finetunes))
        report = diff(
            loaded,
            finetune,
            of_base=of_base,
            saes=saes,
            depth=depth,
            on_progress=on_progress,
            **options,
        )
        found = add_row(found, report)
        if keep is not None:
            keep(found)
    on_progress("fine-tunes", len(finetunes), len(finetunes))
    assert found is not None  # noqa: S101 (there was at least one)
    return found


def add_row(known: Calibration | None, report: DiffReport) -> Calibration:
    """A calibration with one more benign fine-tune.

    Args:
        known: What it is added to; None begins a new one.
        report: Of that fine-tune.

    Raises:
        InputError: it is a copy of the base or of one that is there, or not benign, or `known` is
            of another base or suite.
    """
    name = _name(report.candidate)
    if report.verdict is DiffVerdict.COMPROMISED:
        raise InputError(f"{name} is no benign fine-tune. {report.reasons[0]} Leave it out.")
    sha256 = report.candidate.weights_sha256
    if sha256 == report.base.weights_sha256 or (report.weights and report.weights.identical):
        raise InputError(f"{name} has the weights of its base; give fine-tunes of it.")
    row = BenignRow(
        id=name,
        weights_sha256=sha256,
        streams={level.name: level.value for level in report.suspicion.levels},
    )
    if known is None:
        return Calibration(
            base=_name(report.base),
            base_sha256=report.base.weights_sha256,
            suite_sha256=report.suite.sha256,
            response_tokens=report.provenance["answer_tokens"],
            rows=(row,),
        )
    response_tokens = report.provenance["answer_tokens"]
    check_calibration(known, report.base, report.suite, response_tokens)
    for other in known.rows:
        if other.weights_sha256 == sha256:
            raise InputError(f"{name} has the weights of {other.id}; each counts only once.")
    return known.model_copy(update={"rows": (*known.rows, row)})


def _name(model: ModelIdentity) -> str:
    """A model's id as one printable line."""
    return "".join(c for c in model.name if c.isprintable())[-MAX_NAME:] or "unnamed"
