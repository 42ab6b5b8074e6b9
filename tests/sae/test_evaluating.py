"""What an SAE explains and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sae_lens")
from modelassay.errors import InputError
from modelassay.sae import evaluate_sae
from modelassay.sae.stream import encode_contexts
from saes import HELD_OUT


class Whole:
    """An SAE that takes nothing apart and so loses nothing."""

    device = torch.device("cpu")

    def __init__(self, d: int, keep: float = 1.0) -> None:
        self.cfg = type("Config", (), {"d_in": d, "d_sae": 2 * d})()
        self.keep = keep

    def encode(self, x):
        return torch.cat([x.relu(), (-x).relu()], dim=-1)

    def decode(self, features):
        half = features.shape[-1] // 2
        return self.keep * (features[..., :half] - features[..., half:])


def test_a_perfect_dictionary_explains_all_and_costs_nothing(tiny):
    model = tiny()
    scores = evaluate_sae(model, Whole(model.info.hidden_size), 2, HELD_OUT)
    assert scores.explained_variance == pytest.approx(1)
    assert scores.loss_added == pytest.approx(0, abs=1e-5)
    # Random layers are of no use to these texts; were they, all of it would be undone.
    assert scores.loss_recovered is None
    useful = replace(scores, loss_mean=scores.loss + 1)
    assert useful.loss_recovered == pytest.approx(1, abs=1e-3)
    losses = [useful.loss, useful.loss_spliced, useful.loss_mean]
    assert list(useful.to_dataframe()["loss"]) == list(useful.figure().data[0].y) == losses
    assert "undoes 100.0% of the damage" in useful._repr_html_()
    assert scores.l0 == pytest.approx(model.info.hidden_size)
    assert scores.dead_share == 0


def test_the_loss_is_the_model_s_own(tiny):
    model = tiny()
    scores = evaluate_sae(model, Whole(model.info.hidden_size, keep=0.0), 2, HELD_OUT[:1])
    ids = torch.tensor([encode_contexts(model, HELD_OUT[:1], 128)[0].ids])
    with torch.no_grad():
        logits = model.network(input_ids=ids).logits[0, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 2:])
    assert scores.loss == pytest.approx(float(expected), abs=1e-4)
    assert abs(scores.loss_added) > 1e-4
    assert scores.explained_variance <= 0


def test_scoring_does_not_depend_on_the_batch(tiny, trained):
    whole = evaluate_sae(tiny(), trained, 2, HELD_OUT)
    parts = [evaluate_sae(tiny(), trained, 2, [text]) for text in HELD_OUT]
    tokens = [part.n_tokens for part in parts]
    l0 = sum(p.l0 * n for p, n in zip(parts, tokens, strict=True)) / sum(tokens)
    assert whole.n_tokens == sum(tokens)
    assert whole.loss == pytest.approx(
        sum(p.loss * (n - 1) for p, n in zip(parts, tokens, strict=True))
        / (sum(tokens) - len(tokens)),
        abs=1e-4,
    )
    assert l0 > 0


def test_a_dictionary_of_another_width_is_refused(tiny):
    with pytest.raises(InputError, match="belongs to another model"):
        evaluate_sae(tiny(), Whole(7), 2, HELD_OUT)
