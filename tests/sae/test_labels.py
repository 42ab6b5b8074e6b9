"""Labels on disk: what was saved is loaded, and nothing else."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("sae_lens")
from labelled import WIDTH, in_folder
from modelassay.errors import InputError
from modelassay.report.text import plain_line
from modelassay.sae import find_labels, find_sae, load_labels, save_labels
from modelassay.sae.labels import weights_hash


def test_what_cannot_be_printed_is_escaped():
    assert plain_line("a\nb\u202ec\x1b") == "a\\nb\\u202ec\\x1b"


def test_what_was_saved_is_loaded(planted, labels, tmp_path):
    sae = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = find_labels(sae)
    assert found is not None
    assert [found.of(i) for i in range(WIDTH)] == [labels.of(i) for i in range(WIDTH)]
    assert found.record.data == ("words",)
    assert found.record.dictionary_sha256 == weights_hash(sae)
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
        (as_if_hashed, "not have one row for each"),
        (other_dictionary, "belong to another SAE"),
        (lambda folder: (folder / "labels.parquet").unlink(), "cannot be read"),
        (lambda folder: (folder / "labels.json").write_text("{}"), "not a valid label file"),
    ],
)
def test_labels_that_do_not_belong_are_refused(planted, labels, tmp_path, damage, message):
    folder = tmp_path / "d"
    planted.module.save_model(folder)
    save_labels(labels, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_labels(folder, find_sae(str(folder)))
    assert "\n" not in str(error.value)
