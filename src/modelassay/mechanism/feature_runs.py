"""What becomes of a refusal when features of an SAE do less or more than they do.

**Influence** estimates it for all features at once: how much more a feature does on the harmful
prompt than on its twin, times the gradient of the refusal log-odds along what it writes, on the
straight line between what the SAE's layer makes of the two (integrated gradients). Ranking by it
and not by activation is after CRaFT (2604.01604).

**Suppression** takes what features write out of the layer's output (a transcoder's out of its
MLP's), **boosting** adds to it: on the
harmless prompt the feature then does `BOOST` times what it does at the harmful twin's token, or at
its own where that is more. A factor alone would do nothing where a feature is silent, and one that
recognises harm is silent on harmless prompts.

All of it happens at the tokens that lie under each other; the template's beginning, whose first
token SAEs are not trained on, stays as it is. What the layer makes is known, so that the SAE runs
once for all interventions, and of the model only what is above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modelassay.mechanism.keeping import Kept, key_of
from modelassay.mechanism.swapping import Run, Swapper, first_layer
from modelassay.models.components import Component
from modelassay.progress import OnProgress, silent
from modelassay.reading.interventions import Edit, decoder_rows, unit_of_features
from modelassay.sae import SAE
from modelassay.sae.firing import fire
from modelassay.sae.labels import weights_hash

BOOST = 2.0


class FeatureRuns:
    """Passes over pairs of prompts in which features of an SAE do what they are told."""

    def __init__(self, swapper: Swapper, sae: SAE, keep: Path | None = None) -> None:
        """Runs the SAE once.

        Args:
            swapper: Pairs that were read, with what the SAE takes apart among its parts, and for a
                transcoder what its MLP is given.
            sae: On the model's device.
            keep: Folder in which effects are kept as they come.
        """
        self.swapper, self.sae = swapper, sae
        self.part = sae.part
        self._rows = decoder_rows(sae.module).float()
        self._fired = {id(run): self._fire(run) for pair in swapper.batches for run in pair}
        what = ["features", sae.name, weights_hash(sae), str(BOOST)]
        self._kept = Kept.open(keep, key_of(swapper.model, swapper.pairs, what))

    def _fire(self, run: Run) -> Any:
        """Sparse [own token, feature], in the units of the model's own activations."""
        values = (run.given if self.sae.transcoder else run.values)[self.part]
        given = values[run.side.own.to(values.device)].float()
        unit = unit_of_features(self.sae.module, given).double().cpu().numpy()
        return fire(self.sae, given).values.multiply(unit).tocsc()

    def density(self) -> np.ndarray:
        """Share of the tokens, of both sides, on which each feature fires; float64 [width]."""
        fired = list(self._fired.values())
        n_firing = np.sum([np.diff(each.indptr) for each in fired], axis=0)
        return n_firing / sum(each.shape[0] for each in fired)

    def activation(self) -> np.ndarray:
        """How much more each feature does on harmful prompts, a token; float64 [width]."""
        harmful, harmless = (
            sum(self._fired[id(pair[side])].sum(axis=0) for pair in self.swapper.batches)
            for side in (0, 1)
        )
        n_tokens = sum(pair.shared for pair in self.swapper.pairs)
        return np.asarray((harmful - harmless) / n_tokens).ravel()

    def influence(self, on_progress: OnProgress = silent) -> tuple[np.ndarray, np.ndarray]:
        """Estimates what features do for the refusal log-odds, in nats.

        Args:
            on_progress: Told how many batches are done.

        Raises:
            InputError: the model's weights give no gradients.

        Returns:
            float64 [pair, width]; and [pair], the sum that they ought to have, which what the SAE
            does not explain is a part of.
        """
        module, rows = self.sae.module, []
        whole = []
        n_batches = len(self.swapper.batches)
        for number, slope in enumerate(self.swapper.slopes(self.part)):
            parts = (slope.own, slope.other, slope.gradient, *slope.given)
            for row in zip(*parts, strict=True):
                own, other, gradient, *read = (v.float().to(self._rows.device) for v in row)
                with torch.inference_mode():
                    did, would = (
                        module.encode(given) * unit_of_features(module, given) for given in read
                    )
                    each = ((did - would) * (gradient @ self._rows.T)).sum(dim=0)
                    whole.append(float(((own - other) * gradient).sum()))
                rows.append(each.double().cpu().numpy())
            on_progress(number + 1, n_batches)
        return np.stack(rows), np.array(whole)

    def suppressed(self, features: Sequence[int], *, harmless: bool = False) -> np.ndarray:
        """The refusal log-odds [pair] of a side without what some features write."""

        def edits(run: Run, _twin: Run) -> Mapping[Component, Edit]:
            return {self.part: self._written(run, features, -self._of(run, features))}

        return self._read(edits, harmless)

    def boosted(self, features: Sequence[int]) -> np.ndarray:
        """The refusal log-odds [pair] of harmless prompts with more of some features."""

        def edits(run: Run, twin: Run) -> Mapping[Component, Edit]:
            own, other = self._of(run, features), self._of(twin, features)
            more = BOOST * np.maximum(own, other) - own
            return {self.part: self._written(run, features, more)}

        return self._read(edits, harmless=True)

    def effects(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        """What a feature does for the refusal log-odds, by suppression and by boosting.

        Returns:
            float64 [pair] each, in nats: by how much suppression lowers those of harmful prompts,
            and by how much boosting raises those of harmless ones.
        """

        def made() -> tuple[np.ndarray, np.ndarray]:
            lowered = self.swapper.clean() - self.suppressed([feature])
            return lowered, self.boosted([feature]) - self.swapper.clean(harmless=True)

        lowered, raised = self._kept.get(str(feature), made)
        return lowered, raised

    def _read(self, edits: Any, harmless: bool) -> np.ndarray:
        first = first_layer(self.part)
        return self.swapper.run(edits, harmless=harmless, first_layer=first).log_odds

    def _of(self, run: Run, features: Sequence[int]) -> np.ndarray:
        """float64 [own token, feature]; the i-th rows of twins lie under each other."""
        return self._fired[id(run)][:, list(features)].toarray()

    def _written(self, run: Run, features: Sequence[int], more: np.ndarray) -> Edit:
        """Adds what features write when they do so much more [own token, feature]."""
        values = run.values[self.part]
        rows = self._rows[list(features)]
        added = torch.zeros(values.shape, device=rows.device)
        added[run.side.own.to(rows.device)] = torch.from_numpy(more).to(rows) @ rows
        return lambda made: made + added.to(made)


def matched_features(density: np.ndarray, feature: int) -> np.ndarray:
    """Other features that fire about as often, within a factor of two, on the same tokens."""
    here = density[feature]
    matched = (density >= here / 2) & (density <= here * 2) & (density > 0)
    matched[feature] = False
    return np.flatnonzero(matched)


def rank_p_value(value: float, among: np.ndarray) -> float:
    """Share of random features that do at least as much; the one tested counts as one of them."""
    return float((1 + np.sum(np.abs(among) >= abs(value))) / (1 + len(among)))
