"""The quick way from text to columns: `quick.c`, compiled when tracetool is installed, where there is a compiler.

Without it, and for whatever it does not know for sure, `decode` and `columns` do the work; they are the reference, and
the result is the same.
"""

from __future__ import annotations

import ctypes
import enum
import functools
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from tracetool.events import IntArray

LIBRARY = Path(__file__).with_name("quick.compiled")
WITHOUT = "TRACETOOL_PURE_PYTHON"
"""Set this in the environment to do without the compiled part."""

_ROWS = 1 << 14
_PACKED_THREAD = 32


class Reads(enum.IntFlag):
    """What is read of the events of a category, as `quick.c` has it."""

    SLICE = 1
    FLOW = 2
    LINKED = 4
    EXTERNAL = 8
    SIZED = 16
    MEMORY = 32
    COLLECTIVE = 64
    ASKED = 128


class Status(enum.IntEnum):
    """Why `Taker.take` stopped."""

    MORE = 0
    """The window ends within an event, or behind one."""
    CLOSED = 1
    """The list of events ends."""
    ODD = 2
    """The event behind what was consumed is one for `decode`."""
    FULL = 3
    """There are more rows than one answer holds."""
    NEW_CATEGORY = 4
    NO_MEMORY = 5


COLUMNS: dict[str, type[np.generic]] = {
    "category": np.int8,
    "name": np.int32,
    "thread": np.int32,
    "start": np.int64,
    "end": np.int64,
    "correlation": np.int64,
    "external_id": np.int64,
}
_FEW = {
    "bytes": ("sized", "bytes"),
    "held_bytes": ("holding", "held"),
    "on_device": ("placed", "device"),
    "line": ("lined", "line"),
}
_ASKED = ("asked", "asked_begin", "asked_end")
_ARRAYS = [*COLUMNS, *(name for names in _FEW.values() for name in names), *_ASKED]
_COUNTS = ["rows", *(f"{names[0]}_count" for names in _FEW.values()), "asked_count"]


class _Found(ctypes.Structure):
    """`columns` of `quick.c`."""

    _fields_ = (
        ("capacity", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in (*_COUNTS, "unpaired", "consumed")),
        ("new_category", ctypes.c_void_p),
        ("new_category_length", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """What one call took; the arrays are overwritten by the next one.

    Attributes:
        status: why it stopped.
        consumed: where the comma, or the end, behind the last event taken stands.
        columns: of every row.
        few: of few rows: which, and the values.
        asked: events whose arguments are left to the caller: row, or -1 for one that is no row, begin and end.
        unpaired: begin and end events that were left out.
    """

    status: Status
    consumed: int
    columns: dict[str, npt.NDArray[Any]]
    few: dict[str, tuple[IntArray, IntArray]]
    asked: IntArray
    unpaired: int


class Taker:
    """Takes events from windows of one file; numbers their names and threads as they come."""

    def __init__(
        self, library: ctypes.CDLL, reads: Sequence[Reads], flow_end: int, memory: str, code_of: Callable[[str], int]
    ) -> None:
        """Take what is read of each category's events, the code of a flow's end, and what gives categories codes."""
        self._library, self._code_of = library, code_of
        name = memory.encode()
        flags = (ctypes.c_int32 * len(reads))(*reads)
        self._reader = ctypes.c_void_p(library.tracetool_new(flags, len(reads), flow_end, name, len(name)))
        if not self._reader:
            raise MemoryError
        self._arrays = {name: np.empty(_ROWS, dtype=COLUMNS.get(name, np.int64)) for name in _ARRAYS}
        self._found = _Found(capacity=_ROWS, **{name: array.ctypes.data for name, array in self._arrays.items()})

    def __del__(self) -> None:
        if reader := getattr(self, "_reader", None):
            self._library.tracetool_free(reader)

    def take(self, window: bytearray) -> Taken:
        """Take whole events from a window whose first byte is the `[` or `,` before an event."""
        found = self._found
        text = np.frombuffer(window, dtype=np.uint8)
        status = Status(self._library.tracetool_take(self._reader, text.ctypes.data, len(text), ctypes.byref(found)))
        if status is Status.NEW_CATEGORY:
            name = ctypes.string_at(found.new_category, found.new_category_length)
            if not self._library.tracetool_category(self._reader, name, len(name), self._code_of(name.decode())):
                raise MemoryError
            status = Status.FULL
        if status is Status.NO_MEMORY:
            raise MemoryError
        return Taken(
            status=status,
            consumed=found.consumed,
            columns={name: self._arrays[name][: found.rows] for name in COLUMNS},
            few={
                name: (
                    self._first(rows, getattr(found, f"{rows}_count")),
                    self._first(values, getattr(found, f"{rows}_count")),
                )
                for name, (rows, values) in _FEW.items()
            },
            asked=np.stack([self._first(name, found.asked_count) for name in _ASKED], axis=1),
            unpaired=found.unpaired,
        )

    def _first(self, name: str, count: int) -> IntArray:
        return self._arrays[name][:count]

    def names(self, known: int) -> list[str]:
        """The names of events and lines from number `known` on."""
        return [text.decode() for text in self._strings(0, known)]

    def threads(self, known: int) -> list[tuple[int | str | None, int | str | None]]:
        """The pid and tid of each thread from number `known` on."""
        packed = self._strings(2, known)
        tracks = [text.decode() for text in self._strings(1, 0)] if packed else []

        def plain(kind: int, value: int) -> int | str | None:
            return value if kind == ord("i") else tracks[value] if kind == ord("s") else None

        numbers = (np.frombuffer(text, dtype=np.int64).tolist() for text in packed)
        return [(plain(a, b), plain(c, d)) for a, b, c, d in numbers]

    def _strings(self, which: int, known: int) -> list[bytes]:
        start, ends = ctypes.c_void_p(), ctypes.POINTER(ctypes.c_int64)()
        count = self._library.tracetool_strings(self._reader, which, ctypes.byref(start), ctypes.byref(ends))
        if count <= known:
            return []
        edges = [ends[known - 1] if known else 0, *ends[known:count]]
        base = start.value or 0
        return [ctypes.string_at(base + low, high - low) for low, high in itertools.pairwise(edges)]


@functools.cache
def compiled() -> ctypes.CDLL | None:
    """The compiled part; None where there is none, or none is wanted."""
    if os.environ.get(WITHOUT) or not LIBRARY.exists():
        return None
    try:
        found = ctypes.CDLL(str(LIBRARY))
    except OSError:
        return None
    found.tracetool_new.restype = ctypes.c_void_p
    found.tracetool_new.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int64]
    found.tracetool_free.argtypes = [ctypes.c_void_p]
    found.tracetool_take.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    found.tracetool_category.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int32]
    found.tracetool_strings.restype = ctypes.c_int64
    found.tracetool_strings.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    return found
