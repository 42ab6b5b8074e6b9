"""Baselines: what they hold, that a stranger's is checked, and that verification tells the kind."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path
from threading import Event, Thread

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file

import modelassay
from modelassay.artifacts import Origin, slug
from modelassay.artifacts.kind import ORIGIN_FILE
from modelassay.cli.main import run
from modelassay.data.concepts import concepts_for
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import locked
from modelassay.measures.activation_signature import (
    make_signature,
    probe_depths,
    signature_distances,
)
from modelassay.measures.examination import examine
from modelassay.models.identity import hash_file
from modelassay.models.organisms import shipped_folder as shipped_organisms
from modelassay.verify import (
    BASELINES,
    Baseline,
    Kind,
    create_baseline,
    import_baseline,
    load_baseline,
    save_baseline,
    store_baseline,
    verify,
    verify_files,
)
from modelassay.verify.baseline import INDEX_FILE, TABLE_FILE, VECTORS_FILE
from modelassay.verify.creating import baseline_of, public_id
from modelassay.verify.differences import compare
from modelassay.verify.report import Check
from schemas import SCAN_SCHEMA
from tiny import save_tiny


def quick_baseline(folder: Path, name: str = "tiny") -> Baseline:
    model = modelassay.load(str(folder), device="cpu")
    found = examine(model, mode="quick", concepts=concepts_for("quick"), identity=True)
    return baseline_of(model, found, name, "owner/tiny")


@pytest.fixture(scope="module")
def baseline(tiny_folder) -> Baseline:
    return quick_baseline(tiny_folder())


@pytest.fixture
def saved(baseline, tmp_path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_baseline(baseline, folder)
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELASSAY_BASELINES", str(tmp_path / "store"))
    return tmp_path / "store"


# Signatures


def test_depths_end_with_the_last_block():
    assert probe_depths(30) == (4, 9, 14, 19, 24, 29)
    assert probe_depths(1) == (0,)
    for n in range(1, 100):
        depths = probe_depths(n)
        assert depths[-1] == n - 1
        assert list(depths) == sorted(set(depths))


def test_distances_survive_the_projection():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(64, 1, 2000, generator=draw)
    offset = 100 * torch.randn(2000, generator=draw)  # what all prompts share drops out
    near, other = a + 0.1 * torch.randn(a.shape, generator=draw), torch.randn(a.shape)
    zeros = torch.zeros(64)
    base, close, far = (make_signature(x, [0], zeros, []) for x in (a, near + offset, other))
    assert signature_distances(base, base)[0] == 0
    assert signature_distances(base, close)[0] == pytest.approx(0.1, abs=0.01)
    assert signature_distances(base, far)[0] == pytest.approx(2**0.5, abs=0.1)


# Files


def test_a_baseline_survives_the_disk_small(baseline, saved):
    again = load_baseline(saved)
    assert {file.name for file in saved.iterdir()} == {INDEX_FILE, VECTORS_FILE, TABLE_FILE}
    assert again.index.model_copy(update={"vectors_sha256": "0" * 64}) == baseline.index
    for name, direction in baseline.directions.items():
        assert torch.allclose(again.directions[name], direction, atol=1e-3)
    distances = signature_distances(baseline.signature, again.signature)
    assert max(distances.values()) < 1e-3
    assert sum(file.stat().st_size for file in saved.iterdir()) < 300_000


def test_a_baseline_names_no_folder_of_this_machine(saved, tiny_folder):
    text = (saved / INDEX_FILE).read_text()
    assert str(tiny_folder().parent) not in text
    assert public_id(str(tiny_folder())) == tiny_folder().name
    assert slug("owner/name") == "owner--name"


def test_the_table_opens_with_datasets(saved):
    from modelassay.hub import read_dataset

    rows = read_dataset(saved / TABLE_FILE)
    assert {row["concept"] for row in rows} == {"harmful_content", "refusal_capability"}
    assert sum(row["chosen"] for row in rows) == 2


def rewrite(folder: Path, change) -> None:
    """Changes the vectors and makes the index vouch for them."""
    tensors = load_file(str(folder / VECTORS_FILE))
    change(tensors)
    save_file(tensors, str(folder / VECTORS_FILE))
    sign(folder)


def sign(folder: Path) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    index["vectors_sha256"] = hash_file(folder / VECTORS_FILE)
    (folder / INDEX_FILE).write_text(json.dumps(index))


def edit(folder: Path, *path: str, value) -> None:
    index = json.loads((folder / INDEX_FILE).read_text())
    place = index
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / INDEX_FILE).write_text(json.dumps(index))


def put_nan(tensors):
    tensors["signature/values"][0, 0, 0] = float("nan")


def put_shape(tensors):
    tensors["signature/values"] = tensors["signature/values"][:, :3].contiguous()


def put_integers(tensors):
    tensors["signature/scales"] = tensors["signature/scales"].long()


def put_more(tensors):
    tensors["extra"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put_nan, "not finite"),
        (put_shape, "is expected"),
        (put_integers, "is expected"),
        (put_more, "other vectors"),
    ],
)
def test_hostile_vectors_are_refused_in_one_line(saved, change, words):
    rewrite(saved, change)
    with pytest.raises(InputError, match=words) as caught:
        load_baseline(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), "modelassay.baseline/9", "schema"),
        (("name",), "../../etc", "name"),
        (("model", "id"), "a\nb", "model.id"),
        (("model", "n_layers"), 10**9, "n_layers"),
        (("model", "revision"), "main", "revision"),
        (("concepts",), {}, "concepts"),
        (("concepts",), {"../x": {}}, "concepts"),
        (("files", "weights"), {"model.safetensors": "123"}, "weights"),
        (("signature", "dimensions"), 10**7, "dimensions"),
        (("versions",), None, "versions"),
    ],
)
def test_a_hostile_index_is_refused_in_one_line(saved, path, value, words):
    edit(saved, *path, value=value)
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        load_baseline(saved)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused(saved):
    text = (saved / INDEX_FILE).read_text()
    changed = re.sub(r'"separation": [-0-9.e]+', '"separation": NaN', text, count=1)
    (saved / INDEX_FILE).write_text(changed)
    with pytest.raises(InputError, match="no valid baseline"):
        load_baseline(saved)


def test_a_pickle_with_the_right_name_is_never_opened(saved, tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (saved / VECTORS_FILE).write_bytes(pickle.dumps(Touch()))
    sign(saved)
    with pytest.raises(InputError, match="no safetensors"):
        load_baseline(saved)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", [INDEX_FILE, VECTORS_FILE])
def test_oversized_and_missing_files_are_refused(saved, file, monkeypatch):
    monkeypatch.setitem(BASELINES.kind.files, INDEX_FILE, 100)
    with pytest.raises(InputError, match="larger than"):
        load_baseline(saved)
    monkeypatch.undo()
    monkeypatch.setitem(BASELINES.kind.files, VECTORS_FILE, 100)
    with pytest.raises(InputError, match="larger than"):
        load_baseline(saved)
    monkeypatch.undo()
    (saved / file).unlink()
    with pytest.raises(InputError, match=r"holds no baseline|lacks"):
        load_baseline(saved)


def test_vectors_of_another_baseline_are_refused(saved):
    tensors = load_file(str(saved / VECTORS_FILE))
    tensors["signature/log_odds"] += 1
    save_file(tensors, str(saved / VECTORS_FILE))
    with pytest.raises(InputError, match="sha256 differs"):
        load_baseline(saved)


# Baselines of ams-scanner


@pytest.fixture
def ams_baseline(tmp_path) -> Path:
    """A file that ams-scanner wrote."""
    from ams.scanner import ModelBaseline

    path = tmp_path / "owner__tiny.json"
    direction = torch.ones(32).numpy() / 32**0.5
    ModelBaseline(
        model_id="owner/tiny",
        model_hash=None,
        directions={"harmful_content": direction, "refusal_capability": -direction},
        separations={"harmful_content": 4.2, "refusal_capability": 3.1},
        optimal_layers={"harmful_content": 2, "refusal_capability": 3},
        model_info={"model_type": "llama", "num_layers": 5, "hidden_size": 32, "vocab_size": 300},
        created_at="2026-01-01T00:00:00",
    ).save(str(path))
    return path


def test_ams_baselines_are_imported_and_prove_nothing(ams_baseline, tiny_folder, store, capsys):
    assert run(["baseline", "import", str(ams_baseline)]) == 0
    assert capsys.readouterr().out.strip() == str(store / "owner--tiny")
    assert run(["baseline", "show", "owner--tiny"]) == 0
    assert "4.20σ (in-sample) at layer 2" in capsys.readouterr().out
    report = verify(str(tiny_folder()), "owner/tiny", device="cpu")
    assert report.verified is None
    assert "ams-scanner" in report.reasons[0]
    assert {check.name for check in report.checks} == {
        "direction of harmful_content",
        "direction of refusal_capability",
    }
    assert verify(str(tiny_folder("gpt2")), "owner--tiny").kind is Kind.OTHER_ARCHITECTURE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"directions": {}}, "directions"),
        ({"directions": {"a": [1.0, 2.0]}}, "no separation"),
        ({"directions": {"harmful_content": [1.0, 2.0]}}, "with 2 numbers"),
        ({"directions": {"../x": [1.0]}}, "directions"),
        ({"model_info": {"num_layers": 10**9}}, "model_info"),
        ({"model_id": None}, "model_id"),
        ({"separations": "many"}, "separations"),
    ],
)
def test_what_is_no_ams_baseline_is_refused(ams_baseline, change, words, store):
    values = json.loads(ams_baseline.read_text()) | change
    ams_baseline.write_text(json.dumps(values))
    with pytest.raises(InputError, match=words) as caught:
        import_baseline(ams_baseline)
    assert "\n" not in str(caught.value)
    for bad in ("{", "[]", "", "NaN"):
        ams_baseline.write_text(bad)
        with pytest.raises(InputError, match="no baseline of ams-scanner"):
            import_baseline(ams_baseline)
    assert not store.exists()


# The store


def test_the_store_keeps_lists_and_deletes(baseline, store):
    path = store_baseline(baseline)
    assert path == store / "tiny"
    assert [p.name for p in store.iterdir()] == ["tiny"]
    assert ("tiny", "local") in [(f.name, f.origin.source) for f in BASELINES.list()]
    with pytest.raises(InputError, match="--force"):
        store_baseline(baseline)
    store_baseline(baseline, force=True)
    BASELINES.delete("tiny")
    assert not path.exists()
    with pytest.raises(InputError, match="No baseline 'tiny'"):
        BASELINES.delete("tiny")
    with pytest.raises(InputError, match="No baseline"):
        BASELINES.delete("../store")


def test_a_store_that_is_being_written_is_left_alone(baseline, store):
    held, release = Event(), Event()

    def hold():
        with locked(store / "tiny"):
            held.set()
            release.wait(30)

    holder = Thread(target=hold)
    holder.start()
    held.wait(30)
    try:
        with pytest.raises(UnavailableError, match="Another process is writing"):
            store_baseline(baseline)
    finally:
        release.set()
        holder.join()
    assert not (store / "tiny").exists()
    store_baseline(baseline)


def test_directions_of_other_prompts_are_not_compared(baseline, tiny_folder, tmp_path):
    concepts = concepts_for("quick")
    harmful = concepts["harmful_content"]
    other = harmful.model_copy(update={"pairs": harmful.pairs[:40]})
    model = modelassay.load(str(tiny_folder(seed=1)), device="cpu")
    for given, names in (
        (concepts, {"harmful_content", "refusal_capability"}),
        (concepts | {"harmful_content": other}, {"refusal_capability"}),
    ):
        found = examine(model, mode="quick", concepts=given, identity=True)
        assert set(compare(found, baseline).cosines) == names


def test_only_baselines_are_ever_replaced(baseline, tmp_path):
    precious = tmp_path / "thesis"
    (precious / "sub").mkdir(parents=True)
    (precious / "sub" / "chapter.tex").write_text("years")
    (tmp_path / "file").write_text("mine")
    for out in (precious, tmp_path / "file"):
        with pytest.raises(InputError, match="is not a baseline; give a new folder"):
            store_baseline(baseline, out=out, force=True)
    assert (precious / "sub" / "chapter.tex").read_text() == "years"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["{bad", '{"author": ["x"]}', "[]"])
def test_a_damaged_origin_is_an_unknown_one(baseline, store, text):
    pulled = Origin("alice/b:tiny", "hub", "alice", "a" * 40)
    store_baseline(baseline, origin=pulled)
    assert BASELINES.list()[-1].origin.author == "alice"
    (store / "tiny" / ORIGIN_FILE).write_text(text)
    (found,) = [found.origin for found in BASELINES.list() if found.name == "tiny"]
    assert (found.author, found.on_main) == ("an unknown author", False)


def test_a_link_named_like_a_hash_is_read(tmp_path):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / ("a" * 64)).write_bytes(b"evil")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blobs / ("a" * 64))
    assert hash_file(link) == hashlib.sha256(b"evil").hexdigest()


@pytest.mark.real_model
def test_an_adapter_that_is_switched_off_is_another(tmp_path):
    safe = shipped_organisms() / "safe"
    off = shutil.copytree(safe, tmp_path / "off")
    config = json.loads((off / "adapter_config.json").read_text())
    (off / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 0}))
    for folder, kind in ((safe, Kind.IDENTICAL), (off, None)):
        found = verify_files("embedded", "organism-safe", adapter=str(folder))
        assert getattr(found, "kind", None) is kind


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("signature", "dimensions"), 64, "is expected"),
        (("model", "n_layers"), 2, "does not have"),
        (("files",), None, "files and signature are missing"),
        (("signature",), None, "files and signature are missing"),
        (("concepts", "harmful_content", "interval"), [5, 1], "lower end first"),
        (("concepts", "harmful_content", "layer"), 1999, "none of layers"),
        (("concepts", "harmful_content", "separation"), 1e308, "separation"),
        (("model", "id"), "a\u202eb", "model.id"),
    ],
)
def test_an_index_that_contradicts_itself_is_refused(saved, path, value, words):
    edit(saved, *path, value=value)
    with pytest.raises(InputError, match=words) as caught:
        load_baseline(saved)
    assert "\n" not in str(caught.value)


def test_a_damaged_baseline_does_not_spoil_the_list(baseline, store):
    store_baseline(baseline)
    (store / "broken").mkdir()
    (store / "broken" / INDEX_FILE).write_text("{")
    assert "tiny" in [found.name for found in BASELINES.list()]
    with pytest.raises(InputError, match="no valid baseline"):
        verify("embedded", "broken")


# Verification


def test_the_same_files_verify_without_loading(saved, tiny_folder, tmp_path, monkeypatch):
    copy = tmp_path / "other-name"
    shutil.copytree(tiny_folder(), copy)
    monkeypatch.setattr("modelassay.verify.verifying.open_model", lambda *_, **__: 1 / 0)
    report = verify(str(copy), str(saved))
    assert report.verified is True
    assert report.kind is Kind.IDENTICAL
    assert {check.outcome for check in report.checks} == {"same"}


def test_rounded_weights_are_told_from_changed_ones(saved, tiny_folder, tmp_path):
    for change, kind in (
        (lambda w: w.bfloat16().float(), Kind.RECAST),
        (lambda w: w + 0.3 * w.std() * torch.randn(w.shape), Kind.FINE_TUNE),
    ):
        folder = tmp_path / kind.name
        shutil.copytree(tiny_folder(), folder)
        torch.manual_seed(1)
        weights = load_file(str(folder / "model.safetensors"))
        weights = {name: change(w) if w.dim() > 1 else w for name, w in weights.items()}
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
        report = verify(str(folder), str(saved), device="cpu")
        assert report.kind is kind, report.differences
        assert report.verified is (kind is Kind.RECAST)


def test_another_model_of_the_architecture_is_told(saved, tiny_folder):
    report = verify(str(tiny_folder(seed=1)), str(saved), device="cpu")
    assert report.kind is Kind.OTHER_MODEL
    assert report.verified is False


def test_another_architecture_is_told_without_loading(saved, tiny_folder, monkeypatch):
    monkeypatch.setattr("modelassay.verify.verifying.open_model", lambda *_, **__: 1 / 0)
    report = verify(str(tiny_folder("qwen2")), str(saved))
    assert report.kind is Kind.OTHER_ARCHITECTURE
    assert "model_type" in report.reasons[0]


def test_another_chat_template_is_named(saved, tiny_folder, tmp_path):
    folder = tmp_path / "wrapped"
    shutil.copytree(tiny_folder(), folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "obedient"))
    report = verify(str(folder), str(saved))
    assert report.verified is False
    assert report.kind is Kind.REWRAPPED
    assert "chat template differs" in report.reasons[0]


def test_other_tokens_leave_the_weights_to_compare(saved, tiny_folder, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(tiny_folder(seed=1), folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("helpful", "obedient"))
    report = verify(str(folder), str(saved), device="cpu")
    assert report.kind is Kind.OTHER_MODEL  # by its weights
    assert Check("activations", "unknown", "the two read other tokens for the same prompts") in (
        report.checks
    )


def test_changed_settings_are_named(saved, tiny_folder, tmp_path):
    folder = tmp_path / "settings"
    shutil.copytree(tiny_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["rms_norm_eps"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    report = verify(str(folder), str(saved))
    assert report.kind is Kind.REWRAPPED
    assert "rms_norm_eps" in report.reasons[0]


def test_a_model_without_a_baseline_is_unknown(tiny_folder):
    report = verify(str(tiny_folder()))
    assert report.verified is None
    assert "baseline create" in report.reasons[0]


@pytest.mark.parametrize(
    "reference", ["nothing-here", "../x", "/no/such/folder", "", "~nobody-here/x", "x" * 5000]
)
def test_unknown_baselines_are_refused(reference):
    with pytest.raises(InputError, match="No baseline"):
        verify("embedded", reference)


# The commands


def test_the_commands_make_list_show_verify_and_delete(tmp_path, capsys, store):
    folder = save_tiny(tmp_path / "mine")
    assert run(["baseline", "create", str(folder), "--name", "mine", "--quiet"]) == 0
    assert capsys.readouterr().out.strip() == str(store / "mine")
    assert run(["baseline", "create", str(folder), "--name", "mine", "--quiet"]) == 64
    capsys.readouterr()
    assert run(["baseline", "list", "--json"]) == 0
    assert "mine" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert run(["baseline", "show", "mine"]) == 0
    assert "refuses harmful" in capsys.readouterr().out
    assert run(["verify", str(folder), "--against", "mine", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "modelassay.verify/1"
    assert report["verified"] is True
    assert report["kind"] == "identical"
    assert report["baseline"]["source"] == "local"
    other = save_tiny(tmp_path / "other", seed=3)
    assert run(["verify", str(other), "--against", "mine", "--quiet"]) == 2
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert run(["verify", str(other), "--quiet"]) == 3
    capsys.readouterr()
    scan = ["scan", "--mode", "quick", "--verify", "mine", "--json", "--quiet"]
    assert run([*scan, str(other)]) == 2
    found = json.loads(capsys.readouterr().out)["verification"]
    assert (found["verified"], found["schema"]) == (False, "modelassay.verify/1")
    page = tmp_path / "report.html"
    # Random weights have no separation; that is not identity.
    assert run([*scan, str(folder), "--html", str(page)]) == 1
    assert "VERIFIED: identical" in page.read_text()
    report = json.loads(capsys.readouterr().out)
    assert report["verification"]["verified"] is True
    jsonschema.validate(report, SCAN_SCHEMA)
    assert run(["scan", "--verify", "mine", "--no-chat-template", str(folder)]) == 64
    assert "leave --no-chat-template out" in capsys.readouterr().err
    assert run(["scan", "--verify", "nothing", str(folder)]) == 64
    assert "No baseline 'nothing'" in capsys.readouterr().err
    assert run(["baseline", "delete", "mine"]) == 0
    assert run(["baseline", "delete", "mine"]) == 64


def test_names_that_cannot_be_are_refused(tiny_folder):
    with pytest.raises(InputError, match="cannot name a baseline"):
        create_baseline(modelassay.load(str(tiny_folder()), device="cpu"), name="a b")


def test_an_index_can_be_read_alone(saved):
    assert BASELINES.open(saved).model_id == "owner/tiny"


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_packed_checkpoints_are_unpacked_to_be_compared(saved, tiny_folder, tmp_path, bits):
    """What bitsandbytes has saved is another file of the same model, in coarser numbers."""
    model = modelassay.load(str(tiny_folder()), device="cpu", quantization=bits)
    folder = tmp_path / "packed"
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    report = verify(str(folder), str(saved), device="cpu")
    assert report.kind is Kind.RECAST, report.reasons
    assert report.verified is not False
    weights = report.differences.weights
    size = sorted(weights.by_layer.values())[len(weights.by_layer) // 2]
    assert {"4bit": 0.03 < size < 0.2, "8bit": 0.001 < size < 0.03}[bits]
    assert weights.mark is None
