"""The log shows what was done to it."""

from __future__ import annotations

import pytest

pytest.importorskip("mcp")
from modelassay.audit import Audit, load_config, verify_log
from modelassay.audit.log import BEGINNING, AuditLog, read_log
from modelassay.cli.main import run
from modelassay.errors import InputError, UnavailableError


def write_log(path, n=4):
    log = AuditLog(path)
    for i in range(n):
        log.append("call", tool=f"tool {i}", text="zwölf\nlines\ud800")
    log.close()
    return log


def test_a_log_that_is_as_it_was_written_is_taken_up(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = write_log(path)
    assert (verify_log(path).n, verify_log(path).last) == (4, log.last)
    again = AuditLog(path)
    again.append("call", tool="later")
    again.close()
    assert verify_log(path).n == 5
    assert [event["n"] for event in read_log(path)] == list(range(5))
    assert read_log(path)[0]["previous"] == BEGINNING
    assert oct(path.stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0], lines[1].replace(b"tool 1", b"tool 7"), *lines[2:]],
        lambda lines: [*lines[:1], *lines[2:]],
        lambda lines: [lines[0], lines[2], lines[1], lines[3]],
        lambda lines: [*lines[:3], lines[3][:-9]],
        lambda lines: [*lines[:2], b"no json\n", *lines[2:]],
        lambda lines: [*lines, lines[-1]],
    ],
    ids=["changed", "left out", "swapped", "cut off", "put in", "repeated"],
)
def test_a_changed_log_shows(tmp_path, damage, capfd):
    path = tmp_path / "audit.jsonl"
    write_log(path)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    assert "line" in verify_log(path).problem
    assert run(["mcp", "--check-log", str(path)]) == 64
    assert "not as it was written" in capfd.readouterr().err
    with pytest.raises(InputError, match="not as it was written"):
        AuditLog(path)


def test_a_log_that_was_cut_at_a_line_shows_beside_the_hash_of_the_report(tmp_path, capfd):
    path = tmp_path / "audit.jsonl"
    last = write_log(path).last
    assert run(["mcp", "--check-log", str(path)]) == 0
    assert last in capfd.readouterr().out
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify_log(path).last != last


def test_a_log_is_not_written_through_a_link(tmp_path):
    (tmp_path / "target").write_text("")
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "target")
    with pytest.raises(UnavailableError, match="Cannot write"):
        AuditLog(tmp_path / "audit.jsonl")


def test_two_audits_cannot_share_a_folder(config):
    settings = load_config(config())
    with Audit(settings), pytest.raises(UnavailableError, match="Another process"):
        Audit(settings)
    Audit(settings).close()
