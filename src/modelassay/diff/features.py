"""Which features of an SAE changed, tested against chance.

For every feature and each of two parts (tokens of prompts, tokens of responses) the activation is
averaged over a prompt's tokens, in base and candidate, and the paired difference is tested by sign
flips over prompts: were base and candidate exchangeable, every pattern of signs would be as likely.
Differences that rounding makes must not count, so each is first shrunk by a margin, a share of how
strongly the feature fires in either model; a flip leaves the margin as it is, so the test stays
exact. All features are then judged together (Benjamini & Hochberg 1995).

Nothing dense of prompts x width is ever held: what is kept are the activations that are not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.diff.reading import Matched, Reading
from modelassay.errors import InputError
from modelassay.report.json import published
from modelassay.sae import SAE, SAES, find_sae, open_labels
from modelassay.sae.firing import fire, mean_by_owner
from modelassay.sae.lookup import known_texts
from modelassay.statistics import N_FLIPS_FINE, benjamini_hochberg, sign_flip_p_values

Part = Literal["prompt", "answer"]
MARGIN = 0.1
"""Of a feature's root mean square activation; rounding to 8 bits moves activations by less."""
MIN_PROMPTS = 6
"""Prompts on which a feature must differ to be tested: fewer signs cannot give p < 0.03."""
Q_LEVEL = 0.05
REPORTED = 50
TOP_TOKENS = 8
BROKEN = 0.15
"""Difference of the explained variance from which changes of features are not to be trusted."""


@dataclass(frozen=True)
class FeatureChange:
    """How one feature's activation changed on one part of the prompts."""

    sae: str
    layer: int
    feature: int
    part: Part
    base: float
    """Mean activation a token."""
    candidate: float
    difference: float
    """candidate - base, before shrinking."""
    interval: tuple[float, float]
    """95% t-interval over prompts."""
    effect: float
    """Mean difference over its standard deviation between prompts (Cohen's d_z)."""
    moved: float
    """|difference| times the length of the decoder's row: how far it moved the residual stream."""
    p_value: float
    """NaN where it differs on fewer than `MIN_PROMPTS` prompts: it is not tested."""
    q_value: float
    n_prompts: int
    """Prompts on which the feature fires in either model."""
    tokens: tuple[str, ...]
    """Tokens on which it fires most, in the model in which it fires more."""
    label: str | None = None
    """What it is known for; None where nobody has named it."""
    n_differ: int = 0
    """Prompts on which it differs by more than rounding could make."""

    @property
    def finest_p(self) -> float:
        """The smallest p-value that its prompts allow: one pattern of signs and its reverse."""
        return max(2.0 ** (1 - self.n_differ), 1 / (N_FLIPS_FINE + 1))

    @property
    def effect_interval(self) -> tuple[float, float]:
        """95% interval of the effect: that of the mean, in units of the same spread."""
        unit = self.effect / self.difference if self.difference else 0.0
        return self.interval[0] * unit, self.interval[1] * unit

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return published(asdict(self), sae="dictionary")


@dataclass(frozen=True)
class SAEDiff:
    """All that one SAE tells about a change."""

    sae: str
    layer: int
    width: int
    explained_base: float
    """Share of the variance that the reconstruction explains."""
    explained_candidate: float
    broken: bool
    """Whether it explains one of the models so much worse that feature changes mean little."""
    l0_base: float
    l0_candidate: float
    n_tested: int
    n_significant: int
    """Feature and part, q < 0.05."""
    moved: float
    """Movement of the significant ones added up, over the mean length of the base's states."""
    explained_of_change: float
    """Share of the mean change of the residual stream that changes of features add up to."""
    features: tuple[FeatureChange, ...]
    """The significant ones first, each part by how far they moved the residual stream."""
    n_untested: int = 0
    """Feature and part that differ on too few prompts to be tested."""
    untested: tuple[FeatureChange, ...] = ()
    """Those of them that moved the residual stream most."""
    finest_q: float | None = None
    """The smallest q-value that these prompts could have given; None where none was tested."""

    @property
    def too_few(self) -> str | None:
        """What to know where the prompts are too few to show a change."""
        if not self.n_tested and self.n_untested:
            return (
                f"No feature was tested: {self.n_untested} differ, but each on fewer than"
                f" {MIN_PROMPTS} prompts, which chance may do. More prompts can tell."
            )
        if self.finest_q is not None and self.finest_q >= Q_LEVEL:
            return (
                f"So few prompts cannot show a change: the smallest q-value that they allow is"
                f" {self.finest_q:.2g}. More prompts can tell."
            )
        return None

    def to_dict(self) -> dict[str, Any]:
        """JSON values without the features."""
        values = published(asdict(self), sae="dictionary")
        del values["features"], values["untested"]
        return values | {"too_few": self.too_few}


@dataclass(frozen=True)
class FiredFeatures:
    """What an SAE's features did at the tokens that a model read."""

    matched: Matched
    values: Any
    """Sparse [token, feature], by columns."""
    explained: float
    """Share of the variance that the reconstruction explains."""

    def means(self, keep: np.ndarray) -> Any:
        """Sparse [prompt, feature], mean over those of a prompt's tokens that `keep` marks."""
        owners = self.matched.owners().numpy()[keep]
        return mean_by_owner(self.values, np.flatnonzero(keep), owners, len(self.matched.lengths))

    def of(self, features: Sequence[int]) -> np.ndarray:
        """float64 [token, feature] of some features."""
        return self.values[:, list(features)].toarray()

    def top_tokens(self, feature: int, keep: np.ndarray) -> tuple[str, ...]:
        """Those tokens that `keep` marks on which a feature fires most, each once."""
        column = self.values[:, [feature]]
        kept = keep[column.indices]
        rows = column.indices[kept][np.argsort(-column.data[kept], kind="stable")]
        return tuple(dict.fromkeys(self.matched.tokens[row] for row in rows))[:TOP_TOKENS]


def encode_features(sae: SAE, activations: Tensor, matched: Matched) -> FiredFeatures:
    """Runs an SAE at tokens.

    Args:
        sae: The SAE.
        activations: [token, hidden], the output of its layer.
        matched: What was read.
    """
    fired = fire(sae, activations)
    return FiredFeatures(matched, fired.values, fired.explained)


def compare_features(
    base: Reading, candidate: Reading, sae: SAE, *, reported: int = REPORTED
) -> SAEDiff:
    """Compares the features of two readings.

    Args:
        base: The base's reading, with the SAE's layer among its layers.
        candidate: The candidate's.
        sae: Of the base, or of a model of its family.
        reported: Feature changes that are listed.

    Raises:
        InputError: the SAE reads another width.
    """
    x, y = base.at(sae.layer), candidate.at(sae.layer)
    if x.shape[1] != sae.hidden_size:
        raise InputError(
            f"The SAE {sae.name} reads {sae.hidden_size} dimensions; the models have {x.shape[1]}."
        )
    before, after = encode_features(sae, x, base.matched), encode_features(sae, y, base.matched)
    in_response = base.matched.in_response().numpy()
    changes: list[FeatureChange] = []
    active = 0
    parts: dict[Part, np.ndarray] = {"prompt": ~in_response, "answer": in_response}
    for part, keep in parts.items():
        if keep.any():
            a, b = before.means(keep), after.means(keep)
            changes += _changes(a, b, part, sae)
            active += int((np.diff((a + b).indptr) > 0).sum())
    untested = sorted((c for c in changes if np.isnan(c.p_value)), key=lambda c: -c.moved)
    changes = _with_q([c for c in changes if not np.isnan(c.p_value)], active)
    significant = [c for c in changes if c.q_value < Q_LEVEL]
    changes.sort(key=lambda c: (c.q_value >= Q_LEVEL, -c.moved))

    def listed(found: Sequence[FeatureChange]) -> tuple[FeatureChange, ...]:
        return tuple(
            replace(
                change,
                tokens=(after if change.difference > 0 else before).top_tokens(
                    change.feature, parts[change.part]
                ),
            )
            for change in found[:reported]
        )

    return SAEDiff(
        sae=sae.name,
        layer=sae.layer,
        width=sae.width,
        explained_base=before.explained,
        explained_candidate=after.explained,
        broken=abs(after.explained - before.explained) > BROKEN,
        l0_base=before.values.nnz / len(x),
        l0_candidate=after.values.nnz / len(y),
        n_tested=len(changes),
        n_significant=len(significant),
        moved=sum(c.moved for c in significant) / float(x.norm(dim=-1).mean()),
        explained_of_change=_explained_of_change(sae, before, after, x, y),
        features=listed(changes),
        n_untested=len(untested),
        untested=listed(untested),
        finest_q=_finest_q(changes, active),
    )


def _changes(base: Any, candidate: Any, part: Part, sae: SAE) -> list[FeatureChange]:
    from scipy.stats import t as student

    difference = (candidate - base).tocsc()
    either = (candidate + base).tocsc()
    n_active = np.diff(either.indptr)
    # Mean square of both models over the prompts on which either fires: flips leave it as it is.
    square = np.asarray((candidate.multiply(candidate) + base.multiply(base)).sum(axis=0)).ravel()
    margin = MARGIN * np.sqrt(square / np.maximum(2 * n_active, 1))
    shrunk = difference.copy()
    of_column = np.repeat(np.arange(shrunk.shape[1]), np.diff(shrunk.indptr))
    shrunk.data = np.sign(shrunk.data) * np.maximum(np.abs(shrunk.data) - margin[of_column], 0)
    shrunk.eliminate_zeros()
    n_differ = np.diff(shrunk.indptr)
    differ = np.flatnonzero(n_differ)
    if not len(differ):
        return []
    tested = n_differ[differ] >= MIN_PROMPTS
    p_values = np.full(len(differ), np.nan)
    if tested.any():
        p_values[tested] = sign_flip_p_values(shrunk[:, differ[tested]])
    n = difference.shape[0]
    columns = difference[:, differ]
    mean = np.asarray(columns.mean(axis=0)).ravel()
    second = np.asarray(columns.multiply(columns).mean(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(second - mean**2, 0) * n / max(n - 1, 1))
    half = float(student.ppf(0.975, max(n - 1, 1))) * deviation / np.sqrt(n)
    lengths = _decoder(sae).norm(dim=1).numpy()
    before = np.asarray(base[:, differ].mean(axis=0)).ravel()
    after = np.asarray(candidate[:, differ].mean(axis=0)).ravel()
    return [
        FeatureChange(
            sae=sae.name,
            layer=sae.layer,
            feature=int(feature),
            part=part,
            base=float(before[i]),
            candidate=float(after[i]),
            difference=float(mean[i]),
            interval=(float(mean[i] - half[i]), float(mean[i] + half[i])),
            effect=float(mean[i] / max(deviation[i], 1e-12)),
            moved=float(abs(mean[i]) * lengths[feature]),
            p_value=float(p_values[i]),
            q_value=float("nan"),
            n_prompts=int(n_active[feature]),
            tokens=(),
            n_differ=int(n_differ[feature]),
        )
        for i, feature in enumerate(differ)
    ]


def _with_q(changes: Sequence[FeatureChange], active: int) -> list[FeatureChange]:
    """With q-values among all features that fire: one that is not tested counts with p = 1."""
    p_values = np.ones(max(active, len(changes)))
    p_values[: len(changes)] = [change.p_value for change in changes]
    q_values = benjamini_hochberg(p_values)[: len(changes)]
    return [replace(c, q_value=float(q)) for c, q in zip(changes, q_values, strict=True)]


def _finest_q(changes: Sequence[FeatureChange], active: int) -> float | None:
    """The smallest q-value, were all that is tested as clear as its prompts allow."""
    if not changes:
        return None
    p_values = np.sort([change.finest_p for change in changes])
    return float(min(1.0, (p_values * active / np.arange(1, len(p_values) + 1)).min()))


def _explained_of_change(
    sae: SAE, before: FiredFeatures, after: FiredFeatures, x: Tensor, y: Tensor
) -> float:
    """1 - ‖mean Δ - Σ_f mean Δ_f · d_f‖² / ‖mean Δ‖², over all tokens."""
    change = (y - x).mean(dim=0)
    means = np.asarray((after.values - before.values).mean(axis=0)).ravel()
    told = torch.from_numpy(means).float() @ _decoder(sae)
    return float(1 - (change - told).square().sum() / change.square().sum().clamp_min(1e-12))


def _decoder(sae: SAE) -> Tensor:
    return sae.module.W_dec.detach().float().cpu()


def shipped_saes(base: str, *, device: str = "cpu") -> tuple[SAE, ...]:
    """The SAEs of a model that come with modelassay; often there are none.

    Args:
        base: Id of the model.
        device: Where their weights are put.

    Raises:
        InputError: one is damaged.
        UnavailableError: there are some, and sae-lens is not installed.
    """
    names = [found.name for found in SAES.list(own=False) if found.model_id == base]
    return tuple(find_sae(name, device=device) for name in names)


def check_labels(saes: Sequence[SAE]) -> None:
    """Refuses labels that could not be read once the comparison is done.

    Raises:
        InputError: labels lie beside an SAE and are damaged or another one's.
    """
    for sae in saes:
        open_labels(sae)


def label_changes(found: SAEDiff, sae: SAE) -> SAEDiff:
    """The same with what is known of the features that are listed.

    Args:
        found: What changed.
        sae: The SAE that it was found with.

    Raises:
        InputError: labels lie beside the SAE and are damaged or another one's.
    """
    known = known_texts(sae, [change.feature for change in found.features])
    labelled = tuple(replace(c, label=known.get(c.feature)) for c in found.features)
    return replace(found, features=labelled)
