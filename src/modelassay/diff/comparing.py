"""`diff()`: gathers the evidence on what a fine-tune changed, and judges it.

Each model is loaded once where both fit into memory, and read in one pass over the tokens that both
are given. The cheap evidence (weights, probabilities, refusals, states) stands beside the features
of an SAE, never behind them: a change that no feature shows is still a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Unpack

from modelassay.diff.activations import (
    ActivationDiff,
    compare_activations,
    read_lens,
    read_unrelated,
    same_activations,
)
from modelassay.diff.base_reading import BaseReading, read_base, short_responses
from modelassay.diff.behaviour import compare_behaviour
from modelassay.diff.calibration import (
    Calibration,
    check_calibration,
    known_calibration,
    without_candidate,
)
from modelassay.diff.causal import Intervention, difference_directions, intervene
from modelassay.diff.features import SAEDiff, check_labels, compare_features, label_changes
from modelassay.diff.pair import Pair, check_comparable, config_changes, traits_of
from modelassay.diff.reading import Reading, read_contrasts, read_model
from modelassay.diff.report import DiffReport
from modelassay.diff.suites import Suite, default_suite
from modelassay.diff.triggers import TriggerSearch, search_triggers
from modelassay.diff.verdict import judge, measure_streams
from modelassay.diff.weights import WeightDiff, count_alike, diff_pair
from modelassay.errors import InputError, UnavailableError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.models import LoadedModel, ModelRef, PairOptions, open_model
from modelassay.models.finding import check_named
from modelassay.models.refs import take_ref
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.reading.resuming import ResumePoint
from modelassay.sae import SAE

RESPONSE_TOKENS = 24
ODD = (
    "Layers whose weights are the base's write other states: something beside the weights was"
    " changed, such as buffers or code."
)


@dataclass(frozen=True)
class Depth:
    """How much is done."""

    response_tokens: int = RESPONSE_TOKENS
    """Length of the short responses; 0 makes none, and no refusal rates."""
    weights: bool = True
    triggers: bool = True
    causal: bool = True


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
    pair = Pair(
        lambda: open_model(before, on_progress=on_progress, **options),
        lambda: open_model(after, on_progress=on_progress, **options),
        together,
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
        given=(isinstance(base, LoadedModel), isinstance(candidate, LoadedModel)),
        depth=depth,
        calibration=calibration,
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
        if sae.layer not in of_base.layers:
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
    given: tuple[bool, bool]
    """Whether base and candidate were given loaded."""
    depth: Depth
    calibration: Calibration | None
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
        unrelated = read_unrelated(candidate, of_base.layers)
        odd = alike > 0 and not same_activations(
            of_base.unrelated, unrelated, of_base.layers, alike
        )
        if odd:
            notes = (*notes, ODD)
        if odd or of_base.traits.hooked or traits.hooked:
            alike = 0
        responses = short_responses(
            candidate, of_base.prompts, of_base.response_tokens, self.on_progress
        )
        after = read_model(
            candidate,
            of_base.matched,
            of_base.layers,
            base=of_base.reading,
            alike=alike,
            batch_tokens=self.batch_tokens,
            on_progress=phase_of(self.on_progress, "reading the candidate"),
        )
        contrasts = read_contrasts(candidate, of_base.contrast_rows)
        lens = read_lens(candidate, of_base.unrelated, unrelated, of_base.layers)
        del candidate

        behaviour = compare_behaviour(
            of_base.reading,
            after,
            of_base.matched,
            of_base.suite,
            of_base.tokens,
            responses=None
            if of_base.responses is None or responses is None
            else (of_base.responses, responses),
            contrasts=(of_base.contrasts, contrasts),
        )
        activations = ActivationDiff(
            compare_activations(of_base.reading, after), lens, len(of_base.tokens)
        )
        features = self._features(after)
        triggers = self._triggers(alike)
        causal = self._causal(after, features)
        known = self.calibration or known_calibration(
            of_base.info, of_base.suite, of_base.response_tokens
        )
        suspicion, verdict, reasons = judge(
            measure_streams(weights, behaviour, triggers, features),
            without_candidate(known, info),
            weights,
            behaviour,
            features,
            causal,
            computes_alike=not odd and not config_changes(of_base.traits, traits),
        )
        return DiffReport(
            base=of_base.info,
            candidate=info,
            verdict=verdict,
            suspicion=suspicion,
            reasons=(*reasons, *notes),
            weights=weights,
            weights_unscored=unscored,
            behaviour=behaviour,
            activations=activations,
            triggers=triggers,
            saes=features,
            causal=causal,
            suite=of_base.suite,
            provenance=self._provenance(),
        )

    def _features(self, after: Reading) -> tuple[SAEDiff, ...]:
        of_base, found = self.of_base, []
        for done, sae in enumerate(self.saes):
            self.on_progress("features", done, len(self.saes))
            changes = compare_features(of_base.reading, after, of_base.matched, sae, of_base.tokens)
            found.append(label_changes(changes, sae))
            self.on_progress("features", done + 1, len(self.saes))
        return tuple(found)

    def _weights(self) -> tuple[WeightDiff | None, str | None]:
        if not self.depth.weights:
            return None, "it was not asked for"
        try:
            on_progress = phase_of(self.on_progress, "weight changes")
            return diff_pair(self.pair, given=self.given, on_progress=on_progress), None
        except UnavailableError as error:
            return None, str(error)

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
        directions = difference_directions(
            of_base.reading, after, of_base.matched, fitted, features, self.saes
        )
        encoded = [of_base.prompts[i] for i in tried]
        x, y = of_base.reading.log_odds[tried], after.log_odds[tried]

        def begin(reading: Reading) -> Callable[[int], ResumePoint]:
            return lambda layer: reading.resume_point(of_base.matched, layer, responses=False)

        self.on_progress("trying directions", 0, 2)
        out = intervene(
            self.pair.candidate, encoded, directions, begin(after), sign=-1, before=y, target=x
        )
        self.on_progress("trying directions", 1, 2)
        into = intervene(
            self.pair.base,
            encoded,
            directions,
            begin(of_base.reading),
            sign=1,
            before=x,
            target=y,
        )
        self.on_progress("trying directions", 2, 2)
        return (*into, *out)

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
            "n_tokens": len(of_base.tokens),
            "answer_tokens": of_base.response_tokens,
            "dictionaries": [sae.name for sae in self.saes],
            "time": utc_now(),
        }
