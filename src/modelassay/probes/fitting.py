"""Fitting a linear probe, and scoring it on prompts that it was not fitted on.

A fitter is a callable `(features [n, d], unsafe [n], groups [n], share [n]) -> (weight [d], bias)`,
where a row counts by its share; whatever it does, scores are calibrated on held-out ones (Platt
1999), and no row is scored by a fit or a calibration that saw a prompt like it.

A response gives samples at several lengths, and a label is of the whole. `Lesson` says what each
sample teaches: how far it is unsafe (spans that people marked, or a classifier's scores), and
whether the samples of a response count alike, only the longest, or all by the softmax of their own
scores, as in the softmax-weighted loss of Constitutional Classifiers++ (arXiv 2601.04603). The
softmax is found by fitting again: an unsafe response then is learnt where it is unsafe, a harmless
one where it looks worst.

The kind `factored` has two readouts: whether a response does what it was asked, and whether what it
says is harmful; an unsafe one does both.

Beside them there is the attention-pooled probe: a query learns which tokens speak, a weight what
they say. The pooled state is the average of the tokens read so far, weighted by softmax(query ·
state), as in the attention probes of the interpretability literature; with a query of zero it is
the plain mean, from which the fit starts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modelassay.errors import InputError
from modelassay.statistics import rank_auroc

Array = np.ndarray
Linear = tuple[Array, float]
Fitter = Callable[[Array, Array, Array, Array], Linear]
REGULARISATION = (0.001, 0.01, 0.1)
"""Inverse strengths of the penalty that the inner cross-validation chooses from."""
FOLDS, INNER_FOLDS = 5, 4
MIN_PROMPTS = 10
"""Distinct prompts of each class; with fewer, folds have none to score."""
EPOCHS, RATE, DECAY = 60, 0.02, 0.01
BATCH = 256
SEED = 0
ROUNDS = 2
"""Fits after the first one, each weighted by the scores of the one before."""


@dataclass(frozen=True)
class Lesson:
    """What samples teach."""

    unsafe: Array
    """float [sample] in 0 … 1, how far each is unsafe."""
    response: Array
    """int [sample], equal for the samples of one response."""
    soft: bool
    """Whether the samples of a response count by the softmax of their scores, or else alike."""
    learnt: Array | None = None
    """bool [sample], which of them count at all; None for every one."""

    def part(self, rows: Array) -> Lesson:
        """Of these samples alone."""
        learnt = None if self.learnt is None else self.learnt[rows]
        return Lesson(self.unsafe[rows], self.response[rows], self.soft, learnt)


def fit_lesson(features: Array, groups: Array, lesson: Lesson, fitter: Fitter) -> Linear:
    """Fits to what samples teach.

    Args:
        features: float32 [sample, d].
        groups: int [sample], equal for near-duplicate prompts.
        lesson: What they teach.
        fitter: See this module.

    Raises:
        InputError: they are all of one class.
    """
    if lesson.learnt is not None:
        rows = np.flatnonzero(lesson.learnt)
        taught = replace(lesson.part(rows), learnt=None)
        return fit_lesson(features[rows], groups[rows], taught, fitter)
    if len(np.unique(lesson.unsafe >= 0.5)) < 2:
        raise InputError("There is nothing to learn: all of the samples are of one class.")
    # A doubtful sample is learnt as both, by its share of each.
    doubtful = np.flatnonzero((lesson.unsafe > 0) & (lesson.unsafe < 1))
    sample = np.concatenate([np.arange(len(lesson.unsafe)), doubtful])
    unsafe = np.concatenate([lesson.unsafe >= 0.5, lesson.unsafe[doubtful] < 0.5])
    share = np.where(unsafe, lesson.unsafe[sample], 1 - lesson.unsafe[sample])
    x, of = (features[sample], groups[sample]) if len(doubtful) else (features, groups)
    found = fitter(x, unsafe, of, share)
    for _ in range(ROUNDS if lesson.soft else 0):
        weights = soft_weights(features @ found[0] + found[1], lesson.response)
        found = fitter(x, unsafe, of, share * weights[sample])
    return found


def soft_weights(scores: Array, response: Array) -> Array:
    """Softmax of standardised scores among the samples of each response, with a mean of 1 in each.

    Args:
        scores: float [sample].
        response: int [sample].
    """
    _, of, count = np.unique(response, return_inverse=True, return_counts=True)
    scaled = scores / (scores.std() or 1.0)
    top = np.full(len(count), -np.inf)
    np.maximum.at(top, of, scaled)
    mass = np.exp(scaled - top[of])
    return mass * (count / np.bincount(of, mass))[of]


def fit_logistic(features: Array, unsafe: Array, groups: Array, share: Array) -> Linear:
    """Logistic regression on standardised features; inner folds over prompts choose the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    mean, scale = _standard(features)
    x = (features - mean) / scale

    def fit(rows: Array, strength: float) -> LogisticRegression:
        model = LogisticRegression(C=strength, tol=1e-3, max_iter=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stopped before convergence: the penalty decides
            return model.fit(x[rows], unsafe[rows], balanced(share[rows], unsafe[rows]))

    folds = StratifiedGroupKFold(INNER_FOLDS).split(x, unsafe, groups)
    scores = np.zeros(len(REGULARISATION))
    for train, test in folds:
        if len(set(unsafe[test])) < 2 or len(set(unsafe[train])) < 2:
            continue
        for i, strength in enumerate(REGULARISATION):
            scores[i] += rank_auroc(fit(train, strength).decision_function(x[test]), unsafe[test])
    best = fit(np.arange(len(x)), REGULARISATION[int(scores.argmax())])
    weight = np.asarray(best.coef_)[0] / scale
    return weight, float(np.asarray(best.intercept_)[0] - weight @ mean)


def fit_means(features: Array, unsafe: Array, groups: Array, share: Array) -> Linear:
    """The difference of the two classes' means of standardised features."""
    mean, scale = _standard(features)
    x = (features - mean) / scale
    means = [np.average(x[c], axis=0, weights=share[c]) for c in (unsafe, ~unsafe)]
    weight = ((means[0] - means[1]) / scale).astype(features.dtype)
    return weight, float(-weight @ mean)


def balanced(share: Array, unsafe: Array) -> Array:
    """Weights in which both classes count alike."""
    of_unsafe = share[unsafe].sum() / share.sum()
    return share / (2 * np.where(unsafe, of_unsafe, 1 - of_unsafe))


Fit = Callable[[Array], "Readout"]
"""From indices of rows to a readout that was fitted on them."""
FITTERS: dict[str, Fitter] = {"logistic": fit_logistic, "means": fit_means}


@dataclass(frozen=True)
class Comply:
    """The second readout of the kind `factored`: whether a response does what it was asked."""

    weight: Array
    bias: float
    slope: float = 1.0
    """Of the curve that is laid over the log-odds of both together."""
    offset: float = 0.0


@dataclass(frozen=True)
class Readout:
    """A linear readout of pooled states, and the query that pools them by attention.

    With `comply` there are two of them, and the score is the log-odds of both together.
    """

    weight: Array
    bias: float
    query: Array | None = None
    comply: Comply | None = None

    def scaled(self, slope: float, offset: float) -> Readout:
        """Whose scores are slope · score + offset."""
        if (comply := self.comply) is not None:
            curve = {"slope": slope * comply.slope, "offset": slope * comply.offset + offset}
            return replace(self, comply=replace(comply, **curve))
        return Readout(slope * self.weight, slope * self.bias + offset, self.query)

    def score(self, features: Array) -> Array:
        """Scores [row] of pooled states [row, d]."""
        own = features @ self.weight + self.bias
        if (comply := self.comply) is None:
            return own
        both = odds_of_both(own, features @ comply.weight + comply.bias)
        return comply.slope * both + comply.offset


def odds_of_both(first: Array, second: Array) -> Array:
    """Log-odds of two independent events together, from the log-odds of each."""
    return -np.logaddexp(np.logaddexp(-first, -second), -first - second)


@dataclass(frozen=True)
class Fitted:
    """A calibrated readout, with those that it can be judged by."""

    readout: Readout
    """Fitted on all rows."""
    folds: tuple[Readout, ...]
    """Each fitted and calibrated without a fifth of the prompts."""
    fold: Array
    """[row], the one of `folds` that saw no prompt like it."""
    risk: Array
    """[row], under that one."""


def fit_calibrated(
    features: Array,
    unsafe: Array,
    groups: Array,
    fitter: Fitter,
    lesson: Lesson | None = None,
) -> Fitted:
    """Fits on all rows, and once without each fifth of the prompts.

    Args:
        features: float32 [row, d].
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.
        fitter: See this module.
        lesson: What the rows teach; None for what `unsafe` says, all rows alike.

    Raises:
        InputError: a class has too few prompts.
    """
    taught = lesson or plain_lesson(unsafe)
    return calibrated(linear_fit(features, groups, taught, fitter), features, unsafe, groups)


def calibrated(fit: Fit, features: Array, unsafe: Array, groups: Array) -> Fitted:
    """As `fit_calibrated`, of any `Fit`."""
    return cross_fit(fit, lambda readout, rows: readout.score(features[rows]), unsafe, groups)


def linear_fit(features: Array, groups: Array, lesson: Lesson, fitter: Fitter) -> Fit:
    """Of one readout, by a fitter; arguments as in `fit_lesson`."""

    def fit(rows: Array) -> Readout:
        x = features[rows]
        readout = Readout(*fit_lesson(x, groups[rows], lesson.part(rows), fitter))
        return on_unit_scale(readout, readout.score(x))

    return fit


def factored_fit(features: Array, groups: Array, lesson: Lesson, refuses: Array) -> Fit:
    """Of two readouts: whether a response complies, and whether what is said is harmful.

    The first learns refusals from all else, the second harmful responses from harmless ones and
    nothing of refusals. So a refusal that repeats what was asked is not taken for it, nor a
    harmless response for a refusal because both are safe.

    Args:
        features: float32 [sample, d].
        groups: int [sample].
        lesson: What they teach.
        refuses: bool [sample].
    """
    complies = replace(lesson, unsafe=(~refuses).astype(float), soft=False)

    def one(rows: Array, taught: Lesson) -> tuple[Array, float]:
        found = fit_lesson(features[rows], groups[rows], taught.part(rows), fit_logistic)
        readout = Readout(*found)
        scaled = on_unit_scale(readout, readout.score(features[rows]))
        return scaled.weight, scaled.bias

    def fit(rows: Array) -> Readout:
        weight, bias = one(rows[~refuses[rows]], lesson)
        readout = Readout(weight, bias, comply=Comply(*one(rows, complies)))
        return on_unit_scale(readout, readout.score(features[rows]))

    return fit


def plain_lesson(unsafe: Array) -> Lesson:
    """Rows that teach what they are labelled, each for itself."""
    return Lesson(unsafe.astype(float), np.arange(len(unsafe)), soft=False)


def cross_fit(
    fit: Callable[[Array], Readout],
    score: Callable[[Readout, Array], Array],
    unsafe: Array,
    groups: Array,
) -> Fitted:
    """Fits and calibrates so that no row is scored by what it had a part in.

    The curve from a fold's scores to risks is that of the other folds' held-out scores.

    Args:
        fit: From row indices to a readout whose scores are on a common scale.
        score: Of a readout, for row indices.
        unsafe: bool [row].
        groups: int [row].

    Raises:
        InputError: a class has too few prompts.
    """
    check_classes(unsafe, groups)
    fold = np.zeros(len(unsafe), dtype=int)
    held_out = np.zeros(len(unsafe))
    raw = []
    for k, (train, test) in enumerate(folds_of(unsafe, groups)):
        raw.append(fit(train))
        fold[test] = k
        held_out[test] = score(raw[k], test)
    folds, risk = [], np.zeros(len(unsafe))
    for k, readout in enumerate(raw):
        curve = platt(held_out[fold != k], unsafe[fold != k])
        folds.append(readout.scaled(*curve))
        risk[fold == k] = expit(curve[0] * held_out[fold == k] + curve[1])
    whole = fit(np.arange(len(unsafe))).scaled(*platt(held_out, unsafe))
    return Fitted(whole, tuple(folds), fold, risk)


def on_unit_scale(readout: Readout, scores: Array) -> Readout:
    """So that scores of different fits can be put together: mean 0, spread 1 on their own rows."""
    spread = float(scores.std()) or 1.0
    return readout.scaled(1 / spread, -float(scores.mean()) / spread)


def folds_of(unsafe: Array, groups: Array) -> Sequence[tuple[Array, Array]]:
    """(train, test) row indices; a group is never in both."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return list(folds.split(np.zeros(len(unsafe)), unsafe, groups))


def leave_one_source_out(
    features: Array, unsafe: Array, groups: Array, sources: Array, fitter: Fitter
) -> dict[str, Array]:
    """`left_out_scores` of a fitter, where every row is one sample."""
    taught = plain_lesson(unsafe)

    def fit(rows: Array) -> Readout:
        return Readout(*fit_lesson(features[rows], groups[rows], taught.part(rows), fitter))

    return left_out_scores(fit, features, unsafe, groups, sources, taught)


def left_out_scores(
    fit: Fit,
    features: Array,
    unsafe: Array,
    groups: Array,
    sources: Array,
    lesson: Lesson,
    last: Array | None = None,
) -> dict[str, Array]:
    """Risk-ordered scores for each source from a fit that saw none of it.

    Args:
        fit: From indices of samples to a readout.
        features: float32 [sample, d].
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.
        sources: str [row].
        lesson: What the samples teach; its `response` is the row of each.
        last: bool [sample], those that rows are scored by, in their order; None for all.

    Returns:
        For each source, scores [row] of all rows from that fit: those of the source itself, and of
        the fifth of the other rows that was held out too, to compare it with; others are NaN.
    """
    scored = features if last is None else features[last]
    _, test = folds_of(unsafe, groups)[0]
    other = np.zeros(len(unsafe), dtype=bool)
    other[test] = True
    scores: dict[str, Array] = {}
    for source in dict.fromkeys(sources.tolist()):
        left = sources == source
        # Near-duplicates of a left-out prompt in other sources are left out with it.
        rows = ~left & ~other & ~np.isin(groups, groups[left])
        try:
            found = fit(np.flatnonzero(rows[lesson.response])).score(scored)
        except InputError:  # what is left is of one class
            continue
        scores[source] = np.where(left | other, found, np.nan)
    return scores


def check_classes(unsafe: Array, groups: Array) -> None:
    """Refuses data that folds cannot be made of.

    Raises:
        InputError: says which class is short of prompts.
    """
    for value, name in ((True, "unsafe"), (False, "safe")):
        n = len(np.unique(groups[unsafe == value]))
        if n < MIN_PROMPTS:
            raise InputError(
                f"The data has {n} distinct prompts labelled {name}; at least {MIN_PROMPTS} of each"
                " class are needed."
            )


def platt(score: Array, unsafe: Array) -> tuple[float, float]:
    """Slope and offset of the logistic curve from scores to risks (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    curve = LogisticRegression(C=1e3).fit(score[:, None], unsafe)
    return max(float(np.asarray(curve.coef_)[0, 0]), 1e-6), float(np.asarray(curve.intercept_)[0])


def _standard(features: Array) -> tuple[Array, Array]:
    scale = features.std(0)
    return features.mean(0), np.where(scale > 1e-6, scale, 1.0)


def fit_attention(
    activations: Sequence[Tensor],
    unsafe: np.ndarray,
    groups: np.ndarray,
    *,
    epochs: int = EPOCHS,
    learning_rate: float = RATE,
) -> Fitted:
    """Fits query and weight together.

    Args:
        activations: For each row, [token, hidden] of one block.
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.
        epochs: Passes over the rows that the query is learnt in.
        learning_rate: Of the query.

    Raises:
        InputError: a class has too few prompts.
    """

    def score(readout: Readout, rows: np.ndarray) -> np.ndarray:
        pooled = _pooled([activations[i] for i in rows], torch.from_numpy(readout.query))
        return pooled @ readout.weight + readout.bias

    def fit(rows: np.ndarray) -> Readout:
        some = [activations[i] for i in rows]
        query, weight, bias = _fit(some, unsafe[rows], groups[rows], epochs, learning_rate)
        readout = Readout(weight, bias, query.numpy())
        return on_unit_scale(readout, score(readout, rows))

    return cross_fit(fit, score, unsafe, groups)


def _fit(
    activations: Sequence[Tensor],
    unsafe: np.ndarray,
    groups: np.ndarray,
    epochs: int,
    learning_rate: float,
) -> tuple[Tensor, np.ndarray, float]:
    """Learns the query by gradient, then the weight on what it pools by logistic regression."""
    total = torch.stack([each.float().mean(0) for each in activations])
    mean, scale = total.mean(0), total.std(0).clamp_min(1e-3)
    torch.manual_seed(SEED)
    query = torch.zeros(total.shape[1], requires_grad=True)
    weight = torch.zeros(total.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([query, weight, bias], lr=learning_rate, weight_decay=DECAY)
    target = torch.from_numpy(unsafe).float()
    balance = (len(unsafe) - unsafe.sum()) / max(unsafe.sum(), 1)
    order = sorted(range(len(activations)), key=lambda i: len(activations[i]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for step in range(epochs):
        for batch in np.random.default_rng(step).permutation(len(batches)):
            rows = batches[batch]
            x = pad_sequence(
                [(activations[i].float() - mean) / scale for i in rows], batch_first=True
            )
            lengths = torch.tensor([len(activations[i]) for i in rows])
            there = torch.arange(x.shape[1]) < lengths[:, None]
            attention = (x @ query).masked_fill(~there, -torch.inf).softmax(dim=1)
            logits = torch.einsum("bt,bth,h->b", attention, x, weight) + bias
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits, target[rows], pos_weight=torch.tensor(float(balance))
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    raw = (query / scale).detach()  # of states as they are; the mean drops out of the softmax
    fitted, intercept = fit_logistic(
        _pooled(activations, raw), unsafe, groups, np.ones(len(unsafe))
    )
    return raw, fitted, intercept


def _pooled(activations: Sequence[Tensor], query: Tensor) -> np.ndarray:
    rows = [(each.float() @ query).softmax(0) @ each.float() for each in activations]
    return torch.stack(rows).numpy()
