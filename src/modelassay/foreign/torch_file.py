"""Tensors of a file that `torch.save` wrote, read without running the pickle inside it.

The file is a zip: `NAME/data.pkl` says which tensors there are, `NAME/data/KEY` holds the numbers
of one. A pickle is a program that may do anything, so nothing runs it here. Its instructions are
listed, the few that a dictionary of tensors is written with are followed as data, and any other one
refuses the file by its name. Sizes are held against what the zip really holds before any number is
read.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from modelassay.errors import InputError, first_line

MAX_FILE_BYTES = 64_000_000
MAX_PROGRAM_BYTES = 1_000_000
MAX_ENTRIES = 400
MAX_DEPTH = 3
MAX_NUMBERS = 16_000_000
"""Of all tensors: strides of zero make a huge one of a single number."""
MAX_TIMES_READ = 8
"""How often the whole file is read, at most: many tensors may lie in the same numbers."""
DTYPES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch BoolStorage": torch.bool,
}
REBUILD = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
ORDERED = "collections OrderedDict"
DAMAGED = (
    zipfile.BadZipFile, struct.error, ValueError, TypeError, LookupError, ArithmeticError,
    RuntimeError, EOFError, OSError,
)  # fmt: skip
"""What zipfile, pickletools and torch raise of bytes that are not what they ought to be."""
NAMES = {REBUILD, PARAMETER, ORDERED, *DTYPES}
"""All that a file may name of Python; none of it is imported or called."""


@dataclass(frozen=True)
class Limits:
    """How much a file may hold."""

    of: str = "a probe"
    file_bytes: int = field(default_factory=lambda: MAX_FILE_BYTES)
    entries: int = field(default_factory=lambda: MAX_ENTRIES)
    numbers: int = field(default_factory=lambda: MAX_NUMBERS)
    """Of all tensors."""


@dataclass(frozen=True)
class _Named:
    """Something of Python's that the program names."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Where the numbers of a tensor lie."""

    dtype: torch.dtype
    key: str
    numbers: int


@dataclass(frozen=True)
class _Described:
    """A tensor as the program describes it."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Mark:
    """Where the values of the next collection begin."""


_MARK = _Mark()


def read_torch_file(path: Path, limits: Limits | None = None) -> dict[str, Any]:
    """What a file of `torch.save` holds, as a mapping of tensors, numbers, texts and mappings.

    Args:
        path: The file.
        limits: How much it may hold; None for what a probe may.

    Raises:
        InputError: it is not such a file, is damaged or too large, or holds more than this.
    """
    limits = limits or Limits()
    try:
        size = path.stat().st_size
        if size > limits.file_bytes:
            raise InputError(
                f"{path} is larger than the {limits.file_bytes // 10**6} MB of {limits.of}."
            )
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                raise InputError(
                    f"{path} is not a file of torch.save (no zip); save the state_dict again with"
                    " PyTorch 1.6 or later."
                )
            return _read(path, file, size, limits)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error


def _read(path: Path, file: IO[bytes], size: int, limits: Limits) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = _entries(path, archive, size, limits)
            found = _Program(path).run(archive.read(entries["data.pkl"]))
            if not isinstance(found, dict):
                raise _refusal(path, "what it holds is not a dictionary")
            stored = _Stored(path, archive, entries, size, limits)
            return _Values(stored).mapping(found, MAX_DEPTH)
    except DAMAGED as error:
        raise InputError(f"{path} is damaged: {first_line(error, 80)}.") from error


def _refusal(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is refused, and nothing in it was run: {reason}.")


def _entries(
    path: Path, archive: zipfile.ZipFile, size: int, limits: Limits
) -> dict[str, zipfile.ZipInfo]:
    """The zip's entries by their names below its one folder."""
    listed = archive.infolist()
    if len(listed) > limits.entries:
        raise _refusal(path, f"its zip has {len(listed)} entries")
    if any(each.compress_type != zipfile.ZIP_STORED for each in listed):
        raise _refusal(path, "its zip is compressed, which torch.save never does")
    if sum(each.file_size for each in listed) > size:
        raise _refusal(path, "its zip says that it holds more than there is")
    roots = {each.filename.partition("/")[0] for each in listed}
    names = [each.filename.partition("/")[2] for each in listed]
    if len(roots) != 1 or len(set(names)) != len(names):
        raise _refusal(path, "its zip is not laid out as torch.save does")
    entries = dict(zip(names, listed, strict=True))
    if "data.pkl" not in entries:
        raise InputError(f"{path} is not a file of torch.save (its zip holds no data.pkl).")
    if entries["data.pkl"].file_size > MAX_PROGRAM_BYTES:
        raise _refusal(path, "its description of tensors is too long")
    order = entries.get("byteorder")
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise InputError(f"{path} was written on a big-endian machine; save it again on another.")
    return entries


@dataclass
class _Stored:
    """The numbers in a file, read as they are asked for."""

    path: Path
    archive: zipfile.ZipFile
    entries: Mapping[str, zipfile.ZipInfo]
    size: int
    limits: Limits
    read: int = 0
    """Bytes so far."""

    def content(self, key: str) -> bytes | None:
        """Those under a key, or None if there are none."""
        entry = self.entries.get(f"data/{key}")
        if entry is None:
            return None
        self.read += entry.file_size
        if self.read > MAX_TIMES_READ * max(self.size, MAX_PROGRAM_BYTES):
            raise _refusal(self.path, f"it holds far more than {self.limits.of}")
        return self.archive.read(entry)


class _Program:
    """Follows the instructions that describe tensors; none of them can do anything."""

    def __init__(self, path: Path) -> None:
        """Starts with nothing."""
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        push = self.stack.append
        self.follow: Mapping[str, Callable[[Any], object]] = {
            "PROTO": lambda version: self._check_version(version),
            "FRAME": lambda _: None,
            "MARK": lambda _: push(_MARK),
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "EMPTY_DICT": lambda _: push({}),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_TUPLE": lambda _: push(()),
            **dict.fromkeys(_LITERALS, push),
            "GLOBAL": self._name,
            "STACK_GLOBAL": lambda _: self._named(*self._last(2)),
            "BINPUT": self._keep,
            "LONG_BINPUT": self._keep,
            "MEMOIZE": lambda _: self._keep(len(self.memo)),
            "BINGET": lambda place: push(self.memo[place]),
            "LONG_BINGET": lambda place: push(self.memo[place]),
            "TUPLE": lambda _: push(tuple(self._marked())),
            "TUPLE1": lambda _: self._tuple(1),
            "TUPLE2": lambda _: self._tuple(2),
            "TUPLE3": lambda _: self._tuple(3),
            "APPEND": lambda _: self._append([self.stack.pop()]),
            "APPENDS": lambda _: self._append(self._marked()),
            "SETITEM": lambda _: self._set([*self._last(2)]),
            "SETITEMS": lambda _: self._set(self._marked()),
            "BINPERSID": lambda _: push(self._storage(self.stack.pop())),
            "REDUCE": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
        }

    def run(self, program: bytes) -> Any:
        """The value that the program describes."""
        for instruction, argument, _ in pickletools.genops(program):
            if instruction.name == "STOP":
                return self.stack.pop()
            follow = self.follow.get(instruction.name)
            if follow is None:
                raise _refusal(
                    self.path, f"it uses {instruction.name}, which no dictionary of tensors needs"
                )
            follow(argument)
        raise ValueError("it has no end")

    def _check_version(self, version: int) -> None:
        if version > MAX_PROTOCOL:
            raise _refusal(self.path, f"it has pickle protocol {version}, newer than is known")

    def _name(self, name: str) -> None:
        if name not in NAMES:
            shown = re.sub(r"[^\w.]+", ".", name)[:80]
            raise _refusal(self.path, f"it names {shown}, which is not a tensor")
        self.stack.append(_Named(name))

    def _named(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")  # the text of nested tuples has no end
        self._name(f"{module} {name}")

    def _keep(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def _marked(self) -> list[Any]:
        place = max(i for i, value in enumerate(self.stack) if value is _MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _last(self, n: int) -> list[Any]:
        values = self.stack[-n:]
        if len(values) != n or any(value is _MARK for value in values):
            raise ValueError("a value is missing")
        del self.stack[-n:]
        return values

    def _tuple(self, n: int) -> None:
        self.stack.append(tuple(self._last(n)))

    def _append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("a list is expected")
        target.extend(values)

    def _set(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("a dictionary is expected")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise ValueError("a key is neither text nor a number")
            target[key] = value

    def _storage(self, given: Any) -> _Storage:
        kind, named, key, _, numbers = given
        if kind != "storage" or not isinstance(named, _Named) or named.name not in DTYPES:
            raise ValueError("a storage of unknown kind")
        if not isinstance(key, str) or not isinstance(numbers, int):
            raise ValueError("a storage of unknown form")
        return _Storage(DTYPES[named.name], key, numbers)

    def _reduce(self) -> None:
        made, given = self._last(2)
        if not isinstance(made, _Named) or not isinstance(given, tuple):
            raise ValueError("a call of unknown form")
        if made.name == ORDERED and given == ():
            self.stack.append({})
        elif made.name == PARAMETER and isinstance(given[0], _Described):
            self.stack.append(given[0])
        elif made.name == REBUILD and isinstance(given[0], _Storage):
            storage, offset, size, stride, *_ = given
            whole = (offset, *size, *stride)
            if not all(type(n) is int and n >= 0 for n in whole) or len(size) != len(stride):
                raise ValueError("a tensor of unknown form")
            self.stack.append(_Described(storage, offset, size, stride))
        else:
            raise ValueError("a call of unknown form")

    def _build(self) -> None:
        """`state_dict()` carries the versions of its modules as an attribute, which is left out."""
        target, _ = self._last(2)
        if not isinstance(target, dict):
            raise _refusal(self.path, "it sets attributes of something that is not a dictionary")
        self.stack.append(target)


_LITERALS = (
    "BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
)  # fmt: skip
MAX_PROTOCOL = 5


class _Values:
    """Makes tensors of their descriptions.

    A program may use one description, and one mapping of many, again and again, so what counts is
    all that is made of it.
    """

    def __init__(self, stored: _Stored) -> None:
        """Of a file."""
        self._path, self._stored, self._of = stored.path, stored, stored.limits.of
        self._entries = stored.limits.entries
        self._numbers = stored.limits.numbers

    def mapping(self, values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        """A mapping with tensors for their descriptions."""
        self._entries -= len(values)
        if depth == 0 or self._entries < 0:
            raise _refusal(self._path, f"it holds far more than {self._of}")
        found: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, _Described):
                found[str(key)] = self._tensor(str(key), value)
            elif isinstance(value, dict):
                found[str(key)] = self.mapping(value, depth - 1)
            elif value is None or isinstance(value, str | int | float):
                found[str(key)] = value
            elif isinstance(value, list | tuple) and all(
                isinstance(v, str | int | float) for v in value
            ):
                self._count(len(value), str(key))
                found[str(key)] = tuple(value)
            else:
                raise _refusal(
                    self._path, "it holds something that is neither tensor, number nor text"
                )
        return found

    def _count(self, numbers: int, name: str) -> None:
        self._numbers -= numbers
        if self._numbers < 0:
            raise _refusal(self._path, f"{_shown(name)} is far larger than {self._of}")

    def _tensor(self, name: str, told: _Described) -> Tensor:
        path, shown = self._path, _shown(name)
        content = self._stored.content(told.storage.key)
        if content is None:
            raise InputError(f"{path} is damaged: the numbers of {shown} are not in it.")
        n = told.storage.numbers
        if n * told.storage.dtype.itemsize != len(content):
            raise InputError(f"{path} is damaged: {shown} has other numbers than it says.")
        last = told.offset + sum((s - 1) * t for s, t in zip(told.size, told.stride, strict=True))
        self._count(math.prod(told.size), name)
        if len(told.size) > 8:
            raise _refusal(path, f"{shown} has more dimensions than {self._of}")
        if 0 in told.size:
            return torch.empty(told.size, dtype=told.storage.dtype)
        if last >= n:
            raise InputError(f"{path} is damaged: {shown} reaches beyond its numbers.")
        flat = torch.frombuffer(bytearray(content), dtype=told.storage.dtype)
        found = flat.as_strided(told.size, told.stride, told.offset)
        return found if found.is_contiguous() and found.numel() == n else found.clone()


def _shown(name: str) -> str:
    """A name in the file as it may stand in a line."""
    return re.sub(r"[^\w.]+", "?", name)[:60]
