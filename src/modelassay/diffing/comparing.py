"""`diff()`: gathers the evidence on what a fine-tune changed, and judges it.

Each model is loaded once where both fit into memory, and read in one pass over the tokens that both
are given. The cheap evidence (weights, probabilities, refusals, states) stands beside the features
of a dictionary, never behind them: a change that no feature shows is still a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from modelassay.activations import OnProgress
from modelassay.diffing.behaviour import compare_behaviour
from modelassay.diffing.causal import Intervention, difference_directions, intervene
from modelassay.diffing.features import DictionaryDiff, compare_features
from modelassay.diffing.pair import Pair, check_comparable, traits_of
from modelassay.diffing.reading import (
    Matched,
    Reading,
    encode_suite,
    match_tokens,
    read_contrasts,
    read_model,
)
from modelassay.diffing.report import DiffReport
from modelassay.diffing.states import StateDiff, compare_states, read_lens, read_unrelated
from modelassay.diffing.suites import Suite, default_suite
from modelassay.diffing.suspicion import (
    Calibration,
    check_calibration,
    judge,
    known_calibration,
    measure_streams,
)
from modelassay.diffing.triggers import TriggerSearch, search_triggers
from modelassay.diffing.weights import WeightDiff, diff_weights
from modelassay.errors import InputError
from modelassay.examination import OnPhase, installed_versions, silent
from modelassay.generation import generate_greedy
from modelassay.models import LoadedModel, load
from modelassay.models.blocks import text_config
from modelassay.prompts import Encoded
from modelassay.sae import Dictionary
from modelassay.unembedding import decode_each
from modelassay.weights import memory_tensors, stored_tensors

ANSWER_TOKENS = 24
N_DEPTHS = 5


@dataclass(frozen=True)
class Depth:
    """How much is done."""

    answer_tokens: int = ANSWER_TOKENS
    """Length of the short answers; 0 makes none, and no refusal rates."""
    weights: bool = True
    triggers: bool = True
    causal: bool = True


def diff(
    base: str | LoadedModel,
    candidate: str | LoadedModel,
    suite: Suite | None = None,
    *,
    dictionaries: Sequence[Dictionary] = (),
    layers: Sequence[int] | None = None,
    corpus: Sequence[str] = (),
    base_adapter: str | None = None,
    candidate_adapter: str | None = None,
    depth: Depth | None = None,
    calibration: Calibration | None = None,
    together: bool | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Any,
) -> DiffReport:
    """Compares a fine-tune with the model that it was made from.

    Args:
        base: The model before, an id (see `modelassay.load`) or loaded.
        candidate: The model after.
        suite: What both are asked; None takes the default suite.
        dictionaries: Of the base, for the features; none leaves features out.
        layers: Blocks whose states are compared; None spreads five over the depth.
        corpus: Texts whose sentences are tried as triggers, such as the training file's prompts.
        base_adapter: PEFT adapter over the base.
        candidate_adapter: PEFT adapter over the candidate.
        depth: What is done and what left out.
        calibration: Benign fine-tunes to hold the candidate against; None takes those known of this
            base.
        together: Keep both models in memory; None decides by what is free.
        batch_tokens: As in `read_activations`.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load` for both models.

    Raises:
        InputError: a model cannot be read, or the two cannot be compared.
        UnavailableError: something needed is not there now.
    """
    started = time.perf_counter()
    depth = depth or Depth()
    suite = suite or default_suite()
    if not suite.prompts:
        raise InputError(f"The suite {suite.name} has no prompts to compare the models on.")
    pair = Pair(
        _opener(base, base_adapter, load_options, on_progress),
        _opener(candidate, candidate_adapter, load_options, on_progress),
        together,
    )
    given = (isinstance(base, LoadedModel), isinstance(candidate, LoadedModel))
    work = _Work(
        pair, suite, tuple(dictionaries), tuple(corpus), given, depth, batch_tokens, on_progress
    )
    report = work.run(layers, calibration)
    report.provenance["seconds"] = round(time.perf_counter() - started, 2)
    return report


def _opener(
    model: str | LoadedModel, adapter: str | None, options: dict[str, Any], on_progress: OnPhase
) -> Callable[[], LoadedModel]:
    if isinstance(model, LoadedModel):
        if adapter is not None:
            raise InputError("Give an adapter with the id of its base, not with a loaded model.")
        return lambda: model

    def open_model() -> LoadedModel:
        on_progress("loading", 0, 1)
        given = {**options, "adapter": adapter} if adapter else options
        loaded = load(model, **given)
        on_progress("loading", 1, 1)
        return loaded

    return open_model


@dataclass(frozen=True)
class _Work:
    """One comparison; its methods are the steps, in their order."""

    pair: Pair
    suite: Suite
    dictionaries: tuple[Dictionary, ...]
    corpus: tuple[str, ...]
    given: tuple[bool, bool]
    """Whether base and candidate were given loaded."""
    depth: Depth
    batch_tokens: int | None
    on_progress: OnPhase

    def run(self, layers: Sequence[int] | None, calibration: Calibration | None) -> DiffReport:
        base = self.pair.base
        for dictionary in self.dictionaries:
            dictionary.check_belongs_to(base)
        kept = self._layers(base, layers)
        base_info, base_traits = base.info, traits_of(base)
        prompts = encode_suite(base, self.suite.prompts)
        base_answers = self._answers(base, prompts)
        matched = match_tokens(base, prompts, base_answers)
        tokens = decode_each(base, matched.token_ids().tolist())
        before = read_model(
            base,
            matched,
            kept,
            batch_tokens=self.batch_tokens,
            on_progress=self._phase("reading"),
        )
        base_contrasts = read_contrasts(base, self.suite.contrasts)
        base_unrelated = read_unrelated(base, kept)
        del base

        candidate = self.pair.candidate
        notes = check_comparable(base_traits, traits_of(candidate))
        candidate_info = candidate.info
        answers = self._answers(candidate, prompts)
        after = read_model(
            candidate,
            matched,
            kept,
            base=before,
            batch_tokens=self.batch_tokens,
            on_progress=self._phase("reading the candidate"),
        )
        contrasts = (base_contrasts, read_contrasts(candidate, self.suite.contrasts))
        lens = read_lens(candidate, base_unrelated, read_unrelated(candidate, kept), kept)
        del candidate

        behaviour = compare_behaviour(
            before,
            after,
            matched,
            self.suite,
            tokens,
            answers=None if base_answers is None or answers is None else (base_answers, answers),
            contrasts=contrasts,
        )
        states = StateDiff(compare_states(before, after), lens, len(tokens))
        features = tuple(
            self._features(before, after, matched, dictionary, tokens)
            for dictionary in self.dictionaries
        )
        weights, unscored = self._weights()
        triggers = self._triggers(before)
        causal = self._causal(before, after, matched, prompts, features)
        streams = measure_streams(weights, behaviour, triggers, features)
        if calibration is not None:
            check_calibration(calibration, base_info, self.suite)
        known = calibration or known_calibration(base_info, self.suite, self.depth.answer_tokens)
        suspicion, verdict, reasons = judge(
            streams, known, weights, behaviour, triggers, features, causal
        )
        return DiffReport(
            base=base_info,
            candidate=candidate_info,
            verdict=verdict,
            suspicion=suspicion,
            reasons=(*reasons, *notes),
            weights=weights,
            weights_unscored=unscored,
            behaviour=behaviour,
            states=states,
            triggers=triggers,
            dictionaries=features,
            causal=causal,
            suite=self.suite,
            provenance=self._provenance(matched),
        )

    def _layers(self, base: LoadedModel, layers: Sequence[int] | None) -> tuple[int, ...]:
        n = len(base.blocks)
        wanted = (
            set(layers)
            if layers is not None
            else {max(round(n * (i + 1) / N_DEPTHS) - 1, 0) for i in range(N_DEPTHS)}
        )
        if not all(0 <= layer < n for layer in wanted):
            raise InputError(f"Layers must lie in 0…{n - 1}, got {sorted(wanted)}.")
        return tuple(sorted(wanted | {dictionary.layer for dictionary in self.dictionaries}))

    def _answers(self, model: LoadedModel, prompts: Sequence[Encoded]) -> list[str] | None:
        if self.depth.answer_tokens == 0:
            return None
        answers = generate_greedy(
            model,
            prompts,
            max_new_tokens=self.depth.answer_tokens,
            on_progress=self._phase("answering"),
        )
        return [answer.text for answer in answers]

    def _features(
        self,
        before: Reading,
        after: Reading,
        matched: Matched,
        dictionary: Dictionary,
        tokens: Sequence[str],
    ) -> DictionaryDiff:
        self.on_progress("features", 0, 1)
        found = compare_features(before, after, matched, dictionary, tokens)
        self.on_progress("features", 1, 1)
        return found

    def _weights(self) -> tuple[WeightDiff | None, str | None]:
        if not self.depth.weights:
            return None, "it was not asked for"
        if not self.pair.fits():
            return None, "both models would have to be in memory, and there is no room"
        base, candidate = self.pair.base, self.pair.candidate
        config = text_config(base.model.config)
        with ExitStack() as stack:
            # A model that was given loaded may have been changed since.
            ours, theirs = (
                memory_tensors(model) if given else stored_tensors(model, stack)
                for model, given in zip((base, candidate), self.given, strict=True)
            )
            found = diff_weights(
                ours,
                theirs,
                config.hidden_size,
                config.model_type,
                on_progress=self._phase("weight changes"),
            )
        return found, None

    def _triggers(self, before: Reading) -> TriggerSearch | None:
        harmful = self.suite.indices("harmful")
        if not self.depth.triggers or not harmful:
            return None
        return search_triggers(
            self.pair,
            [self.suite.prompts[i] for i in harmful],
            before.log_odds[harmful],
            [
                *self.corpus,
                *self.suite.endings,
                *(p.text for p in self.suite.prompts if p.group != "harmful"),
            ],
            on_progress=self._phase("searching triggers"),
        )

    def _causal(
        self,
        before: Reading,
        after: Reading,
        matched: Matched,
        prompts: Sequence[Encoded],
        features: Sequence[DictionaryDiff],
    ) -> tuple[Intervention, ...]:
        harmful = self.suite.indices("harmful")
        if not self.depth.causal or not harmful:
            return ()
        directions = difference_directions(
            before, after, matched, harmful, features, self.dictionaries
        )
        encoded = [prompts[i] for i in harmful]
        x, y = before.log_odds[harmful], after.log_odds[harmful]
        self.on_progress("trying directions", 0, 2)
        out = intervene(self.pair.candidate, encoded, directions, sign=-1, before=y, target=x)
        self.on_progress("trying directions", 1, 2)
        into = intervene(self.pair.base, encoded, directions, sign=1, before=x, target=y)
        self.on_progress("trying directions", 2, 2)
        return (*into, *out)

    def _provenance(self, matched: Matched) -> dict[str, Any]:
        return {
            "versions": installed_versions(),
            "suite": self.suite.name,
            "suite_sha256": self.suite.sha256,
            "n_prompts": len(self.suite.prompts),
            "n_contrasts": len(self.suite.contrasts),
            "n_tokens": sum(matched.lengths),
            "answer_tokens": self.depth.answer_tokens,
            "dictionaries": [dictionary.name for dictionary in self.dictionaries],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _phase(self, phase: str) -> OnProgress:
        return lambda done, total: self.on_progress(phase, done, total)
