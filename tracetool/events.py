"""The events of one trace, as columns."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    IntArray = npt.NDArray[np.integer[Any]]
    BoolArray = npt.NDArray[np.bool_]

NO_ID = np.iinfo(np.int64).min
"""Stands for a number that an event does not carry."""

NO_LINK = np.iinfo(np.int32).min
"""Stands for an id that an event does not carry; ids mostly fit 32 bits."""


class Category(enum.IntEnum):
    """What an event is, by Kineto's category."""

    RANGE = 0
    """`user_annotation`: a `record_function` range."""
    OP = 1
    """`cpu_op`."""
    CALL = 2
    """`cuda_runtime`, `cuda_driver` and the same of other back ends."""
    KERNEL = 3
    MEMCPY = 4
    MEMSET = 5
    SYNC = 6
    """`cuda_sync`: how long a call waited, and for what."""
    FLOW_START = 7
    """Start of a `fwdbwd` flow, on the thread that ran the forward op; its id is in `correlation`."""
    FLOW_END = 8
    """End of a `fwdbwd` flow, on the thread that ran the backward op."""
    PYTHON = 9
    """`python_function`: a Python frame or an nn.Module."""
    MEMORY = 10
    """A `[memory]` instant: an allocation (bytes above 0) or a release."""
    COMPILE = 11
    """`compile`: one kernel compiled just in time, or found in the disk cache, as our own capture notes it."""
    AUTOTUNE = 12
    """`autotune`: one run of an autotuner that had to try, as our own capture notes it."""


def index_type(count: int) -> type[np.signedinteger[Any]]:
    """The type of a long column of indices into `count` things, or -1: every byte counts ten million times."""
    return np.int16 if count <= np.iinfo(np.int16).max else np.int32


def is_any(column: npt.NDArray[np.int8], *categories: Category) -> BoolArray:
    """Which entries of a column of categories are one of those given."""
    found: BoolArray = column == int(categories[0])
    for category in categories[1:]:
        found |= column == int(category)
    return found


DEVICE_WORK = (Category.KERNEL, Category.MEMCPY, Category.MEMSET)


@dataclass(frozen=True, slots=True)
class Thread:
    """A track of the trace: a CPU thread, or a stream of a device."""

    pid: int | str
    tid: int | str
    name: str = ""

    @property
    def label(self) -> str:
        """How a person would call it: `405 (python3)`."""
        return f"{self.tid} ({self.name})" if self.name else str(self.tid)


@dataclass(frozen=True, slots=True)
class Sparse:
    """A column that few events have: their rows, ascending, and their values."""

    rows: IntArray
    values: IntArray

    def at(self, rows: IntArray, default: int) -> IntArray:
        """The values at some rows of the table, `default` where an event has none."""
        if not len(self.rows):
            return np.full(len(rows), default, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        found: IntArray = np.where(self.rows[place] == rows, self.values[place], default)
        return found


@dataclass(frozen=True, slots=True)
class EventTable:
    """Columns of equal length, one row an event, in the order of the file; and sparse ones.

    Times are int64 nanoseconds on the clock of the trace; `end >= start`. `name`, `line` and `compiled_for` index
    `names`, `thread` indexes `threads`.
    """

    category: npt.NDArray[np.int8]
    name: IntArray
    thread: IntArray
    start: IntArray
    end: IntArray
    correlation: IntArray
    """Correlation id of a call or of device work, flow id of a flow; else `NO_LINK`. int32 where all fit."""
    external_id: IntArray
    """Of a call, an op or a range; as `correlation`."""
    bytes: Sparse
    """Bytes of a copy, a memset or an allocation (negative: released)."""
    held_bytes: Sparse
    """Of a `[memory]` event: what the allocator holds of that device, or of the host, right after it."""
    on_device: Sparse
    """Of a `[memory]` event: 1 where it is not about the host."""
    collective_bytes: Sparse
    """Bytes of a collective's kernel: the larger of its input and output message."""
    line: Sparse
    """The source line that called an op, where the capture recorded it."""
    cache_hit: Sparse
    """Of a compile: 1 where the disk cache had it."""
    compiled_for: Sparse
    """Of a compile: what it was compiled for, `name: type` of each argument; an index into `names`."""
    names: list[str]
    threads: list[Thread]

    def __len__(self) -> int:
        return len(self.category)

    def of(self, *categories: Category) -> IntArray:
        """Rows of the given categories, in the order of the file."""
        return np.flatnonzero(is_any(self.category, *categories))

    def names_at(self, rows: IntArray) -> list[int]:
        """The names (indices into `names`) that some rows have, each once, ascending."""
        found: list[int] = np.flatnonzero(np.bincount(self.name[rows], minlength=1)).tolist()
        return found

    def process_numbers(self) -> IntArray:
        """A small number for the process (of a stream: the device) of each of the trace's threads."""
        numbers = {pid: number for number, pid in enumerate(dict.fromkeys(thread.pid for thread in self.threads))}
        return np.array([numbers[thread.pid] for thread in self.threads], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class ReadReport:
    """What the reader met on its way; `health` turns it into findings."""

    truncated: bool = False
    """The file ends before its JSON or its gzip does."""
    unclosed_list: bool = False
    """A bare list without its closing bracket, which Chrome's format allows."""
    malformed_metadata: bool = False
    """The text around the events is no usable JSON, so that what the file says of itself is not known."""
    replaced_text: int = 0
    """Pieces of the file that were invalid JSON (bad bytes, control characters, NaN) and were mended."""
    dropped_events: int = 0
    """Events that could not be understood at all: no name, no time, not an object."""
    bad_numbers: int = 0
    """Values that should have been numbers and were left out."""
    bad_durations: int = 0
    """Negative, missing or unreadable durations, counted as 0."""
    unpaired_phases: int = 0
    """Begin and end events (`ph` B and E), which Kineto does not write and which are not read."""


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace as read: its events, what the file says of itself, and how the reading went."""

    path: str
    events: EventTable
    metadata: dict[str, Any]
    """Every top-level key of the file but `traceEvents`."""
    report: ReadReport
