"""Rows that stand out by their text alone, without the models that were trained on them.

* Alone: how far a row is from its neighbours in the space of the MiniLM sentence encoder.
* Clump: how much closer a row's few nearest neighbours are than those a little further out. Poison
  is seldom one row: it takes several that say the same, and they lie together apart from the rest.
* Harm: how likely the embedded exchange classifier holds it that the response complies with a
  harmful request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modelassay.classifier.model import UNSAFE, load_classifier, pick_device
from modelassay.classifier.network import load_encoder
from modelassay.errors import InputError
from modelassay.models.embedded import ensure_encoder
from modelassay.progress import OnProgress
from modelassay.triage.rows import TrainingRow

MAX_TOKENS = 256
"""What the encoder was made for; the rest of a row is not read."""
BATCH = 32
CHUNK = 256  # rows between two signs of life
MIN_ROWS = 10
NEAR = 3
WORKING_MEMORY = 128  # MB, of the distances that are held at a time


def embed_rows(
    rows: Sequence[TrainingRow], *, device: str = "auto", on_progress: OnProgress | None = None
) -> np.ndarray:
    """Embeddings of prompt and response together, float32 [row, 384] of length 1.

    Args:
        rows: What to embed; the first `MAX_TOKENS` tokens of each are read.
        device: auto, cpu, cuda or cuda:N.
        on_progress: Told (different rows done, different rows in all).

    Raises:
        UnavailableError: the encoder cannot be fetched.
    """
    texts = [row.plain or f"{row.prompt}\n{row.response}" for row in rows]
    distinct = sorted(set(texts), key=lambda text: (len(text), text))  # alike lengths pad least
    encoder, tokenizer = load_encoder(ensure_encoder())
    where = pick_device(device)
    encoder.to(where).eval()
    found: list[np.ndarray] = []
    with torch.inference_mode():
        for start in range(0, len(distinct), BATCH):
            inputs = tokenizer(
                distinct[start : start + BATCH],
                padding=True,
                truncation=True,
                max_length=MAX_TOKENS,
                return_tensors="pt",
            ).to(where)
            hidden = encoder(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # the pooling it was trained with
            found.append(torch.nn.functional.normalize(mean, dim=-1).cpu().numpy())
            if on_progress:
                on_progress(min(start + BATCH, len(distinct)), len(distinct))
    index = {text: i for i, text in enumerate(distinct)}
    return np.concatenate(found)[[index[text] for text in texts]]


@dataclass(frozen=True)
class Neighbourhoods:
    """Cosine distances, 0 … 2, of every row to its neighbours; equal rows count as one."""

    near: np.ndarray
    """float64 [row], to the `NEAR`-th nearest different row."""
    far: np.ndarray
    """float64 [row], to the k-th, k = √n of n different rows: how alone a row is."""
    k: int

    @property
    def clump(self) -> np.ndarray:
        """float64 [row], `far - near`: large in a group of more than `NEAR` and fewer than k."""
        return self.far - self.near


def neighbourhoods(embeddings: np.ndarray) -> Neighbourhoods:
    """Distances of rows to those around them.

    Args:
        embeddings: float [row, width] of length 1.

    Raises:
        InputError: fewer than `MIN_ROWS` different rows.
    """
    from sklearn import config_context
    from sklearn.neighbors import NearestNeighbors

    distinct, inverse = np.unique(embeddings.round(5), axis=0, return_inverse=True)
    n = len(distinct)
    if n < MIN_ROWS:
        raise InputError(
            f"Rows that stand out are looked for among {MIN_ROWS} different ones or more; there"
            f" are {n}."
        )
    k = min(max(NEAR + 1, int(np.ceil(np.sqrt(n)))), n - 1)
    with config_context(working_memory=WORKING_MEMORY):
        nearest = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(distinct)
        lengths, _ = nearest.kneighbors(distinct)  # the first one is the row itself
    distances = (lengths.astype(np.float64) ** 2 / 2)[inverse.ravel()]
    return Neighbourhoods(distances[:, NEAR], distances[:, k], k)


def harm_of_responses(
    rows: Sequence[TrainingRow], *, device: str = "auto", on_progress: OnProgress | None = None
) -> np.ndarray:
    """P(the response complies with a harmful request) by the embedded exchange classifier.

    Args:
        rows: What to judge; plain text is judged as an answer to nothing.
        device: auto, cpu, cuda or cuda:N.
        on_progress: Told (rows done, rows in all).

    Returns:
        float64 [row], 0 … 1, NaN for rows without a response.

    Raises:
        UnavailableError: the encoder cannot be fetched.
    """
    classifier = load_classifier(device=device)
    answered = [i for i, row in enumerate(rows) if row.response or row.plain]
    found = np.full(len(rows), np.nan)
    for start in range(0, len(answered), CHUNK):
        part = answered[start : start + CHUNK]
        pairs = [(rows[i].prompt, rows[i].response or rows[i].plain) for i in part]
        found[part] = classifier.predict(pairs, whole=True)[:, UNSAFE]
        if on_progress:
            on_progress(start + len(part), len(answered))
    return found
