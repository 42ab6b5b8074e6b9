"""What the tests of sae share."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch

import saes
from labelled import (
    AFTER_O,
    HELD_OUT,
    LAYER,
    NEURONPEDIA,
    ON_X,
    RANDOM,
    TEXTS,
    TWIN,
    WIDTH,
    Neuronpedia,
    make_texts,
)
from modelassay.sae import Settings, label_features, save_labels, save_sae, train_sae
from modelassay.sae.files import as_sae


@pytest.fixture(scope="session")
def trained(tiny):
    pytest.importorskip("sae_lens")
    return train_sae(tiny(), lambda: saes.TEXTS, saes.SETTINGS)


@pytest.fixture
def folder(tiny, trained, tmp_path):
    out = tmp_path / "dictionary"
    save_sae(
        copy.deepcopy(trained),
        tiny(),
        saes.SETTINGS,
        saes.HELD_OUT,
        out,
        name="tiny",
        data=["lines"],
    )
    return out


@pytest.fixture(scope="session")
def planted(tiny):
    """An SAE whose features are known: one fires on x, one on several letters after o.

    Directions are fitted by least squares; thresholds lie between the classes.
    """
    sae_lens = pytest.importorskip("sae_lens")
    from modelassay.reading.activations import read_activations
    from modelassay.sae.stream import encode_contexts

    model = tiny()
    contexts = encode_contexts(model, make_texts(200, 7), 128)
    values = read_activations(model, contexts, [LAYER], position="all").values[:, 0]
    ids = torch.tensor([token for row in contexts for token in row.ids[1:]])
    x, v, g = (model.tokenizer(c, add_special_tokens=False)["input_ids"][0] for c in "xvg")
    d = values.shape[1]
    draw = torch.Generator().manual_seed(0)
    encoder = torch.randn((d, WIDTH), generator=draw)
    bias = torch.full((WIDTH,), -1e6)
    wanted = {ON_X: ids == x, AFTER_O: (ids == x) | (ids == v) | (ids == g)}
    for feature, fires in wanted.items():
        target = fires.float()
        design = torch.cat([values, torch.ones(len(values), 1)], dim=1).double()
        ridge = 1e-4 * torch.eye(d + 1, dtype=torch.double)
        fit = torch.linalg.solve(design.T @ design + ridge, design.T @ target.double())
        encoder[:, feature], score = fit[:d].float(), (design @ fit).float()
        threshold = (score[fires].min() + score[~fires].max()) / 2
        bias[feature] = fit[d].float() - threshold
    bias[RANDOM] = -(values @ encoder[:, RANDOM]).quantile(0.8)
    config = sae_lens.StandardSAEConfig(
        d_in=d, d_sae=WIDTH, apply_b_dec_to_input=False, normalize_activations="none"
    )
    module = sae_lens.StandardSAE(config)
    decoder = torch.nn.functional.normalize(torch.randn((WIDTH, d), generator=draw), dim=1)
    decoder[TWIN] = decoder[ON_X] + 0.1 * decoder[TWIN]
    module.load_state_dict(
        {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": torch.zeros(d)}
    )
    module.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    module.cfg.metadata.neuronpedia_id = NEURONPEDIA
    return as_sae(module, "planted")


@pytest.fixture(scope="session")
def labels(tiny, planted):
    return label_features(tiny(), planted, TEXTS, HELD_OUT, data=["words"])


@pytest.fixture
def neuronpedia(tmp_path, monkeypatch):
    server = Neuronpedia()
    monkeypatch.setenv("NEURONPEDIA_URL", server.url)
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(scope="session")
def trained_once(tiny, tmp_path_factory):
    pytest.importorskip("sae_lens")
    model = tiny()
    settings = Settings(layer=1, width=48, k=6, tokens=600, batch=64, window_tokens=600, context=32)
    trained = train_sae(model, lambda: TEXTS, settings)
    out = tmp_path_factory.mktemp("trained") / "mine"
    sae = save_sae(trained, model, settings, HELD_OUT[:4], out, name="mine", data=["w"])
    save_labels(label_features(model, sae, TEXTS[:20], HELD_OUT[:5], contexts=False), out)
    return out


@pytest.fixture
def trained_folder(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "mine")
