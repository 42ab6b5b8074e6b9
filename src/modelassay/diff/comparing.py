"""`diff()` gathers the evidence on what a fine-tune changed; `calibrate()` does so for benign ones.

Each model is loaded once where both fit into memory, and read in one pass over the tokens that both
are given. The cheap evidence (weights, probabilities, refusals, states) stands beside the features
of an SAE, never behind them: a change that no feature shows is still a change.

Every fine-tune changes a model, so a candidate is held against those that are known to be harmless.
Each counts once, so copies are refused; and one that `diff` finds damning evidence in is refused
too, for a calibration that holds it would excuse all that are as bad.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import Unpack

from modelassay.diff.activations import (
    ActivationDiff,
    compare_activations,
    read_lens,
    same_activations,
)
from modelassay.diff.behaviour import compare_behaviour
from modelassay.diff.calibration import (
    BenignRow,
    Calibration,
    check_calibration,
    known_calibration,
    without_candidate,
)
from modelassay.diff.causal import Intervention, difference_directions, try_directions
from modelassay.diff.features import SAEDiff, check_labels, compare_features, label_changes
from modelassay.diff.pair import Pair, Role, check_comparable, config_changes, traits_of
from modelassay.diff.reading import (
    BaseReading,
    Reading,
    read_base,
    read_contrasts,
    read_model,
    read_unrelated,
    respond_to,
)
from modelassay.diff.report import DiffReport
from modelassay.diff.suites import Suite, default_suite
from modelassay.diff.suspicion import suspect
from modelassay.diff.triggers import TriggerSearch, search_triggers
from modelassay.diff.verdict import DiffVerdict, Findings, judge, measure_streams
from modelassay.diff.watching import NOT_ASKED, Watching, watch_prompts
from modelassay.diff.weights import WeightDiff, count_alike, diff_pair
from modelassay.errors import InputError, UnavailableError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.measures.refusal import ANSWER_TOKENS
from modelassay.models import LoadedModel, ModelIdentity, ModelRef, PairOptions, open_model
from modelassay.models.finding import check_named
from modelassay.models.refs import take_ref
from modelassay.progress import OnPhase, phase_of, silent, told
from modelassay.sae import SAE
from modelassay.threads import sharing

MAX_NAME = 300
ODD = (
    "Layers whose weights are the base's write other states: something beside the weights was"
    " changed, such as buffers or code."
)


@dataclass(frozen=True)
class Depth:
    """How much is done."""

    response_tokens: int = ANSWER_TOKENS
    """Length at which responses are cut; 0 makes none, and no refusal rates."""
    weights: bool = True
    triggers: bool = True
    causal: bool = True
    monitor: bool = False
    """Look at the prompts with a monitor of the change, which takes a pass over each of them."""


@sharing
def diff(
    base: str | ModelRef | LoadedModel,
    candidate: str | ModelRef | LoadedModel,
    suite: Suite | None = None,
    *,
    saes: Sequence[SAE] = (),
    layers: Sequence[int] | None = None,
    corpus: Sequence[str] = (),
    depth: Depth | None = None,
    calibration: Calibration | None = None,
    of_base: BaseReading | None = None,
    together: bool | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[PairOptions],
) -> DiffReport:
    """Compares a fine-tune with the model that it was made from.

    Args:
        base: The model before: an id (see `modelassay.load`), a reference or loaded.
        candidate: The model after.
        suite: What both are asked; None takes the default suite.
        saes: Of the base, for the features; none leaves features out.
        layers: Layers whose states are compared; None spreads five over the depth.
        corpus: Texts whose sentences are tried as triggers, such as the training file's prompts.
        depth: What is done and what left out.
        calibration: Benign fine-tunes to hold the candidate against; None takes those known of this
            base.
        of_base: The base as `read_base` gives it, where many candidates are compared with one;
            suite, layers and responses are then those that it was read with.
        together: Keep both models in memory; None decides by what is free.
        batch_tokens: As in `read_activations`.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load` for both models; `base_adapter`,
            `candidate_revision` and the like for one of them.

    Raises:
        InputError: a model cannot be read, or the two cannot be compared.
        UnavailableError: something needed is not there now.
    """
    started = time.perf_counter()
    depth = depth or Depth()
    check_labels(saes)
    before, rest = take_ref(base, load_options, "base_")
    after, options = take_ref(candidate, rest, "candidate_")
    for model in (before, after):
        if isinstance(model, ModelRef):
            check_named(model)
    if layers is not None and not layers:
        raise InputError("Give at least one layer to compare, or leave the choice to `diff`.")
    models: dict[Role, object] = {"base": base, "candidate": candidate}
    pair = Pair(
        lambda: open_model(before, on_progress=on_progress, **options),
        lambda: open_model(after, on_progress=on_progress, **options),
        together,
        [role for role, model in models.items() if isinstance(model, LoadedModel)],
    )
    chosen = of_base.suite if of_base is not None else suite or default_suite()
    if calibration is not None:
        response_tokens = depth.response_tokens if of_base is None else of_base.response_tokens
        check_calibration(calibration, pair.base.info, chosen, response_tokens)
    if of_base is None:
        of_base = read_base(
            pair.base,
            chosen,
            saes=saes,
            layers=layers,
            response_tokens=depth.response_tokens,
            batch_tokens=batch_tokens,
            on_progress=on_progress,
        )
    else:
        _check_reading(of_base, pair.base, saes)
    work = _Work(
        pair=pair,
        of_base=of_base,
        saes=tuple(saes),
        corpus=tuple(corpus),
        depth=depth,
        calibration=calibration,
        templates=options.get("chat_template", True),
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    report = work.run()
    report.provenance["seconds"] = round(time.perf_counter() - started, 2)
    return report


def _check_reading(of_base: BaseReading, base: LoadedModel, saes: Sequence[SAE]) -> None:
    """Refuses what was read of another base, or without an SAE's layer."""
    if of_base.info != base.info:
        raise InputError(
            f"What was read is of {of_base.info.id}, not of {base.info.id} as it is here."
        )
    for sae in saes:
        sae.check_belongs_to(base)
        if sae.layer not in of_base.reading.layers:
            raise InputError(
                f"The base was read without layer {sae.layer}, which the SAE {sae.name} reads."
            )


@dataclass(frozen=True)
class _Work:
    """One comparison; its methods are the steps, in their order."""

    pair: Pair
    of_base: BaseReading
    saes: tuple[SAE, ...]
    corpus: tuple[str, ...]
    depth: Depth
    calibration: Calibration | None
    templates: bool
    """Whether prompts are read inside chat templates, as for the calibrations that are shipped."""
    batch_tokens: int | None
    on_progress: OnPhase

    def run(self) -> DiffReport:
        of_base, candidate = self.of_base, self.pair.candidate
        traits = traits_of(candidate)
        notes = check_comparable(of_base.traits, traits)
        info = candidate.info
        del candidate  # the weights may need its room
        weights, unscored = self._weights()
        candidate = self.pair.candidate
        alike = count_alike(weights, of_base.traits, traits)
        unrelated = read_unrelated(candidate, of_base.reading.layers)
        odd = alike > 0 and not same_activations(
            of_base.unrelated, unrelated, of_base.reading.layers, alike
        )
        if odd:
            notes = (*notes, ODD)
        if odd or of_base.traits.hooked or traits.hooked:
            alike = 0
        responses = respond_to(
            candidate,
            of_base.suite,
            of_base.prompts,
            of_base.response_tokens,
            phase_of(self.on_progress, "answering"),
        )
        after = read_model(
            candidate,
            of_base.reading.matched,
            of_base.reading.layers,
            base=of_base.reading,
            alike=alike,
            batch_tokens=self.batch_tokens,
            on_progress=phase_of(self.on_progress, "reading the candidate"),
        )
        contrasts = read_contrasts(candidate, of_base.contrast_rows)
        lens = read_lens(candidate, of_base.unrelated, unrelated, of_base.reading.layers)
        del candidate

        behaviour = compare_behaviour(
            of_base.reading,
            after,
            of_base.suite,
            responses=(of_base.responses, responses),
            contrasts=(of_base.contrasts, contrasts),
        )
        layers = compare_activations(of_base.reading, after)
        activations = ActivationDiff(layers, lens, len(after.matched.tokens))
        features = tuple(
            label_changes(compare_features(of_base.reading, after, sae), sae)
            for sae in told(self.saes, phase_of(self.on_progress, "features"))
        )
        known = self.calibration
        if known is None and self.templates:
            known = known_calibration(of_base.info, of_base.suite, of_base.response_tokens)
        watching, unwatched = self._watching()
        found = Findings(
            weights=weights,
            behaviour=behaviour,
            # Both go by what refusal log-odds do, which of a thought's first token say nothing.
            triggers=None if behaviour.thinks else self._triggers(alike),
            saes=features,
            causal=() if behaviour.thinks else self._causal(after, features),
            watching=watching,
        )
        suspicion = suspect(measure_streams(found), without_candidate(known, info))
        computes_alike = not odd and not config_changes(of_base.traits, traits)
        verdict, reasons = judge(found, suspicion, computes_alike=computes_alike)
        return DiffReport(
            **vars(found),
            base=of_base.info,
            candidate=info,
            verdict=verdict,
            suspicion=suspicion,
            reasons=(*reasons, *notes),
            weights_unscored=unscored,
            watching_unscored=unwatched,
            activations=activations,
            suite=of_base.suite,
            provenance=self._provenance(),
        )

    def _weights(self) -> tuple[WeightDiff | None, str | None]:
        if not self.depth.weights:
            return None, NOT_ASKED
        try:
            on_progress = phase_of(self.on_progress, "weight changes")
            return diff_pair(self.pair, on_progress), None
        except UnavailableError as error:
            return None, str(error)

    def _watching(self) -> tuple[Watching | None, str | None]:
        if not self.depth.monitor:
            return None, NOT_ASKED
        on_progress = phase_of(self.on_progress, "watching prompts")
        return watch_prompts(self.pair, self.of_base.suite, on_progress)

    def _triggers(self, alike: int) -> TriggerSearch | None:
        suite = self.of_base.suite
        harmful = suite.indices("harmful")
        if not self.depth.triggers or not harmful:
            return None
        harmless = [prompt.text for prompt in suite.prompts if prompt.group != "harmful"]
        return search_triggers(
            self.pair,
            [suite.prompts[i] for i in harmful],
            self.of_base.reading.log_odds[harmful],
            [*self.corpus, *suite.endings, *harmless],
            base_effects=self.of_base.phrase_effects,
            alike=alike,
            on_progress=phase_of(self.on_progress, "searching triggers"),
        )

    def _causal(self, after: Reading, features: Sequence[SAEDiff]) -> tuple[Intervention, ...]:
        of_base = self.of_base
        harmful = of_base.suite.indices("harmful")
        # A direction is tried on prompts that it was not taken from.
        fitted, tried = harmful[::2], harmful[1::2]
        if not self.depth.causal or not tried:
            return ()
        directions = difference_directions(of_base.reading, after, fitted, features, self.saes)
        readings: dict[Role, Reading] = {"base": of_base.reading, "candidate": after}
        found: dict[Role, tuple[Intervention, ...]] = {}
        on_progress = phase_of(self.on_progress, "trying directions")
        order: tuple[Role, Role] = ("candidate", "base")  # the candidate is in memory
        for role in told(order, on_progress):
            model = self.pair.get(role)
            found[role] = try_directions(model, role, of_base.prompts, tried, directions, readings)
        return (*found["base"], *found["candidate"])

    def _provenance(self) -> dict[str, Any]:
        of_base = self.of_base
        return {
            "versions": installed_versions(),
            "suite": of_base.suite.name,
            "suite_sha256": of_base.suite.sha256,
            "n_prompts": len(of_base.suite.prompts),
            "n_contrasts": len(of_base.suite.contrasts),
            "n_endings": len(of_base.suite.endings),
            "n_corpus": len(self.corpus),
            "n_tokens": len(of_base.reading.matched.tokens),
            "answer_tokens": of_base.response_tokens,
            "dictionaries": [sae.name for sae in self.saes],
            "time": utc_now(),
        }


@sharing
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
    for model in (ref, *finetunes):
        if isinstance(model, str | ModelRef):
            check_named(take_ref(model, {})[0])
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
    for finetune in told(finetunes, phase_of(on_progress, "fine-tunes")):
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
            architecture=report.base.architecture,
            suite_sha256=report.suite.sha256,
            response_tokens=report.provenance["answer_tokens"],
            chat_template=report.base.chat_template_sha256 is not None,
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
