"""Training learns, repeats itself, and goes on where it was stopped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sae_lens")
import sae_lens

from modelassay.errors import InputError
from modelassay.sae import evaluate_sae, train_sae
from saes import HELD_OUT, SETTINGS, TEXTS


def state_of(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


def test_training_learns_and_is_as_sparse_as_asked(tiny, trained):
    untrained = train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, tokens=256, passes=1))
    scores = [evaluate_sae(tiny(), sae, 2, HELD_OUT) for sae in (untrained, trained)]
    assert scores[1].explained_variance > scores[0].explained_variance + 0.1
    kept = save_and_load(trained, tiny)
    assert 0.6 * SETTINGS.k < evaluate_sae(tiny(), kept, 2, HELD_OUT).l0 < 1.6 * SETTINGS.k


def save_and_load(sae, tiny):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return sae_lens.SAE.load_from_disk(folder, dtype="float32")


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "matryoshka"])
def test_every_kind_trains_and_opens_in_sae_lens(tiny, kind):
    settings = replace(SETTINGS, kind=kind, tokens=2000)
    sae = save_and_load(train_sae(tiny(), lambda: TEXTS, settings), tiny)
    values = torch.randn(5, tiny().info.hidden_size)
    assert sae.decode(sae.encode(values)).shape == values.shape


def test_the_same_run_gives_the_same_dictionary(tiny, trained):
    again = state_of(train_sae(tiny(), lambda: TEXTS, SETTINGS))
    assert all(torch.equal(value, again[name]) for name, value in state_of(trained).items())


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tiny, trained, tmp_path):
    class StopError(Exception):
        pass

    def stop_after_a_window(done, _total):
        if done > 2000:
            raise StopError

    state = tmp_path / "state"
    with pytest.raises(StopError):
        train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state, on_progress=stop_after_a_window)
    assert {file.suffix for file in state.iterdir()} == {".safetensors", ".json"}
    resumed = state_of(train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state))
    for name, value in state_of(trained).items():
        assert torch.allclose(value, resumed[name], atol=1e-5), name
    with pytest.raises(InputError, match="another model or other settings"):
        train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, k=9), state=state)
    (state / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 5}, "layers must lie"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": 96}, "k must be at least 1"),
        ({"width": 2, "k": 1}, "too small"),
        ({"batch": 0}, "batch must be"),
        ({"batch": 5000}, "cannot be larger"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"context": 1}, "context"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, change, message):
    with pytest.raises(InputError, match=message):
        train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, **change))
