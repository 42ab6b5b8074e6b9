"""Labels of features say what the features do, and how far they can be believed."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix

pytest.importorskip("sae_lens")
import sae_lens

from modelassay.cli.main import run
from modelassay.errors import InputError, UnavailableError
from modelassay.sae import (
    SAES,
    Settings,
    find_dictionary,
    find_labels,
    label_features,
    list_releases,
    load_labels,
    nearest,
    open_labels,
    save_dictionary,
    save_labels,
    train_sae,
)
from modelassay.sae.dictionary import as_dictionary
from modelassay.sae.evidence import Fired, read_features
from modelassay.sae.labels import kept_folder, weights_hash
from modelassay.sae.neuronpedia import fetch_explanations, read_export
from modelassay.sae.points import parse_layer
from modelassay.sae.reliability import count_predictions, score_labels
from modelassay.sae.tokens import Vocabulary, printable
from modelassay.statistics import rank_auroc

SENTENCE = "the quick brown fox jumps over a lazy dog while ten wizards box quietly"
WORDS = SENTENCE.split()
LAYER, WIDTH = 0, 24
ON_X, AFTER_O, RANDOM, DEAD, TWIN = 3, 5, 9, 13, 17
NEURONPEDIA = "tiny/0-planted"


def make_texts(n: int, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=12)) for _ in range(n)]


TEXTS, HELD_OUT = make_texts(60, 0), make_texts(40, 1)


@pytest.fixture(scope="module")
def planted(tiny):
    """A dictionary whose features are known: one fires on x, one on several letters after o.

    Directions are fitted by least squares; thresholds lie between the classes.
    """
    model = tiny()
    from modelassay.reading.activations import read_activations
    from modelassay.sae.stream import encode_contexts

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
    sae = sae_lens.StandardSAE(config)
    decoder = torch.nn.functional.normalize(torch.randn((WIDTH, d), generator=draw), dim=1)
    decoder[TWIN] = decoder[ON_X] + 0.1 * decoder[TWIN]
    sae.load_state_dict(
        {"W_enc": encoder, "b_enc": bias, "W_dec": decoder, "b_dec": torch.zeros(d)}
    )
    sae.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    sae.cfg.metadata.neuronpedia_id = NEURONPEDIA
    return as_dictionary(sae, "planted")


@pytest.fixture(scope="module")
def labels(tiny, planted):
    return label_features(tiny(), planted, TEXTS, HELD_OUT, data=["words"])


def in_folder(planted, folder):
    planted.sae.save_model(folder)
    return find_dictionary(str(folder))


# --- what labels say ---------------------------------------------------------------------------


def test_a_planted_feature_gets_the_right_tokens_and_is_believed(labels):
    found = labels.of(ON_X)
    assert set(found.tokens) == {"x"}
    assert found.fires == "on"
    assert "“x”" in found.text
    assert found.reliability.value > 0.97
    assert found.reliability.interval[0] > 0.9
    assert found.reliability.n_fired > 20
    assert all("«x»" in context for context in found.contexts)


def test_a_feature_of_the_token_before_is_labelled_by_it(labels):
    found = labels.of(AFTER_O)  # in these words x, v and g come after nothing but o
    assert found.fires == "after"
    assert found.named == ("o",)
    assert found.text.startswith("after “o”; promotes ")
    assert set(found.tokens) <= set("xvg")
    assert 0.95 < found.reliability.value < 1  # w comes after o as well


def test_density_and_activations_are_counted_right(tiny, planted, labels):
    rows = torch.cat([part.features for part in read_features(tiny(), planted, TEXTS, 128)])
    for feature in (ON_X, RANDOM, DEAD):
        found = labels.of(feature)
        assert found.density == pytest.approx(float((rows[:, feature] > 0).double().mean()))
        assert found.max_activation == pytest.approx(float(rows[:, feature].max()), rel=1e-5)
    # At most one a context, so the strongest of each text are what was kept.
    best = [
        float(part.features[:, ON_X].max()) for part in read_features(tiny(), planted, TEXTS, 128)
    ]
    expected = [value for value in sorted(best, reverse=True) if value > 0][:12]
    assert labels.of(ON_X).activations == pytest.approx(expected, rel=1e-5)


def test_a_feature_that_never_fires_has_no_label_and_no_score(labels):
    found = labels.of(DEAD)
    assert found.text == ""
    assert found.reliability is None
    assert found.tokens == ()
    assert len(found.promoted) == 8


def test_labels_of_noise_are_not_believed_and_exact_ones_are():
    draw = np.random.default_rng(3)
    vocabulary, width = 30, 3
    label = np.zeros((vocabulary, width), dtype=bool)
    label[4, 0] = label[4, 1] = label[:10, 2] = True
    parts = []
    for text in range(60):
        ids = draw.integers(0, vocabulary, size=50)
        fires = draw.random((49, width)) < 0.2
        fires[:, 0] = ids[1:] == 4
        parts.append(Fired(text, tuple(ids.tolist()), torch.from_numpy(fires).float()))
    none = csr_matrix((vocabulary, width), dtype=bool)
    kinds = np.arange(vocabulary)
    scores = score_labels(count_predictions(parts, kinds, csr_matrix(label), none, width))
    assert scores.value[0] == scores.low[0] == scores.high[0] == 1
    assert scores.n_tokens == 60 * 49
    for feature in (1, 2):  # they fire at random, whatever the token
        assert scores.value[feature] == pytest.approx(0.5, abs=0.03)
        assert scores.low[feature] < 0.5 < scores.high[feature]
    shifted = score_labels(count_predictions(parts, kinds, none, csr_matrix(label), width))
    assert shifted.value[0] < 0.55


def test_reliability_is_the_auroc_of_the_label(tiny, planted, labels):
    model = tiny()
    kinds = Vocabulary(model).kinds
    named = set(labels.of(RANDOM).named)
    by_text = {kinds[i] for i in range(len(model.tokenizer)) if Vocabulary(model).text(i) in named}
    says, fires = [], []
    for part in read_features(model, planted, HELD_OUT, 128):
        ids = part.ids[:-1] if labels.of(RANDOM).fires == "after" else part.ids[1:]
        says += [float(kinds[token] in by_text) for token in ids]
        fires += (part.features[:, RANDOM] > 0).tolist()
    expected = rank_auroc(np.array(says), np.array(fires))
    assert labels.of(RANDOM).reliability.value == pytest.approx(expected, abs=1e-6)
    low, high = labels.of(RANDOM).reliability.interval
    assert low <= expected <= high
    assert labels.record.held_out_tokens == len(says)


def test_promoted_tokens_are_what_the_direction_adds_to(tiny, planted, labels):
    model = tiny()
    row = planted.sae.W_dec[ON_X]
    logits = model.network.lm_head(model.network.model.norm(row[None] * row.shape[0] ** 0.5))[0]
    vocabulary = Vocabulary(model)
    expected = [vocabulary.text(token) for token in logits.topk(8).indices.tolist()]
    assert list(labels.of(ON_X).promoted) == expected


def test_without_contexts_no_text_of_the_data_is_kept(tiny, planted):
    found = label_features(tiny(), planted, TEXTS, HELD_OUT, contexts=False)
    assert not found.record.contexts
    for row in found.table.to_pylist():
        assert row["contexts"] == []
        assert all(len(token) <= 6 for token in row["tokens"])  # a token is a byte here


def test_reading_stops_when_enough_tokens_were_read(tiny, planted):
    def endless():
        while True:
            yield TEXTS[0]

    found = label_features(tiny(), planted, endless(), HELD_OUT[:3], tokens=500)
    assert 500 <= found.record.tokens < 700
    assert labels_have_no_interval(found)


def labels_have_no_interval(found):
    scored = [found.of(f).reliability for f in range(WIDTH) if found.of(f).reliability]
    return scored and all(score.interval is None for score in scored)


def test_bad_texts_are_said(tiny, planted):
    with pytest.raises(InputError, match="to label features with are empty"):
        label_features(tiny(), planted, ["", ""], HELD_OUT)
    with pytest.raises(InputError, match="to score the labels on are empty"):
        label_features(tiny(), planted, TEXTS, [""])
    with pytest.raises(InputError, match="at least one token"):
        label_features(tiny(), planted, TEXTS, HELD_OUT, tokens=0)
    with pytest.raises(InputError, match="width"):
        label_features(tiny(), replace(planted, hidden_size=7), TEXTS, HELD_OUT)


def test_what_cannot_be_printed_is_escaped():
    assert printable("a\nb\u202ec\x1b") == "a\\nb\\u202ec\\x1b"


# --- on disk -----------------------------------------------------------------------------------


def test_what_was_saved_is_loaded(planted, labels, tmp_path):
    dictionary = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = find_labels(dictionary)
    assert found is not None
    assert [found.of(i) for i in range(WIDTH)] == [labels.of(i) for i in range(WIDTH)]
    assert found.record.data == ("words",)
    assert found.record.dictionary_sha256 == weights_hash(dictionary)
    with pytest.raises(InputError, match="no feature 24"):
        found.of(WIDTH)


def other_table(folder):
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "labels.parquet")
    pq.write_table(table.slice(1), folder / "labels.parquet")


def as_if_hashed(folder):
    from modelassay.models.identity import hash_file

    other_table(folder)
    record = json.loads((folder / "labels.json").read_text())
    record["labels_sha256"] = hash_file(folder / "labels.parquet")
    (folder / "labels.json").write_text(json.dumps(record))


def other_dictionary(folder):
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_table, "is not the file"),
        (as_if_hashed, "not one row for each"),
        (other_dictionary, "belong to another dictionary"),
        (lambda folder: (folder / "labels.parquet").unlink(), "cannot be read"),
        (lambda folder: (folder / "labels.json").write_text("{}"), "no valid label file"),
    ],
)
def test_labels_that_do_not_belong_are_refused(planted, labels, tmp_path, damage, message):
    folder = tmp_path / "d"
    planted.sae.save_model(folder)
    save_labels(labels, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_labels(folder, find_dictionary(str(folder)))
    assert "\n" not in str(error.value)


# --- neighbours and the lookup -----------------------------------------------------------------


def test_neighbours_are_by_cosine(planted):
    rows = torch.nn.functional.normalize(planted.sae.W_dec.detach(), dim=1)
    cosines = rows @ rows[TWIN]
    cosines[TWIN] = -2
    found = nearest(planted, [TWIN, ON_X], top=3)
    assert [n.feature for n in found[0]] == cosines.topk(3).indices.tolist()
    assert found[0][0].feature == ON_X
    assert found[0][0].cosine == pytest.approx(float(cosines[ON_X]), abs=1e-5)
    assert found[1][0].feature == TWIN
    only = nearest(planted, [TWIN], among=[TWIN, 2], top=5)[0]
    assert [n.feature for n in only] == [2]


def test_each_label_says_where_it_is_from(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    bare = open_labels(planted)
    assert bare.of(2).source == "none"
    assert bare.of(2).text == "feature 2"
    assert "numbers only" in bare.note
    dictionary = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = open_labels(dictionary)
    assert found.note is None
    assert found.of(ON_X).source == "own"
    assert found.of(ON_X).reliability.value > 0.97
    twin = found.of(TWIN)
    assert twin.source == "proxy"
    assert twin.proxy.feature == ON_X
    assert twin.text.startswith(f"near #{ON_X} (cosine {twin.proxy.cosine:.2f}): on “x”")
    assert twin.reliability is None
    assert twin.to_dict()["proxy"]["feature"] == ON_X
    assert found.of(DEAD).source in ("none", "proxy")
    with pytest.raises(InputError, match="no feature 99"):
        found.of(99)


# --- Neuronpedia -------------------------------------------------------------------------------


class Neuronpedia:
    """A server on 127.0.0.1 that speaks Neuronpedia's batch lookup; answers can be planned."""

    def __init__(self) -> None:
        self.asked: list[list[dict]] = []
        self.texts: dict[int, str] = {ON_X: "the letter x", 2: "a  secret\nthing\u202e"}
        self.planned: list[tuple[int, bytes, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                server.asked.append(body)
                assert self.path == "/api/features"
                status, content, headers = server.answer(body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, body: list[dict]) -> tuple[int, bytes, dict[str, str]]:
        if self.planned:
            return self.planned.pop(0)
        rows = []
        for feature in body:  # as the schema of its route asks
            assert isinstance(feature["modelId"], str)
            assert isinstance(feature["layer"], str)
            assert isinstance(feature["index"], int)
            text = self.texts.get(feature["index"])
            listed = [{"description": text, "explanationModelName": "m"}] if text else []
            rows.append({**feature, "index": str(feature["index"]), "explanations": listed})
        return 200, json.dumps(rows).encode(), {}


@pytest.fixture
def neuronpedia(tmp_path, monkeypatch):
    server = Neuronpedia()
    monkeypatch.setenv("NEURONPEDIA_URL", server.url)
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_explanations_are_fetched_in_batches_and_kept(neuronpedia):
    found = fetch_explanations(NEURONPEDIA, [*range(60), ON_X])
    assert found == {ON_X: "the letter x", 2: "a secret thing\\u202e"}
    assert [len(body) for body in neuronpedia.asked] == [50, 10]
    assert neuronpedia.asked[0][3] == {"modelId": "tiny", "layer": "0-planted", "index": 3}
    assert fetch_explanations(NEURONPEDIA, [ON_X, 7]) == {ON_X: "the letter x"}
    assert len(neuronpedia.asked) == 2  # from the cache, what has none as well


def test_busy_and_broken_answers_are_asked_for_again(neuronpedia):
    neuronpedia.planned = [
        (429, b"", {"Retry-After": "0"}),
        (500, b"oops", {}),
        (200, b"{not json", {}),
    ]
    assert fetch_explanations(NEURONPEDIA, [ON_X], first_wait=0.01) == {ON_X: "the letter x"}
    assert len(neuronpedia.asked) == 4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((503, b"", {}), "HTTP 503"),
        ((200, b'{"message": "no list"}', {}), "makes no sense"),
        ((400, b"", {}), "does not take this request"),
        ((302, b"", {"Location": "http://elsewhere"}), "does not take this request"),
        ((200, b"[" + b" " * 40_000_000 + b"]", {}), "too long"),
    ],
)
def test_answers_that_do_not_come_are_one_line(neuronpedia, answer, message):
    neuronpedia.planned = [answer] * 4
    with pytest.raises(UnavailableError, match=message) as error:
        fetch_explanations(NEURONPEDIA, [ON_X], first_wait=0.01)
    assert "\n" not in str(error.value)


def test_odd_rows_are_left_out(neuronpedia):
    rows = [
        None,
        {"index": "3", "layer": "9-other", "explanations": [{"description": "not ours"}]},
        {"index": True, "explanations": [{"description": "no number"}]},
        {"index": "-1", "explanations": [{"description": "no feature"}]},
        {"index": 4, "explanations": "none"},
        {"index": 5, "explanations": [None, {"description": 7}, {"description": "fine"}]},
        {"index": 6, "explanations": [{"description": "x" * 9999}]},
    ]
    neuronpedia.planned = [(200, json.dumps(rows).encode(), {})]
    found = fetch_explanations(NEURONPEDIA, range(10))
    assert found == {5: "fine", 6: "x" * 300}


@pytest.mark.parametrize("address", ["ftp://x", "http://a:b@c", "http://c/?q=1", "nonsense"])
def test_addresses_that_cannot_be_are_said(address, monkeypatch, tmp_path):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="NEURONPEDIA_URL"):
        fetch_explanations(NEURONPEDIA, [1], url=address)
    with pytest.raises(InputError, match="is no id"):
        fetch_explanations("../../etc", [1])


def test_neuronpedia_comes_first_and_explains_neighbours(planted, labels, neuronpedia):
    found = open_labels(planted, [ON_X, TWIN, 2, DEAD], neuronpedia=True)
    assert (found.of(ON_X).text, found.of(ON_X).source) == ("the letter x", "neuronpedia")
    assert found.of(ON_X).reliability is None  # it was measured of no such text
    twin = found.of(TWIN)
    assert twin.source == "proxy"
    assert "the letter x" in twin.text
    assert found.note is None


def test_without_network_labels_say_so(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("NEURONPEDIA_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("modelassay.sae.neuronpedia.FIRST_WAIT", 0.01)
    bare = open_labels(planted, [ON_X], neuronpedia=True)
    assert bare.of(ON_X).source == "none"
    assert "no connection" in bare.note
    assert "numbers only" in bare.note
    dictionary = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = open_labels(dictionary, [ON_X], neuronpedia=True)
    assert found.of(ON_X).source == "own"
    assert found.note is not None


def test_the_export_is_read_offline(planted, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "explanations"
    folder.mkdir()
    rows = [
        {"modelId": "tiny", "layer": "0-planted", "index": str(i), "description": f"thing {i}"}
        for i in range(8)
    ]
    for number, part in enumerate((rows[:4], rows[4:])):
        text = "\n".join(map(json.dumps, part))
        (folder / f"batch-{number}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read_export(folder, NEURONPEDIA) == {i: f"thing {i}" for i in range(8)}
    found = open_labels(planted, export=folder)
    assert (found.of(6).text, found.of(6).source) == ("thing 6", "neuronpedia")
    with pytest.raises(InputError, match="not of 1-other"):
        read_export(folder, "tiny/1-other")
    with pytest.raises(InputError, match="no explanation file"):
        read_export(tmp_path / "nowhere", NEURONPEDIA)
    (tmp_path / "odd.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    with pytest.raises(InputError, match="holds no explanations"):
        read_export(tmp_path / "odd.jsonl", NEURONPEDIA)


# --- where dictionaries are --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.12.hook_resid_post", 12),
        ("blocks.12.hook_resid_pre", 11),
        ("model.layers.12", 12),
        ("model.layers.7.output", 7),
        ("model.language_model.layers.3", 3),
        ("transformer.h.5", 5),
    ],
)
def test_hook_points_are_blocks(hook, layer):
    assert parse_layer(hook, "It") == layer


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        ("blocks.0.hook_resid_pre", "the embeddings"),
        ("blocks.3.hook_resid_mid", "inside a layer"),
        ("blocks.3.attn.hook_z", "attention"),
        ("blocks.3.hook_mlp_out", "an MLP"),
        ("model.layers.3.pre_feedforward_layernorm.output", "an MLP"),
        ("somewhere", "unknown"),
        (None, "does not say where"),
        ("", "does not say where"),
    ],
)
def test_other_hook_points_are_refused(hook, reason):
    with pytest.raises(InputError, match=reason) as error:
        parse_layer(hook, "The dictionary d")
    assert "\n" not in str(error.value)


def test_a_plain_sae_lens_folder_is_a_dictionary(tiny, planted, tmp_path):
    found = in_folder(planted, tmp_path / "plain")
    assert (found.name, found.layer, found.width, found.record) == ("plain", LAYER, WIDTH, None)
    assert found.hidden_size == tiny().info.hidden_size
    assert found.neuronpedia_id == NEURONPEDIA
    found.check_belongs_to(tiny())
    with pytest.raises(InputError, match="reads layer 9; the last one of"):
        replace(found, layer=9).check_belongs_to(tiny())
    with pytest.raises(InputError, match="has no revisions"):
        find_dictionary(str(tmp_path / "plain"), revision="main")


def change_config(folder, **change):
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= change.pop("metadata", {})
    (folder / "cfg.json").write_text(json.dumps(config | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}, "reads an MLP"),
        ({"normalize_activations": "expected_average_only_in"}, "does not say the scale"),
        ({"reshape_activations": "hook_z"}, "holds no dictionary"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "TransformerLens has centred",
        ),
        ({"d_sae": 7}, "holds no dictionary"),
        ({"architecture": "nonsense"}, "holds no dictionary"),
    ],
)
def test_dictionaries_that_cannot_be_used_are_refused(planted, tmp_path, change, message):
    planted.sae.save_model(tmp_path / "d")
    change_config(tmp_path / "d", **change)
    with pytest.raises(InputError, match=message) as error:
        find_dictionary(str(tmp_path / "d"))
    assert "\n" not in str(error.value)


def test_a_transcoder_is_refused(tmp_path):
    config = sae_lens.TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False)
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    sae_lens.Transcoder(config).save_model(tmp_path / "t")
    with pytest.raises(InputError, match="of the kind transcoder"):
        find_dictionary(str(tmp_path / "t"))


def test_the_shipped_are_found_by_name_and_by_model(trained_folder, tiny, tmp_path, monkeypatch):
    shipped = tmp_path / "dictionaries"
    shutil.copytree(trained_folder, shipped / "mine")
    monkeypatch.setattr("modelassay.files.shipped.CHECKOUT", tmp_path)
    for where in ("mine", tiny().info.id):
        found = find_dictionary(where)
        assert found.name == "mine"
        assert found.record is not None


@pytest.mark.parametrize("where", ["nowhere", "no such/thing at all", "", "a/b/c", "x" * 5000])
def test_what_is_nowhere_is_said(where):
    with pytest.raises(InputError) as error:
        find_dictionary(where)
    assert "\n" not in str(error.value)


# --- sae-lens's releases -----------------------------------------------------------------------


def test_releases_are_listed_without_the_network():
    found = list_releases("res:", model="unsloth/gemma-3-270m-it")
    by_where = {release.where: release for release in found}
    one = by_where["gemma-scope-2-270m-it-res:layer_12_width_16k_l0_small"]
    assert (one.model, one.layer, one.width) == ("google/gemma-3-270m-it", 12, "16k")
    assert one.refused is None
    assert all(release.model == "google/gemma-3-270m-it" for release in found)
    for where, reason in {
        "llama-3.1-8b-instruct-andyrdt": "pickles",
        "goodfire-llama-3.1-8b-instruct": "pickles",
        "gemma-scope-2-270m-it-transcoders": "not the output of a layer",
        "gpt2-small-res-jb:": "centred",
        "temporal-sae-gemma-2-2b": "converter temporal",
    }.items():
        assert all(reason in str(release.refused) for release in list_releases(where))
        assert list_releases(where)


def test_pickled_releases_are_refused_before_anything_is_fetched(hub):
    with pytest.raises(InputError, match=r"pickles \(\.pt\)"):
        find_dictionary("goodfire-llama-3.1-8b-instruct:layer_19")
    assert hub.log == []
    with pytest.raises(InputError, match="has no dictionary 'layer_99'"):
        find_dictionary("gemma-scope-2-270m-it-res/layer_99")
    with pytest.raises(InputError, match="has 52 dictionaries; choose one"):
        find_dictionary("gemma-scope-2-270m-it-res")


def gemma_files(d: int, width: int) -> dict[str, bytes]:
    from safetensors.torch import save

    draw = torch.Generator().manual_seed(1)
    tensors = {
        "w_enc": torch.randn((d, width), generator=draw),
        "w_dec": torch.randn((width, d), generator=draw),
        "b_enc": torch.zeros(width),
        "b_dec": torch.zeros(d),
        "threshold": torch.full((width,), 0.5),
    }
    folder = "resid_post/layer_12_width_16k_l0_medium"
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-v3-270m-it",
        "hf_hook_point_in": "model.layers.12.output",
    }
    return {
        f"{folder}/params.safetensors": save(tensors),
        f"{folder}/config.json": json.dumps(config).encode(),
        f"{folder}/evil.pt": b"a pickle",
    }


def test_a_release_is_fetched_and_converted(hub):
    hub.add_repo("models", "google/gemma-scope-2-270m-it", gemma_files(32, 24))
    where = "gemma-scope-2-270m-it-res/layer_12_width_16k_l0_medium"
    found = find_dictionary(where)
    assert found.name == where.replace("/", ":")
    assert (found.layer, found.hidden_size, found.width, found.record) == (12, 32, 24, None)
    assert found.neuronpedia_id == "gemma-3-270m-it/12-gemmascope-2-res-16k"
    assert found.sae.threshold[0].item() == 0.5
    assert not any(".pt" in request.path for request in hub.log)


def test_a_release_that_cannot_be_fetched_is_one_line(hub):
    where = "gemma-scope-2-270m-it-res:layer_12_width_16k_l0_medium"
    with pytest.raises(InputError, match="No model 'google/gemma-scope-2-270m-it' on the Hub"):
        find_dictionary(where)
    files = gemma_files(32, 24)
    hub.add_repo("models", "google/gemma-scope-2-270m-it", {"other.txt": b""})
    with pytest.raises(InputError, match="does not hold"):
        find_dictionary(where)
    broken = {name: data[:40] for name, data in files.items()}
    hub.add_commit("models", "google/gemma-scope-2-270m-it", broken)
    with pytest.raises((InputError, UnavailableError)) as error:
        find_dictionary(where)
    assert "\n" not in str(error.value)
    hub.close()
    with pytest.raises(UnavailableError, match="cannot be reached") as error:
        find_dictionary("gemma-scope-2-1b-it-res:layer_13_width_16k_l0_small")
    assert "\n" not in str(error.value)


# --- the Hub -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_once(tiny, tmp_path_factory):
    model = tiny()
    settings = Settings(layer=1, width=48, k=6, tokens=600, batch=64, window_tokens=600, context=32)
    sae = train_sae(model, lambda: TEXTS, settings)
    out = tmp_path_factory.mktemp("trained") / "mine"
    dictionary = save_dictionary(sae, model, settings, HELD_OUT[:4], out, name="mine", data=["w"])
    save_labels(label_features(model, dictionary, TEXTS[:20], HELD_OUT[:5], contexts=False), out)
    return out


@pytest.fixture
def trained_folder(trained_once, tmp_path):
    return shutil.copytree(trained_once, tmp_path / "mine")


def test_what_was_pushed_is_pulled(hub, trained_folder, tiny):
    hub.add_writer("mine", "me")
    own = find_dictionary(str(trained_folder))
    pushed = SAES.push(SAES.open(own.folder), "me/dictionaries", token="mine")
    files = hub.repos["datasets", "me/dictionaries"].commits[pushed.commit]
    names = {name.partition("dictionaries/mine/")[2] for name in files if "mine" in name}
    assert names == {
        "cfg.json",
        "sae_weights.safetensors",
        "dictionary.json",
        "labels.json",
        "labels.parquet",
        "metrics.jsonl",
    }
    card = files["README.md"].decode()
    assert "modelassay-dictionary" in card
    assert "dictionaries/*/metrics.jsonl" in card
    row = json.loads(files["dictionaries/mine/metrics.jsonl"])
    assert row["explained_variance"] == own.record.metrics.explained_variance
    for where in ("me/dictionaries", f"me/dictionaries:mine@{pushed.commit}"):
        pulled = find_dictionary(where)
        assert pulled.record == own.record
        assert weights_hash(pulled) == weights_hash(own)
        assert find_labels(pulled).of(3) == find_labels(own).of(3)
    with pytest.raises(InputError, match="no revision 'old'"):
        find_dictionary("me/dictionaries", revision="old")
    with pytest.raises(InputError, match="holds no SAE 'other'"):
        find_dictionary("me/dictionaries:other")


def test_what_was_tampered_with_on_the_hub_is_refused(hub, trained_folder):
    files = {f"dictionaries/mine/{f.name}": f.read_bytes() for f in trained_folder.iterdir()}
    weights = bytearray(files["dictionaries/mine/sae_weights.safetensors"])
    weights[-1] ^= 1
    files["dictionaries/mine/sae_weights.safetensors"] = bytes(weights)
    hub.add_repo("datasets", "you/dictionaries", files)
    with pytest.raises(InputError, match="is not the file that"):
        find_dictionary("you/dictionaries")


def test_training_replaces_a_dictionary_and_nothing_else(trained_folder, tiny, monkeypatch):
    own = find_dictionary(str(trained_folder))
    (trained_folder / "thesis.txt").write_text("years of work", encoding="utf-8")
    settings = Settings(layer=1, width=48, k=6)
    with pytest.raises(InputError, match="is there and is no SAE"):
        save_dictionary(own.sae, tiny(), settings, [], trained_folder, name="mine", data=[])
    assert (trained_folder / "thesis.txt").exists()


def test_only_trained_dictionaries_are_pushed(planted, tmp_path):
    with pytest.raises(InputError, match=r"no dictionary\.json"):
        SAES.push(SAES.open(in_folder(planted, tmp_path / "plain").folder), "me/dictionaries")


# --- the commands ------------------------------------------------------------------------------


def test_label_and_info_as_a_user_runs_them(planted, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    data, folder = tmp_path / "texts.txt", tmp_path / "d"
    data.write_text("\n".join(make_texts(400, 5)), encoding="utf-8")
    planted.sae.save_model(folder)
    command = ["sae", "label", str(folder), "--model", str(tiny_folder()), "--data", str(data)]
    command += ["--tokens", "3000", "--no-contexts", "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "modelassay.sae-labels/1"
    assert record["data"] == ["texts.txt"]
    assert record["contexts"] is False
    assert sorted(path.name for path in folder.iterdir()) == [
        "cfg.json",
        "labels.json",
        "labels.parquet",
        "sae_weights.safetensors",
    ]
    assert run(["sae", "info", str(folder), "--feature", str(ON_X)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{ON_X}: on “x”; promotes ")
    assert "(automatic)" in printed
    assert "reliability 1.00" in printed
    assert f"near #{TWIN} (cosine 1.00)" in printed
    assert run(["sae", "info", str(folder), "--feature", str(ON_X), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["source"] == "own"
    assert values["neighbours"][0]["feature"] == TWIN
    assert run(["sae", "info", str(folder)]) == 0
    assert "automatic labels from" in capsys.readouterr().out
    assert run(["sae", "info", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["layer"], values["labels"]["width"]) == (LAYER, WIDTH)
    assert run([*command, "--quiet", "--out", str(tmp_path / "x")]) == 0
    assert sorted(path.name for path in (tmp_path / "x").iterdir())[0] == "labels.json"


def test_labels_of_what_has_no_folder_are_kept_in_the_cache(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    assert planted.folder is None
    assert find_labels(planted) is None
    save_labels(labels, kept_folder(planted))
    found = find_labels(planted)
    assert found is not None
    assert found.of(ON_X) == labels.of(ON_X)


def test_explanations_are_imported_once_and_used_offline(planted, neuronpedia, tmp_path, capsys):
    folder, export = tmp_path / "d", tmp_path / "batch-0.jsonl"
    planted.sae.save_model(folder)
    row = {"layer": "0-planted", "index": "4", "description": "from the export"}
    export.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run(["sae", "label", str(folder), "--export", str(export), "--neuronpedia"]) == 0
    assert "explains 3 features" in capsys.readouterr().out
    asked = len(neuronpedia.asked)
    assert run(["sae", "info", str(folder), "--feature", "4"]) == 0
    assert "4: from the export (neuronpedia)" in capsys.readouterr().out
    assert len(neuronpedia.asked) == asked


def test_list_as_a_user_runs_it(capsys):
    assert run(["sae", "list", "--model", "google/gemma-3-270m-it"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gemma-scope-2-270m-it-res:layer_12_width_16k_l0_medium" in "\n".join(lines)
    assert all("google/gemma-3-270m-it" in line for line in lines)
    assert run(["sae", "list", "goodfire", "--all", "--json"]) == 0
    assert all("pickles" in row["refused"] for row in json.loads(capsys.readouterr().out))
    assert run(["sae", "list", "nothing-like-it"]) == 64


def test_push_as_a_user_runs_it(hub, trained_folder, capsys):
    hub.add_writer("mine", "me")
    assert run(["sae", "push", str(trained_folder), "me/d", "--token", "mine"]) == 0
    where = capsys.readouterr().out.strip()
    assert where.startswith("me/d:mine@")
    assert run(["sae", "info", where]) == 0
    assert "mine: 48 features of layer 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "D"], "Give text to read"),
        (["label", "D", "--data", "t.txt"], "Give the model"),
        (["label", "D", "--data", "t.txt", "--model", "nowhere/x"], "nowhere/x"),
        (["label", "D", "--export", "nowhere"], "no explanation file"),
        (["info", "D", "--feature", "99"], "no feature 99"),
        (["info", "nowhere"], "No SAE 'nowhere'"),
        (["push", "D", "me/d"], "no dictionary.json"),
    ],
)
def test_bad_input_is_one_line(planted, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    planted.sae.save_model(tmp_path / "D")
    (tmp_path / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    assert run(["sae", *arguments]) in (64, 69)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert "Traceback" not in "".join(lines)
