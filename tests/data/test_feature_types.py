"""The contrast sets of the feature types: large, matched, and balanced as their files say."""

from __future__ import annotations

import re

import pytest

from modelassay.data.concepts import concepts_for, shipped_concepts
from modelassay.data.feature_types import FEATURE_TYPES, feature_types
from modelassay.errors import InputError
from modelassay.measures.bag_of_words import MAX_LENGTH_DIFFERENCE, measure_surface

OF_RESPONSES = [name for name in FEATURE_TYPES if name != "harm_recognition"]
STATED = re.compile(
    r"(words|word pairs|characters|form|prompt's words) AUROC (\d\.\d\d) \(p=(\S+)\)"
)


def sides(name):
    concept = feature_types()[name]
    return [{" ".join(getattr(pair, side).lower().split()) for pair in concept.pairs}
            for side in ("positive", "negative")]  # fmt: skip


def test_harm_is_recognised_in_the_prompts_of_the_concept():
    types = feature_types()
    assert tuple(types) == FEATURE_TYPES
    assert types["harm_recognition"] == shipped_concepts()["harmful_content"]


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_contrasts_are_large_and_matched(name):
    contrast = feature_types()[name]
    assert contrast.name == name
    assert len(contrast.pairs) >= 48
    assert len({pair.category for pair in contrast.pairs}) >= 8
    assert len({pair.prompt for pair in contrast.pairs}) == len(contrast.pairs)
    assert contrast.provenance.license == "Apache-2.0"
    for pair in contrast.pairs:
        lengths = [len(text.split()) for text in (pair.positive, pair.negative)]
        assert abs(lengths[0] - lengths[1]) <= MAX_LENGTH_DIFFERENCE, pair


@pytest.mark.parametrize("name", OF_RESPONSES)
def test_the_surface_gives_away_what_the_file_states_and_no_more(name):
    contrast = feature_types()[name]
    stated = {view: (auroc, p) for view, auroc, p in STATED.findall(contrast.provenance.method)}
    assert f"Surface check on {len(contrast.pairs)} pairs" in contrast.provenance.method
    measured = measure_surface(contrast)
    assert set(stated) == set(measured)
    for view, surface in measured.items():
        assert surface.auroc == pytest.approx(float(stated[view][0]), abs=0.011), view
        assert surface.p_value == pytest.approx(float(stated[view][1]), abs=0.03), view
        assert surface.p_value > 0.1, view
        assert surface.auroc < 0.56, view


@pytest.mark.parametrize("name", FEATURE_TYPES)
def test_no_text_is_on_opposite_sides(name):
    others = [sides(other) for other in FEATURE_TYPES]
    positives, negatives = sides(name)
    assert not positives & {text for _, texts in others for text in texts}
    assert not negatives & {text for texts, _ in others for text in texts}


def test_a_scan_neither_lists_nor_reads_them():
    types = feature_types()
    assert not set(shipped_concepts()) & set(OF_RESPONSES)
    with pytest.raises(InputError, match="'refusal' holds responses, and a scan reads prompts"):
        concepts_for("quick", {"refusal": types["refusal"]})
