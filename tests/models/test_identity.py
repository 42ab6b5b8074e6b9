"""One identity of a model, in memory and in every kind of record."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from modelassay.errors import InputError
from modelassay.models import ModelIdentity
from modelassay.probes.record import STATED, ProbeRecord
from modelassay.sae.record import SAERecord
from modelassay.verify.baseline import BaselineIndex

ROOT = Path(__file__).parents[2]
KINDS = (
    ("baselines/*/baseline.json", BaselineIndex),
    ("probes/*/probe.json", ProbeRecord),
    ("dictionaries/*/dictionary.json", SAERecord),
)


@pytest.mark.parametrize(("pattern", "kind"), KINDS)
def test_published_records_are_written_with_the_keys_they_were_read_with(pattern, kind):
    files = sorted(ROOT.glob(pattern))
    assert files
    for file in files:
        published = json.loads(file.read_text(encoding="utf-8"))
        record = kind.model_validate(published)
        assert record.model_dump(mode="json", by_alias=True)["model"] == published["model"]


@pytest.mark.parametrize(("pattern", "kind"), KINDS)
def test_a_record_that_lacks_what_its_kind_states_is_refused(pattern, kind):
    published = json.loads(sorted(ROOT.glob(pattern))[0].read_text(encoding="utf-8"))
    del published["model"]["hidden_size"]
    with pytest.raises(ValidationError, match="hidden_size is missing"):
        kind.model_validate(published)


def test_a_loaded_model_states_everything_and_a_record_a_part(tiny):
    info = tiny().info
    assert set(info.to_dict()) == set(ModelIdentity.model_fields)
    kept = info.keep(*STATED, id="owner/name")
    assert kept.to_dict() == {
        "id": "owner/name",
        **{name: value for name, value in info.to_dict().items() if name in STATED},
    }
    assert ModelIdentity.model_validate_json(kept.model_dump_json()) == kept


def test_what_no_record_may_hold_is_told_in_one_line(tiny):
    hostile = tiny().info.model_copy(update={"id": "a\nb"})
    with pytest.raises(InputError, match="cannot be recorded as a model: `id`") as caught:
        hostile.keep("weights_sha256")
    assert "\n" not in str(caught.value)


def test_differences_are_named_in_the_order_of_their_weight(tiny):
    info = tiny().info

    def changed(**update):
        return info.model_copy(update=update)

    assert info.differences(info, weights=True) is None
    assert info.differences(changed(dtype="float16", id="x"), weights=True) is None
    other = changed(weights_sha256="0" * 64)
    assert info.differences(other) is None
    assert info.differences(other, weights=True) == "their weights differ"
    assert not info.same_weights(changed(organism="rounded"))
    assert "has 5 layers of hidden size 32, this one 5 of 64" in (
        info.differences(changed(hidden_size=64)) or ""
    )
    assert "is a LlamaForCausalLM, this one a GPT2LMHeadModel" in (
        info.differences(changed(architecture="GPT2LMHeadModel", hidden_size=64)) or ""
    )
