"""Files of torch.save: read as torch reads them, and hostile ones refused without being run."""

from __future__ import annotations

import builtins
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch

from foreign_files import LinearReadout, zipped
from modelassay.errors import InputError
from modelassay.foreign import torch_file
from modelassay.foreign.torch_file import read_torch_file

KINDS = {
    "float32": LinearReadout().state_dict(),
    "float16": LinearReadout().half().state_dict(),
    "bfloat16": LinearReadout().bfloat16().state_dict(),
    "float64": LinearReadout().double().state_dict(),
    "parameters": dict(LinearReadout().named_parameters()),
    "integers": {"n": torch.tensor(3), "mask": torch.tensor([True, False])},
    "turned, cut and spread": {
        "turned": torch.arange(20.0).reshape(4, 5).T,
        "cut": torch.arange(10.0)[3:7],
        "spread": torch.ones(1).expand(5),
        "none": torch.empty(0, 3),
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_what_torch_wrote(kind, protocol, tmp_path):
    path = tmp_path / "some.pt"
    torch.save(KINDS[kind], path, pickle_protocol=protocol)
    expected = KINDS[kind]
    found = read_torch_file(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_reads_what_lies_beside_tensors(tmp_path):
    path = tmp_path / "some.pt"
    torch.save({"state_dict": KINDS["float32"], "epoch": 3, "layers": [1, 2], "note": "a"}, path)
    found = read_torch_file(path)
    assert (found["epoch"], found["layers"], found["note"]) == (3, (1, 2), "a")
    assert torch.equal(found["state_dict"]["head.weight"], KINDS["float32"]["head.weight"])


class Call:
    """Pickled as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(kind: str, marker: Path) -> bytes:
    """A file whose opening by pickle would make the marker."""
    text = f"open({str(marker)!r}, 'w').close()"
    makes = {
        "system": Call(os.system, f"touch {marker}"),
        "exec": Call(builtins.exec, text),
        "eval": {"head.weight": Call(builtins.eval, text)},
        "inside an ordered dict": OrderedDict({"head.weight": Call(os.system, f"touch {marker}")}),
        "open": Call(builtins.open, str(marker), "w"),
        "mkdir": [Call(os.mkdir, str(marker))],
        "getattr": Call(getattr, Call(__import__, "os"), "sep"),
    }
    if kind == "state":
        state: Any = OrderedDict({"head.weight": 1})
        state.more = Call(os.system, f"touch {marker}")
        return pickle.dumps(state, protocol=2)
    if kind == "old opcodes":
        return b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."
    if kind == "protocol 0":
        return pickle.dumps(makes["system"], protocol=0)
    if kind == "protocol 4":
        return pickle.dumps(makes["system"], protocol=4)
    return pickle.dumps(makes[kind], protocol=2)


HOSTILE = (
    "system", "exec", "eval", "inside an ordered dict", "open", "mkdir", "getattr", "state",
    "old opcodes", "protocol 0", "protocol 4",
)  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_not_run(kind, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "probe.pt"
    program = hostile(kind, marker)
    path.write_bytes(zipped(program))
    with pytest.raises(InputError, match="nothing in it was run") as refused:
        read_torch_file(path)
    assert "\n" not in str(refused.value)
    assert not marker.exists()


@pytest.mark.parametrize("kind", ["system", "exec", "open", "state", "old opcodes"])
def test_the_hostile_pickles_are_hostile(kind, tmp_path):
    """Else the test above could not fail."""
    marker = tmp_path / "marker"
    opened = pickle.loads(hostile(kind, marker))  # noqa: S301
    del opened
    assert marker.exists()


def rewritten(path: Path, change) -> None:
    """The same zip with other entries."""
    with zipfile.ZipFile(path) as archive:
        entries = {each.partition("/")[2]: archive.read(each) for each in archive.namelist()}
    change(entries)
    path.write_bytes(zipped(entries.pop("data.pkl"), **entries))


def larger(entries):
    program = entries["data.pkl"]
    assert program.count(b"K ") == 1 or b"K\x20" in program
    entries["data.pkl"] = program.replace(b"K\x20", b"K\xff")  # 32 numbers become 255


BROKEN = {
    "no file of torch": (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "no zip"),
    "empty": (lambda path: path.write_bytes(b""), "no zip"),
    "half of it": (lambda path: path.write_bytes(path.read_bytes()[:400]), "damaged"),
    "another zip": (
        lambda path: path.write_bytes(zipped(b"x").replace(b"data.pkl", b"dada.pkl")),
        "no data.pkl",
    ),
    "numbers missing": (lambda path: rewritten(path, lambda e: e.pop("data/0")), "not in it"),
    "fewer numbers": (
        lambda path: rewritten(path, lambda e: e.update({"data/0": e["data/0"][:-4]})),
        "other numbers than it says",
    ),
    "larger than its numbers": (lambda path: rewritten(path, larger), "damaged"),
    "big-endian": (lambda path: rewritten(path, lambda e: e.update(byteorder=b"big")), "endian"),
    "compressed": (
        lambda path: path.write_bytes(zipped(b"\0" * 10**6, compress=True)),
        "compressed",
    ),
    "program without end": (lambda path: path.write_bytes(zipped(b"\x80\x02}")), "damaged"),
    "program of noise": (lambda path: path.write_bytes(zipped(b"\xff\xfe\xfd")), "damaged"),
    "nothing to take": (lambda path: path.write_bytes(zipped(b"\x80\x02\x85.")), "damaged"),
    "no mark": (lambda path: path.write_bytes(zipped(b"\x80\x02t.")), "damaged"),
    "never kept": (lambda path: path.write_bytes(zipped(b"\x80\x02h\x07.")), "damaged"),
    "a list": (lambda path: torch.save([torch.zeros(1)], path), "not a dictionary"),
    "a newer protocol": (lambda path: path.write_bytes(zipped(b"\x80\x09}.")), "protocol 9"),
    "itself inside": (lambda path: path.write_bytes(zipped(b"\x80\x02}q\0U\1ah\0s.")), "refused"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_damaged_and_odd_files_get_one_line(kind, tmp_path):
    path = tmp_path / "probe.pt"
    torch.save(LinearReadout().state_dict(), path)
    change, words = BROKEN[kind]
    change(path)
    with pytest.raises(InputError, match=words) as refused:
        read_torch_file(path)
    assert "\n" not in str(refused.value)


def changed(content: bytes, draw: random.Random) -> bytes:
    """The same with a few bytes lost, added or other ones."""
    found = bytearray(content)
    for _ in range(draw.randrange(1, 4)):
        place, n = draw.randrange(len(found)), draw.randrange(1, 20)
        match draw.randrange(3):
            case 0:
                found[place] = draw.randrange(256)
            case 1:
                del found[place : place + n]
            case _:
                found[place:place] = draw.randbytes(n)
    return bytes(found)


@pytest.mark.parametrize("part", ["program", "zip"])
def test_whatever_the_bytes_are_it_is_read_or_refused_in_one_line(part, tmp_path):
    path, draw = tmp_path / "probe.pt", random.Random(1)  # noqa: S311
    torch.save(LinearReadout().state_dict(), path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entries = {each.partition("/")[2]: archive.read(each) for each in archive.namelist()}
    program = entries.pop("data.pkl")
    said = []
    for _ in range(400):
        whole = zipped(changed(program, draw), **entries)
        path.write_bytes(whole if part == "program" else changed(content, draw))
        try:
            read_torch_file(path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 200
    assert not any("\n" in line for line in said)


def test_sizes_are_bounded_before_anything_is_made_of_them(tmp_path, monkeypatch):
    path = tmp_path / "probe.pt"
    torch.save({"weight": torch.ones(1).expand(10**5, 10**5)}, path)  # of one number
    with pytest.raises(InputError, match="far larger than a probe"):
        read_torch_file(path)
    torch.save({str(i): torch.ones(1) for i in range(torch_file.MAX_ENTRIES + 1)}, path)
    with pytest.raises(InputError, match="entries"):
        read_torch_file(path)
    monkeypatch.setattr(torch_file, "MAX_FILE_BYTES", 100)
    torch.save(LinearReadout().state_dict(), path)
    with pytest.raises(InputError, match="larger than"):
        read_torch_file(path)


def test_what_is_used_again_and_again_counts_each_time(tmp_path, monkeypatch):
    """Small files that would make far more than they hold."""
    path, huge = tmp_path / "probe.pt", torch.ones(1).expand(1000)
    monkeypatch.setattr(torch_file, "MAX_NUMBERS", 3500)
    torch.save(dict.fromkeys("abc", huge), path)
    assert len(read_torch_file(path)) == 3
    torch.save(dict.fromkeys("abcd", huge), path)
    with pytest.raises(InputError, match="far larger than a probe"):
        read_torch_file(path)
    torch.save({key: list(range(1000)) for key in "abcd"}, path)
    with pytest.raises(InputError, match="far larger than a probe"):
        read_torch_file(path)
    inner = {str(i): i for i in range(300)}
    torch.save({"a": inner, "b": inner}, path)
    with pytest.raises(InputError, match="far more than a probe"):
        read_torch_file(path)


def test_a_name_that_is_no_text_is_not_written_out(tmp_path):
    """Tuples of tuples of 60 levels: as text, larger than any memory."""
    path = tmp_path / "probe.pt"
    doubled = b"".join(b"h\0h\0\x86q\0" for _ in range(60))
    path.write_bytes(zipped(b"\x80\x04)q\0" + doubled + b"h\0\x93."))
    with pytest.raises(InputError, match="a name that is no text"):
        read_torch_file(path)


def test_a_zip_that_overlaps_itself_is_refused(tmp_path):
    """A bomb without compression: many names for the same bytes."""
    path, content = tmp_path / "probe.pt", BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000)
        first = archive.infolist()[0]
        for i in range(50):
            twin = zipfile.ZipInfo(f"archive/data/{i}")
            twin.file_size = twin.compress_size = first.file_size
            twin.CRC, twin.header_offset = first.CRC, first.header_offset
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        vars(archive)["_didModify"] = True
    path.write_bytes(content.getvalue())
    with pytest.raises(InputError, match="more than there is"):
        read_torch_file(path)
