"""One reference for a model, however its parts are given."""

import subprocess
import sys

import pytest

import modelassay
from modelassay.errors import InputError
from modelassay.models import ModelRef, open_model
from modelassay.models.refs import fetch_options, take_pair, take_ref


def test_parts_are_taken_out_of_the_options():
    ref, rest = take_ref("base", {"adapter": "a", "revision": None, "dtype": "float32"})
    assert ref == ModelRef("base", adapter="a")
    assert rest == {"dtype": "float32"}
    assert take_ref(ref, {"revision": "main"})[0] == ModelRef("base", "main", "a")


def test_a_part_that_is_given_twice_is_refused():
    with pytest.raises(InputError, match="two of adapter: a and b"):
        take_ref(ModelRef("base", adapter="a"), {"adapter": "b"})


def test_parts_of_a_pair_are_told_apart():
    options = {"base_revision": "v1", "candidate_adapter": "a", "device": "cpu"}
    base, candidate, rest = take_pair("x", None, options)
    assert (base, candidate) == (ModelRef("x", "v1"), ModelRef("x", adapter="a"))
    assert rest == {"device": "cpu"}
    assert take_pair(None, None, {"token": "t"}) == (None, None, {"token": "t"})
    for given in (("x", None, {}), (None, "x", {}), (None, None, {"base_adapter": "a"})):
        with pytest.raises(InputError, match="both --base and --candidate"):
            take_pair(*given)


def test_only_some_options_find_files():
    assert fetch_options({"token": "t", "dtype": "auto", "max_bytes": 3}) == {
        "token": "t",
        "max_bytes": 3,
    }


def test_a_loaded_model_takes_no_parts(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu", dtype="bfloat16")
    assert open_model(model, device="cuda") is model
    with pytest.raises(InputError, match="Give adapter with an id, not with a loaded model"):
        open_model(model, adapter="a")


def test_a_reference_is_loaded_like_its_parts(tiny_folder):
    folder = str(tiny_folder())
    by_ref = modelassay.load(ModelRef(folder), device="cpu")
    assert by_ref.info == modelassay.load(folder, device="cpu").info
    with pytest.raises(InputError, match="--revision is for the Hub"):
        modelassay.scan(ModelRef(folder, revision="main"))
    with pytest.raises(InputError, match="--revision is for the Hub"):
        modelassay.scan(folder, revision="main")


def test_references_need_no_torch():
    code = (
        "import sys; from modelassay.models import ModelRef; import modelassay.models.organisms;"
        " sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
