"""The pages that are written from the code, and the length of the README."""

from __future__ import annotations

import architecture


def test_the_architecture_page_is_up_to_date():
    written = architecture.PAGE.read_text(encoding="utf-8")
    assert written == architecture.page(), "run `python scripts/architecture.py`"


def test_the_architecture_page_names_every_module():
    written = architecture.PAGE.read_text(encoding="utf-8")
    for path in architecture.modules():
        if path.name != "__init__.py":
            assert path.relative_to(architecture.PACKAGE).with_suffix("").as_posix() in written
