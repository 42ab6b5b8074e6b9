"""A baseline on disk: small, whole, and refused when it is not what was written."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay.artifacts import public_id, slug
from modelassay.errors import InputError
from modelassay.measures.activation_signature import signature_distances
from modelassay.models.identity import hash_file
from modelassay.verify import BASELINES, load_baseline
from modelassay.verify.baseline import INDEX_FILE, TABLE_FILE, VECTORS_FILE


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
    with pytest.raises(InputError, match="not a valid baseline"):
        load_baseline(saved)


def test_a_pickle_with_the_right_name_is_never_opened(saved, tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (saved / VECTORS_FILE).write_bytes(pickle.dumps(Touch()))
    sign(saved)
    with pytest.raises(InputError, match="not a safetensors"):
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


def test_an_index_can_be_read_alone(saved):
    assert BASELINES.open(saved).model_id == "owner/tiny"
