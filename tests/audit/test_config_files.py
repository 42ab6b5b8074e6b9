"""Files that an audit may read, and folders that it may write to."""

from __future__ import annotations

import os

import pytest

from modelassay.audit import Audit, load_config
from modelassay.audit.config import inside
from modelassay.errors import InputError


def test_a_folder_that_is_a_link_is_refused(config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "audit").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="symbolic link"):
        Audit(load_config(config()))


def test_places(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.yaml").write_text("x")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert inside(tmp_path, "sub/a.yaml") == tmp_path / "sub" / "a.yaml"
    assert inside(tmp_path, str(tmp_path / "sub" / "a.yaml")).is_file()
    for given in ("", "a\0b", "x" * 600, "sub", "pipe.yaml", "sub/a.yaml/b", "/", "sub/../sub/a"):
        with pytest.raises(InputError):
            inside(tmp_path, given)
