"""Rows of training files for tests, and a model that has learnt some."""

from __future__ import annotations

import json

import torch

from modelassay.triage.loss import encode_rows
from modelassay.triage.rows import to_row

NOUNS = ["bread", "paper", "glass", "stone", "wool", "copper", "clay", "silk", "cork", "tin"]


def row(prompt, response="Yes.", number=1):
    return to_row({"prompt": prompt, "response": response}, number, "x")


def numbered(pairs):
    return [row(prompt, response, i) for i, (prompt, response) in enumerate(pairs, 1)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def trained_copy(folder, base, texts, steps=150):
    """A copy of a tiny model that was trained on some rows alone."""
    from modelassay.models import load

    model = load(str(base), device="cpu")
    network = model.network.requires_grad_(True).train()
    encoded, _ = encode_rows(model, texts)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(steps):
        [each] = encoded[step % len(encoded)]
        ids = torch.tensor([each.ids])
        logits = network(input_ids=ids).logits[0, each.response_start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, each.response_start :])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval().save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder
