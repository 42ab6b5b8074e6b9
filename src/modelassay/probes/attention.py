"""Attention-pooled probes: a query learns which tokens speak, a weight what they say.

The pooled state is the average of the tokens read so far, weighted by softmax(query · state), as in
the attention probes of the interpretability literature; with a query of zero it is the plain mean,
from which the fit starts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from modelassay.probes.fitting import Fitted, Readout, cross_fit, fit_logistic, on_unit_scale

STEPS, RATE, DECAY = 60, 0.02, 0.01
BATCH = 256
SEED = 0


def fit_attention(states: Sequence[Tensor], unsafe: np.ndarray, groups: np.ndarray) -> Fitted:
    """Fits query and weight together.

    Args:
        states: For each row, [token, hidden] of one block.
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.

    Raises:
        InputError: a class has too few prompts.
    """

    def score(readout: Readout, rows: np.ndarray) -> np.ndarray:
        pooled = _pooled([states[i] for i in rows], torch.from_numpy(readout.query))
        return pooled @ readout.weight + readout.bias

    def fit(rows: np.ndarray) -> Readout:
        query, weight, bias = _fit([states[i] for i in rows], unsafe[rows], groups[rows])
        readout = Readout(weight, bias, query.numpy())
        return on_unit_scale(readout, score(readout, rows))

    return cross_fit(fit, score, unsafe, groups)


def _fit(
    states: Sequence[Tensor], unsafe: np.ndarray, groups: np.ndarray
) -> tuple[Tensor, np.ndarray, float]:
    """Learns the query by gradient, then the weight on what it pools by logistic regression."""
    total = torch.stack([each.float().mean(0) for each in states])
    mean, scale = total.mean(0), total.std(0).clamp_min(1e-3)
    torch.manual_seed(SEED)
    query = torch.zeros(total.shape[1], requires_grad=True)
    weight = torch.zeros(total.shape[1], requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.AdamW([query, weight, bias], lr=RATE, weight_decay=DECAY)
    target = torch.from_numpy(unsafe).float()
    balance = (len(unsafe) - unsafe.sum()) / max(unsafe.sum(), 1)
    order = sorted(range(len(states)), key=lambda i: len(states[i]))
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    for step in range(STEPS):
        for batch in np.random.default_rng(step).permutation(len(batches)):
            rows = batches[batch]
            x = pad_sequence([(states[i].float() - mean) / scale for i in rows], batch_first=True)
            lengths = torch.tensor([len(states[i]) for i in rows])
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
    fitted, intercept = fit_logistic(_pooled(states, raw), unsafe, groups)
    return raw, fitted, intercept


def _pooled(states: Sequence[Tensor], query: Tensor) -> np.ndarray:
    rows = [(each.float() @ query).softmax(0) @ each.float() for each in states]
    return torch.stack(rows).numpy()
