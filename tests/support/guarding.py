"""What guarded responses of tiny models are held against."""

from __future__ import annotations

import numpy as np
import torch

from modelassay.guard import Thresholds
from modelassay.reading.prompts import encode_chat

OPEN = Thresholds(0.999999, 1.0)


class Judge:
    """A classifier that says what it is told."""

    threshold = 0.5

    def __init__(self, unsafe=0.0):
        self.unsafe = unsafe
        self.asked = []

    def predict(self, exchanges):
        self.asked += exchanges
        if isinstance(self.unsafe, Exception):
            raise self.unsafe
        if callable(self.unsafe):
            return self.unsafe()
        return np.array([[1 - self.unsafe, 0.0, self.unsafe]], dtype=np.float32)


def text_of(events):
    return "".join(event.text for event in events)


def generated(model, prompt, n):
    """What transformers' own greedy generation gives."""
    ids = torch.tensor([encode_chat(model, [{"role": "user", "content": prompt}])])
    with torch.inference_mode():
        out = model.network.generate(input_ids=ids, max_new_tokens=n, do_sample=False)
    return out[0, ids.shape[1] :].tolist()
