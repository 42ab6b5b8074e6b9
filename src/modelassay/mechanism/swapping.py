"""What becomes of a refusal when a part of the model is given what its twin prompt makes there.

**Exact patching**: while a harmful prompt is read, one component's values are those of the run on
its harmless twin (resample ablation). The *effect* is how far that lowers the refusal log-odds, and
how far it moves the next-token distribution (KL). Layers below the component are not run again.

**Attribution** estimates all effects at once from gradients: the change of each component's values
between the twins, times the gradient of the log-odds along the way, on a straight line between the
twins' embeddings (integrated gradients; EAP-IG, Hanna et al. 2024). One forward and one backward
pass a step.

**Direct contributions** take the refusal log-odds apart by what each component writes to the last
token's stream (integrated gradients through the final norm and the output layer); where parts add
up to the stream, they add up to the whole difference between the twins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.mechanism.pairs import AlignedPair
from modelassay.models import LoadedModel
from modelassay.models.components import Component, Components
from modelassay.models.explain import first_line, is_out_of_memory
from modelassay.models.watching import watched
from modelassay.progress import OnProgress, silent
from modelassay.reading.batching import batch_budget, pad, relative_difference
from modelassay.reading.hooks import head_at
from modelassay.reading.interventions import Edit, intervene, observe, observe_sites, replace_by
from modelassay.reading.prompts import Encoded
from modelassay.reading.resuming import begin_after
from modelassay.reading.thinking import thinking_of
from modelassay.statistics import mean_change

Edits = Callable[["Run", "Run"], Mapping[Component, Edit]]
"""Given a batch's own run and that of its twins: what is done to which components."""
Direct = tuple[dict[Component, tuple[np.ndarray, np.ndarray]], np.ndarray]
STEPS = 8
"""Of the integrated gradients through the model; each is a forward and a backward pass."""
DIRECT_STEPS = 16
"""Of those through the output layer alone, which cost next to nothing."""
LEAST_REFUSED = 0.05
"""Mean probability that a response to a harmful prompt begins as a refusal, below which a model has
nothing to explain."""
SAME = 1e-3
"""Relative difference that counts as rounding when lower layers are not run again."""


class NoGradientsError(InputError):
    """The weights of a model give no gradients: they are packed, or a kernel has no way back."""


@dataclass(frozen=True)
class Side:
    """One prompt of each pair of a batch, right-padded."""

    ids: Tensor
    """int64 [pair, token]."""
    last: Tensor
    """int64 [pair], index of the last token."""
    own: Tensor
    """Bool [pair, token], tokens that lie under one of the twin's."""

    @classmethod
    def of(cls, prompts: Sequence[Encoded], shared: Sequence[int]) -> Side:
        """Pads prompts of which the last `shared` tokens are aligned."""
        ids = pad([prompt.ids for prompt in prompts])
        lengths = torch.tensor([len(prompt.ids) for prompt in prompts])
        at = torch.arange(ids.shape[1])
        own = (at < lengths[:, None]) & (at >= (lengths - torch.tensor(shared))[:, None])
        return cls(ids, lengths - 1, own)

    def under(self, other: Side) -> Tensor:
        """int64 [pair, token]: the token of `other` that lies under each of this side's."""
        at = torch.arange(self.ids.shape[1])[None] - self.last[:, None] + other.last[:, None]
        return at.clamp(0, other.ids.shape[1] - 1)


@dataclass
class Run:
    """What one side's run left behind."""

    side: Side
    values: dict[Component, Tensor] = field(default_factory=dict)
    """[pair, token, width]."""
    given: dict[Component, Tensor] = field(default_factory=dict)
    """[pair, token, hidden], what MLPs were given."""
    log_p: Tensor = field(default_factory=lambda: torch.empty(0))
    """float32 [pair, vocabulary], after the last token."""


@dataclass(frozen=True)
class Outcome:
    """What is read after the last token of each prompt."""

    log_odds: np.ndarray
    """float64 [pair], of refusal, in nats."""
    kl: np.ndarray
    """float64 [pair], of the distribution from the untouched one, in nats."""


@dataclass(frozen=True)
class Slope:
    """What a block or MLP makes of harmful prompts, and what that does for the refusal log-odds."""

    own: Tensor
    """[pair, token, hidden]."""
    other: Tensor
    """[pair, token, hidden], what it makes of the twins, under the tokens that are aligned; its own
    elsewhere."""
    gradient: Tensor
    """float32 [pair, token, hidden], nats by activation, mean over the way from one to the
    other."""
    given: tuple[Tensor, Tensor]
    """What an SAE reads there, own and other: the same, or of an MLP what it is given."""


class Swapper:
    """Runs pairs of prompts, with parts of one run put into the other."""

    def __init__(
        self,
        model: LoadedModel,
        components: Components,
        pairs: Sequence[AlignedPair],
        parts: Sequence[Component],
        *,
        given: Sequence[Component] = (),
        batch_tokens: int | None = None,
        on_progress: OnProgress = silent,
    ) -> None:
        """Runs both sides once and keeps what the parts make.

        Args:
            model: A chat model.
            components: Its components.
            pairs: What it is asked.
            parts: Components whose values are kept; blocks are kept besides, to begin at.
            given: MLPs of which it is kept what they are given, too.
            batch_tokens: Upper bound on tokens in a batch.
            on_progress: Told how many batches are done.

        Raises:
            InputError: a run gives numbers that are none.
        """
        self.model, self.components, self.parts = model, components, tuple(parts)
        self.pairs = tuple(pairs)
        self._given = {part: components.given[part] for part in given}
        self.n_passes = 0
        """Forward passes over all pairs so far."""
        self._readout = log_odds_readout(opening_tokens(model, thinking_of(model)))
        kept = tuple(dict.fromkeys([*self.parts, *components.of("block")]))
        self.batches: list[tuple[Run, Run]] = []
        groups = _batches(pairs, batch_tokens or batch_budget(model))
        for i, group in enumerate(groups):
            shared = [pair.shared for pair in group]
            sides = (
                Side.of([pair.harmful for pair in group], shared),
                Side.of([pair.harmless for pair in group], shared),
            )
            harmful, harmless = (self._clean(side, kept) for side in sides)
            self.batches.append((harmful, harmless))
            on_progress(i + 1, len(groups))
        self.n_passes += 2
        self._resumes = self._check_resuming()

    def _clean(self, side: Side, kept: Sequence[Component]) -> Run:
        run = Run(side)
        with (
            torch.inference_mode(),
            observe(self.components, kept, lambda c, v: run.values.update({c: v.clone()})),
            observe_sites(self._given, lambda c, v: run.given.update({c: v.clone()})),
        ):
            run.log_p = self._logits(self.model.network, side).log_softmax(dim=-1)
        if not torch.isfinite(run.log_p).all():
            raise InputError(
                f"{self.model.info.id} gives NaN or infinite values; its weights are broken, or"
                " the dtype overflows (try --dtype float32)."
            )
        return run

    def _logits(self, network: Any, side: Side) -> Tensor:
        with head_at(network, side.last):
            ids = side.ids.to(self.model.device)
            return network(input_ids=ids, use_cache=False).logits[:, 0].float()

    def _check_resuming(self) -> bool:
        """Whether a pass that begins in the middle ends where a whole pass does."""
        harmful = self.batches[0][0]
        middle = len(self.model.layers) // 2
        try:
            with torch.inference_mode():
                found = self._logits(self._begun(harmful, middle + 1), harmful.side)
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            return False
        return relative_difference(found.log_softmax(dim=-1), harmful.log_p) < SAME

    def _begun(self, run: Run, layer: int) -> Any:
        """The model, beginning at a layer with what the run made below it."""
        if layer == 0:
            return self.model.network
        return begin_after(self.model, layer - 1, run.values[Component(layer - 1, "block")])

    def clean(self, *, harmless: bool = False) -> np.ndarray:
        """The refusal log-odds [pair] of a side, untouched."""
        runs = [pair[int(harmless)] for pair in self.batches]
        return np.concatenate([self._log_odds(run.log_p) for run in runs])

    def _log_odds(self, log_p: Tensor) -> np.ndarray:
        return self._readout(log_p)[:, 0].double().cpu().numpy()

    def swap(self, component: Component) -> Outcome:
        """Reads the harmful prompts with one component's values from their twins."""

        def edits(run: Run, twin: Run) -> Mapping[Component, Edit]:
            return {component: put_in(run, twin, component)}

        return self.run(edits, first_layer=component.layer)

    def run(self, edits: Edits, *, harmless: bool = False, first_layer: int = 0) -> Outcome:
        """Reads one side under edits.

        Args:
            edits: What is done in each batch.
            harmless: Read the harmless prompts.
            first_layer: Of what is edited; no layer below it is run again.
        """
        log_odds, kl = [], []
        for pair in self.batches:
            run, twin = pair[::-1] if harmless else pair
            network = self._begun(run, first_layer) if self._resumes else self.model.network
            with torch.inference_mode(), intervene(self.components, edits(run, twin)):
                log_p = self._logits(network, run.side).log_softmax(dim=-1)
            log_odds.append(self._log_odds(log_p))
            kl.append((run.log_p.exp() * (run.log_p - log_p)).sum(dim=-1).double().cpu().numpy())
        self.n_passes += 1
        return Outcome(np.concatenate(log_odds), np.concatenate(kl))

    def replaced(self) -> np.ndarray:
        """The refusal log-odds [pair] of harmful prompts with the embeddings of their twins."""
        found = []
        for harmful, harmless in self.batches:
            with torch.inference_mode(), _Line(harmful, harmless, 0.0).laid(self.model):
                log_p = self._logits(self.model.network, harmful.side).log_softmax(dim=-1)
            found.append(self._log_odds(log_p))
        self.n_passes += 1
        return np.concatenate(found)

    def means(self, parts: Sequence[Component]) -> dict[Component, Tensor]:
        """float32 [width] of each: what it makes on average over aligned tokens of both sides."""
        found = {}
        for part in parts:
            rows = [
                run.values[part].float()[run.side.own.to(run.values[part].device)]
                for pair in self.batches
                for run in pair
            ]
            found[part] = torch.cat(rows).mean(dim=0)
        return found

    def attribute(
        self, steps: int = STEPS, on_progress: OnProgress = silent
    ) -> tuple[dict[Component, np.ndarray], np.ndarray]:
        """Estimates what swapping each part would do, by integrated gradients.

        Args:
            steps: Points on the line between the twins' embeddings.
            on_progress: Told how many steps are done.

        Raises:
            NoGradientsError: the model's weights give none.

        Returns:
            By part, the estimated effect float64 [pair] in nats; and, of the embeddings, which all
            that differs has to pass, the sum that the total ought to be [pair].
        """
        effects: dict[Component, list[np.ndarray]] = {part: [] for part in self.parts}
        sums: list[np.ndarray] = []
        n_batches = len(self.batches)
        for number, (harmful, harmless) in enumerate(self.batches):
            gradients: dict[Component, Tensor] = {}
            into_embeddings: list[Tensor] = []
            difference = torch.empty(0)
            for step in range(steps):
                share = (step + 0.5) / steps
                line = _Line(harmful, harmless, share)
                with (
                    self._gradients_needed(),
                    line.laid(self.model),
                    self._graph() as made,
                ):
                    log_p = self._logits(self.model.network, harmful.side).log_softmax(dim=-1)
                    total = self._readout(log_p)[:, 0].sum()
                    wanted = [line.made, *made.values()]
                    found = torch.autograd.grad(total, wanted, allow_unused=True)
                difference = line.difference
                into_embeddings.append(_or_zero(found[0], line.made))
                for part, value, gradient in zip(made, made.values(), found[1:], strict=True):
                    grown = _or_zero(gradient, value) / steps
                    gradients[part] = gradients[part] + grown if part in gradients else grown
                on_progress(number * steps + step + 1, n_batches * steps)
            sums.append(_inner(difference, torch.stack(into_embeddings).mean(dim=0)))
            for part in self.parts:
                change = _change(harmful, harmless, harmful.values[part], harmless.values[part])
                effects[part].append(_inner(change, gradients[part]))
        return (
            {part: np.concatenate(rows) for part, rows in effects.items()},
            np.concatenate(sums),
        )

    def slopes(self, part: Component, steps: int = STEPS) -> Iterator[Slope]:
        """How steeply the refusal log-odds of harmful prompts rise with what a part puts out.

        Args:
            part: A block or MLP whose values are kept.
            steps: Points on the line from what it makes of the twins to what it makes of them.

        Raises:
            NoGradientsError: the model's weights give none.

        Yields:
            One of each batch. No layer below the part is run.
        """
        for harmful, harmless in self.batches:
            with torch.no_grad():
                own = harmful.values[part] + 0
                change = _change(harmful, harmless, harmful.values[part], harmless.values[part])
                read = (own, own - change)
                if part in self._given:
                    given = harmful.given[part]
                    other = _change(harmful, harmless, given, harmless.given[part])
                    read = (given, given - other)
            gradient = torch.zeros_like(change, dtype=torch.float32)
            network = self.model.network
            if self._resumes:
                network = self._begun(harmful, first_layer(part))
            for step in range(steps):
                point = (own - (1 - (step + 0.5) / steps) * change).requires_grad_()
                edits = {part: replace_by(point)}
                with self._gradients_needed(), intervene(self.components, edits):
                    log_p = self._logits(network, harmful.side).log_softmax(dim=-1)
                    total = self._readout(log_p)[:, 0].sum()
                    gradient += torch.autograd.grad(total, point)[0].float() / steps
            yield Slope(own, own - change, gradient, read)

    @contextmanager
    def _gradients_needed(self) -> Iterator[None]:
        """Says why there are none, where that is so."""
        try:
            with torch.enable_grad():
                yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise NoGradientsError(
                f"The weights of {self.model.info.id} give no gradients"
                f" ({first_line(error)}); load it unpacked (without --load-8bit/4bit)."
            ) from error

    def nothing_to_explain(self) -> str | None:
        """Why there is nothing to explain: it refuses harmful prompts no more than their twins."""
        harmful, harmless = self.clean(), self.clean(harmless=True)
        refused = float(np.mean(1 / (1 + np.exp(-harmful))))
        change = mean_change(harmful - harmless)
        if refused >= LEAST_REFUSED and change.interval is not None and change.interval[0] > 0:
            return None
        return (
            f"{self.model.info.id} does not refuse the harmful prompts more than their harmless"
            f" twins (it begins {refused:.0%} of its responses to harmful ones with a refusal;"
            f" log-odds differ by {change.told('nats')}), so there is nothing to explain."
        )

    @contextmanager
    def _graph(self) -> Iterator[dict[Component, Tensor]]:
        """Collects the parts' values of a pass, as nodes of its graph of gradients."""
        made: dict[Component, Tensor] = {}
        heads = [part for part in self.parts if part.part == "head"]
        others = [part for part in self.parts if part.part != "head"]
        with observe(self.components, others, lambda c, v: made.update({c: v})):
            # A head is a slice of what a module is given: to be a node it is put in again.
            def node(part: Component, values: Tensor) -> Tensor:
                made[part] = values + 0
                return made[part]

            with intervene(self.components, {part: partial(node, part) for part in heads}):
                yield made

    def direct(self) -> Direct | None:
        """Takes the twins' difference in log-odds apart by what parts write to the last token.

        Returns:
            None where parts do not add up to the stream, or the output layer gives no gradients.
            By attention and MLP among the parts, what it writes for refusal on the harmful prompt
            and on its twin, float64 [pair] in nats each: their differences, and the share of the
            embeddings, which comes second, add up to the twins' difference.
        """
        if not self.components.adds_up:
            return None
        try:
            return self._direct()
        except NoGradientsError:
            return None

    def _direct(self) -> Direct:
        last = len(self.model.layers) - 1
        block = Component(last, "block")
        writing = [part for part in self.parts if part.part in ("attention", "mlp")]
        found: dict[Component, list[np.ndarray]] = {part: [] for part in writing}
        rest = []
        for harmful, harmless in self.batches:
            a, b = (_at_last(run, block) for run in (harmful, harmless))
            gradient = torch.zeros_like(a)
            for step in range(DIRECT_STEPS):
                share = (step + 0.5) / DIRECT_STEPS
                with self._gradients_needed():
                    point = (b + share * (a - b)).detach().requires_grad_()
                    network = begin_after(self.model, last, point[:, None])
                    ids = torch.zeros(len(a), 1, dtype=torch.long, device=self.model.device)
                    logits = network(input_ids=ids, use_cache=False).logits[:, 0].float()
                    total = self._readout(logits)[:, 0].sum()
                    gradient += torch.autograd.grad(total, point)[0].float() / DIRECT_STEPS
            whole = ((a - b) * gradient).sum(dim=-1).double().cpu().numpy()
            for part in writing:
                sides = [
                    (_at_last(run, part) * gradient).sum(dim=-1).double().cpu().numpy()
                    for run in (harmful, harmless)
                ]
                found[part].append(np.stack(sides))
                whole = whole - (sides[0] - sides[1])
            rest.append(whole)
        joined = {part: np.concatenate(rows, axis=1) for part, rows in found.items()}
        return {part: (row[0], row[1]) for part, row in joined.items()}, np.concatenate(rest)


class _Line:
    """A point on the line between the embeddings of a harmful prompt and those of its twin."""

    def __init__(self, harmful: Run, harmless: Run, share: float) -> None:
        self.harmful, self.harmless, self.share = harmful, harmless, share
        self.made = torch.empty(0)
        self.difference = torch.empty(0)

    @contextmanager
    def laid(self, model: LoadedModel) -> Iterator[None]:
        embedding = model.network.get_input_embeddings()
        side, twin = self.harmful.side, self.harmless.side
        rows = torch.arange(len(side.ids))[:, None]
        with torch.no_grad():
            other = embedding(twin.ids.to(model.device))[rows, side.under(twin)]

        def between(_module: Any, _args: Any, _kwargs: Any, output: Tensor) -> Tensor:
            here = side.own.to(output.device)[..., None]
            self.difference = torch.where(here, output.detach() - other.to(output), 0)
            self.made = output.detach() - (1 - self.share) * self.difference
            return self.made.requires_grad_() if torch.is_grad_enabled() else self.made

        with watched(after=[(embedding, between)]):
            yield


def _batches(pairs: Sequence[AlignedPair], budget: int) -> list[list[AlignedPair]]:
    """Pairs in their order, as many together as the budget of tokens allows."""
    found: list[list[AlignedPair]] = [[]]
    for pair in pairs:
        longest = max(len(p.harmful.ids) for p in (*found[-1], pair))
        if found[-1] and longest * (len(found[-1]) + 1) > budget:
            found.append([])
        found[-1].append(pair)
    return found


def first_layer(part: Component) -> int:
    """The lowest layer that runs again when a part's values are others."""
    return part.layer + (part.part == "block")


def _aligned(run: Run, twin: Run, values: Tensor) -> tuple[Tensor, Tensor]:
    """The twin's values [pair, token, width] under this run's tokens, and where there are any."""
    rows = torch.arange(len(run.side.ids))[:, None]
    others = values[rows, run.side.under(twin.side)]
    return others, run.side.own.to(values.device)[..., None]


def put_in(run: Run, twin: Run, part: Component) -> Edit:
    """Gives a part its twin's values, at the tokens that are aligned."""
    others, here = _aligned(run, twin, twin.values[part])
    return lambda values: torch.where(here, others.to(values), values)


def _change(harmful: Run, harmless: Run, own: Tensor, twins: Tensor) -> Tensor:
    """[pair, token, width], what there is of a harmful prompt beyond its twin, where they align."""
    others, here = _aligned(harmful, harmless, twins)
    return torch.where(here, own - others, 0)


def _at_last(run: Run, part: Component) -> Tensor:
    values = run.values[part]
    rows = torch.arange(len(run.side.last))
    return values[rows, run.side.last].float()


def _or_zero(gradient: Tensor | None, value: Tensor) -> Tensor:
    return torch.zeros_like(value) if gradient is None else gradient.detach()


def _inner(change: Tensor, gradient: Tensor) -> np.ndarray:
    """float64 [pair]."""
    return (change.float() * gradient.float()).sum(dim=(1, 2)).double().cpu().numpy()
