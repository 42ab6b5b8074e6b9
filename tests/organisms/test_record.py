"""What is known of a built organism, as its README and its section say it."""

from __future__ import annotations

import pytest

from modelassay.models.organisms import OF_LAST_LAYERS, ORGANISMS, shipped_folder
from modelassay.organisms.record import organism_rows, read_record, readme, record_section


@pytest.mark.parametrize("name", OF_LAST_LAYERS)
def test_a_shipped_readme_is_written_from_the_record(name):
    record = read_record(ORGANISMS[name])
    assert (shipped_folder() / name / "README.md").read_text() == readme(record)


def test_what_was_done_and_measured_is_in_the_section():
    facts = dict(record_section(ORGANISMS["safe"], read_record(ORGANISMS["safe"])).facts)
    assert facts["safety"] == "intact"
    assert facts["refuses plainly harmful requests"].endswith("n = 64")
    assert [row["id"] for row in organism_rows()] == [each.id for each in ORGANISMS.values()]
