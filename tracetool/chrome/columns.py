"""Typed events to the columns of an `EventTable`, chunk by chunk."""

from __future__ import annotations

import itertools
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np

from tracetool.chrome import quick
from tracetool.chrome.decode import decode_one
from tracetool.chrome.quick import COLUMNS, Reads
from tracetool.events import NO_ID, NO_LINK, Category, EventTable, Sparse, Thread, index_type, is_any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import msgspec
    import numpy.typing as npt

    from tracetool.chrome.decode import Args, Event
    from tracetool.chrome.quick import Taken, Taker
    from tracetool.events import BoolArray, IntArray

    Kinds = npt.NDArray[np.int8]

_CATEGORIES = {
    "user_annotation": Category.RANGE,
    "cpu_op": Category.OP,
    "kernel": Category.KERNEL,
    "gpu_memcpy": Category.MEMCPY,
    "gpu_memset": Category.MEMSET,
    "cuda_sync": Category.SYNC,
    "fwdbwd": Category.FLOW_START,
    "python_function": Category.PYTHON,
    "cpu_instant_event": Category.MEMORY,
    "compile": Category.COMPILE,
    "autotune": Category.AUTOTUNE,
}
_CALL_SUFFIXES = ("_runtime", "_driver")
_NOT_READ = -1
_NO_CATEGORY = -2
_MEMORY_EVENT = "[memory]"

_HOST = 0
"""The device type of host memory, in `[memory]` events."""

_LARGEST = 2**62
"""Times and numbers beyond this are no measurements; staying below it keeps sums of two inside int64."""

_LARGEST_AMOUNT = 2**53
"""Durations (ns; this is a hundred days) and sizes beyond this are no measurements; thousands of them add up."""

_DIGITS = 20
_EXACTLY = Context(prec=100)

_LINKS = ("correlation", "external_id")
_OF_THAT_ID = _LARGEST
"""Instead of an id that is `NO_LINK`: no id is as large, and of ids only matters which are equal."""

_INSTANTS = (Category.FLOW_START, Category.FLOW_END, Category.MEMORY)
_FLOWS = (Category.FLOW_START, Category.FLOW_END)
_SIZED = (Category.MEMCPY, Category.MEMSET)
_LINKED = (Category.CALL, Category.KERNEL, Category.MEMCPY, Category.MEMSET, Category.SYNC)
_WITH_EXTERNAL_ID = (Category.OP, Category.RANGE, Category.CALL)
_FLOW_PHASES: dict[str | None, int] = {"s": int(Category.FLOW_START), "f": int(Category.FLOW_END)}

_READS = {
    Reads.SLICE: tuple(kind for kind in Category if kind not in _INSTANTS),
    Reads.FLOW: _FLOWS,
    Reads.LINKED: _LINKED,
    Reads.EXTERNAL: _WITH_EXTERNAL_ID,
    Reads.SIZED: _SIZED,
    Reads.MEMORY: (Category.MEMORY,),
    Reads.COLLECTIVE: (Category.KERNEL,),
    Reads.ASKED: (Category.COMPILE,),
}
"""What `quick` reads of the events of each category; the methods of `ColumnBuilder` read the same."""

_DTYPE_BYTES = {
    1: ("bool", "byte", "char", "uint8", "int8", "float8"),
    2: ("half", "bfloat16", "short", "float16", "int16", "uint16"),
    4: ("float", "int", "float32", "int32", "uint32"),
    8: ("double", "long", "float64", "int64", "uint64", "complexfloat"),
    16: ("complexdouble",),
}
_BYTES_OF_DTYPE = {name: size for size, names in _DTYPE_BYTES.items() for name in names}


class _Kinds(dict[str | None, int]):
    """Codes of category names, worked out once for each name met."""

    def __missing__(self, name: str | None) -> int:
        if name is None:
            code = _NO_CATEGORY
        else:
            code = int(_CATEGORIES.get(name, Category.CALL if name.endswith(_CALL_SUFFIXES) else _NOT_READ))
        self[name] = code
        return code


class _Numbers(dict[Any, int]):
    """Numbers things in the order in which they are first met."""

    bytes = 0
    """What the things take, roughly."""

    def __missing__(self, thing: object) -> int:
        number = self[thing] = len(self)
        self.bytes += _THING_BYTES + (len(thing) if isinstance(thing, str) else 0)
        return number


_THING_BYTES = 160
_ROWS = 1 << 14
_GROWTH = 8
_SPARSE = ("bytes", "held_bytes", "on_device", "collective_bytes", "line", "cache_hit", "compiled_for")


class _Column:
    """An array that grows at its end, in few large steps.

    Room that is never written is never taken from the system, while growing by small pieces would leave holes as
    large as the column behind.
    """

    def __init__(self, dtype: type[np.generic]) -> None:
        self._room: npt.NDArray[Any] = np.empty(_ROWS, dtype=dtype)
        self._length = 0

    def extend(self, values: npt.NDArray[Any]) -> None:
        length = self._length + len(values)
        if length > len(self._room):
            larger = np.empty(max(length, _GROWTH * len(self._room)), dtype=self._room.dtype)
            larger[: self._length] = self.values
            self._room = larger
        self._room[self._length : length] = values
        self._length = length

    @property
    def values(self) -> npt.NDArray[Any]:
        return self._room[: self._length]

    def __getstate__(self) -> npt.NDArray[Any]:
        return self.values

    def __setstate__(self, values: npt.NDArray[Any]) -> None:
        self._room, self._length = values, len(values)


class ColumnBuilder:
    """Collects the events of a file into columns; counts what it could not use."""

    def __init__(self) -> None:
        self.dropped_events = 0
        self.bad_numbers = 0
        self.bad_durations = 0
        self.unpaired_phases = 0
        self._kinds = _Kinds()
        self._names = _Numbers()
        # Of their own, so that the numbers of names do not depend on where a chunk ends.
        self._compiled_for = _Numbers()
        self._threads = _Numbers()
        self._thread_names: dict[tuple[Any, Any], str] = {}
        self.rows = 0
        self._columns = {name: _Column(dtype) for name, dtype in COLUMNS.items()}
        self._sparse: dict[str, list[tuple[IntArray, IntArray]]] = {name: [] for name in _SPARSE}
        self._taken_names = np.empty(0, dtype=np.int32)
        self._taken_threads = np.empty(0, dtype=np.int32)

    def taker(self) -> Taker | None:
        """What takes events the quick way, for `add_taken`; None where there is none."""
        if (library := quick.compiled()) is None:
            return None
        reads = [Reads(sum(flag for flag, kinds in _READS.items() if kind in kinds)) for kind in Category]
        return quick.Taker(library, reads, int(Category.FLOW_END), _MEMORY_EVENT, self._kinds.__getitem__)

    def add_taken(self, taken: Taken, taker: Taker, window: bytearray) -> None:
        """Take the events that a taker of ours took from a window."""
        names, threads = self._names, self._threads
        if new_names := [names[name] for name in taker.names(len(self._taken_names))]:
            self._taken_names = np.append(self._taken_names, np.array(new_names, dtype=np.int32))
        if new_threads := [threads[thread] for thread in taker.threads(len(self._taken_threads))]:
            self._taken_threads = np.append(self._taken_threads, np.array(new_threads, dtype=np.int32))
        renumber = {"name": self._taken_names, "thread": self._taken_threads}
        for title, column in taken.columns.items():
            numbers = renumber.get(title)
            self._columns[title].extend(column if numbers is None else numbers[column])
        for title, (rows, values) in taken.few.items():
            self._keep_sparse(title, rows, self._taken_names[values] if title == "line" else values)
        for row, begin, end in taken.asked.tolist():
            self._take_asked(row, decode_one(window[begin:end]))
        self.unpaired_phases += taken.unpaired
        self.rows += len(taken.columns["category"])

    def _take_asked(self, row: int, event: Event) -> None:
        if row < 0:
            self._take_thread_names([event])
            return
        at = np.array([row], dtype=np.int64)
        if event.args.collective is not None:
            self._keep_sparse("collective_bytes", at, np.array([self._collective_bytes(event.args)], dtype=np.int64))
        else:
            self._keep_sparse("cache_hit", at, np.array([event.args.cache_hit is True], dtype=np.int64))
            if text := _compiled_for(event.args):
                self._keep_sparse("compiled_for", at, np.array([self._compiled_for[text]], dtype=np.int64))

    @property
    def names_bytes(self) -> int:
        """What names and threads take, roughly."""
        return self._names.bytes + self._compiled_for.bytes + self._threads.bytes

    def add(self, events: list[Event]) -> None:
        """Take the events of one chunk, in the order of the file."""
        of = self._kinds
        kinds = [of[event.cat] for event in events]
        if _NO_CATEGORY in kinds:
            self._take_thread_names(events)
        kind = np.array(kinds, dtype=np.int8)
        kept, kind = _keep(events, kind, kind >= 0)
        kept, kind = self._by_phase(kept, kind)
        kept, kind, start = self._readable(kept, kind)
        if kept:
            self._take(kept, kind, start)

    def append(self, later: ColumnBuilder) -> None:
        """Take all that another builder collected from later events of the same file."""
        self.dropped_events += later.dropped_events
        self.bad_numbers += later.bad_numbers
        self.bad_durations += later.bad_durations
        self.unpaired_phases += later.unpaired_phases
        names = np.array([self._names[name] for name in later._names], dtype=np.int32)
        threads = np.array([self._threads[thread] for thread in later._threads], dtype=np.int32)
        self._thread_names.update(later._thread_names)
        compiled_for = np.array([self._compiled_for[text] for text in later._compiled_for], dtype=np.int32)
        renumber = {"name": names, "thread": threads, "line": names, "compiled_for": compiled_for}
        for title, column in later._columns.items():
            numbers = renumber.get(title)
            self._columns[title].extend(column.values if numbers is None else numbers[column.values])
        for kind, parts in later._sparse.items():
            for rows, values in parts:
                numbers = renumber.get(kind)
                self._sparse[kind].append((rows + self.rows, values if numbers is None else numbers[values]))
        self.rows += later.rows

    def table(self) -> EventTable:
        """All that was collected. The builder is empty afterwards."""
        # One after the other, so that not all columns are there twice at once.
        whole: dict[str, Any] = {name: _narrow(self._columns.pop(name).values, may=name in _LINKS) for name in COLUMNS}
        whole["thread"] = whole["thread"].astype(index_type(len(self._threads)))
        whole["name"] = whole["name"].astype(index_type(len(self._names)))
        sparse: dict[str, Any] = {name: self._sparse_column(name) for name in _SPARSE}
        texts = sparse["compiled_for"]
        sparse["compiled_for"] = Sparse(texts.rows, texts.values + len(list(self._names)))
        return EventTable(
            **whole,
            **sparse,
            names=[*self._names, *self._compiled_for],
            threads=[
                Thread(_plain(pid), _plain(tid), self._thread_names.get((pid, tid), "")) for pid, tid in self._threads
            ],
        )

    def _sparse_column(self, name: str) -> Sparse:
        pieces = self._sparse[name]
        none = np.empty(0, dtype=np.int64)
        return Sparse(
            np.concatenate([none, *(rows for rows, _ in pieces)]),
            np.concatenate([none, *(values for _, values in pieces)]),
        )

    def _take_thread_names(self, events: list[Event]) -> None:
        for event in events:
            if event.ph == "M" and event.name == "thread_name" and isinstance(event.args.name, str):
                self._thread_names[event.pid, event.tid] = event.args.name

    def _by_phase(self, events: list[Event], kind: Kinds) -> tuple[list[Event], Kinds]:
        """Tell slices from flows and instants, and leave out what is none of these."""
        slices = ~is_any(kind, *_INSTANTS)
        phases = [event.ph for event in events]
        strays = [row for row in np.flatnonzero(slices).tolist() if phases[row] != "X"]
        kind[strays] = _NOT_READ
        self.unpaired_phases += sum(phases[row] in ("B", "E") for row in strays)
        flows = np.flatnonzero(kind == Category.FLOW_START)
        kind[flows] = [_FLOW_PHASES.get(phases[row], _NOT_READ) for row in flows.tolist()]
        memory = np.flatnonzero(kind == Category.MEMORY).tolist()
        kind[[row for row in memory if events[row].name != _MEMORY_EVENT]] = _NOT_READ
        return _keep(events, kind, kind != _NOT_READ)

    def _readable(self, events: list[Event], kind: Kinds) -> tuple[list[Event], Kinds, IntArray]:
        """Leave out events without a name or a time."""
        start, good = _nanoseconds([event.ts for event in events])
        if None in [event.name for event in events]:
            good &= np.array([event.name is not None for event in events])
        self.dropped_events += int(np.count_nonzero(~good))
        return *_keep(events, kind, good), start[good]

    def _take(self, events: list[Event], kind: Kinds, start: IntArray) -> None:
        names, threads = self._names, self._threads
        args = [event.args for event in events]
        columns: dict[str, npt.NDArray[Any]] = {
            "category": kind,
            "name": np.array([names[event.name] for event in events], dtype=np.int32),
            "thread": np.array([threads[event.pid, event.tid] for event in events], dtype=np.int32),
            "start": start,
            "end": start + self._durations(events, kind),
            "correlation": self._correlations(events, args, kind),
            "external_id": self._external_ids(args, kind),
        }
        for name, column in columns.items():
            self._columns[name].extend(column)
        self._take_sparse(args, kind)
        self.rows += len(events)

    def _take_sparse(self, args: list[Args], kind: Kinds) -> None:
        sized = np.flatnonzero(is_any(kind, *_SIZED, Category.MEMORY))
        memory = kind[sized] == Category.MEMORY
        amounts = [
            args[row].allocated_bytes if allocated else args[row].bytes
            for row, allocated in zip(sized.tolist(), memory.tolist(), strict=True)
        ]
        self._keep_sparse("bytes", sized, self._sizes(self._numbers(amounts), memory))
        self._take_memory(args, sized[memory])
        collectives = [
            row for row in np.flatnonzero(kind == Category.KERNEL).tolist() if args[row].collective is not None
        ]
        messages = [self._collective_bytes(args[row]) for row in collectives]
        self._keep_sparse("collective_bytes", np.array(collectives, np.int64), np.array(messages, np.int64))
        compiles = np.flatnonzero(kind == Category.COMPILE)
        hits = np.array([args[row].cache_hit is True for row in compiles.tolist()], dtype=np.int64)
        self._keep_sparse("cache_hit", compiles, hits)
        told = [(row, text) for row in compiles.tolist() if (text := _compiled_for(args[row]))]
        self._keep_sparse(
            "compiled_for",
            np.array([row for row, _ in told], np.int64),
            np.array([self._compiled_for[text] for _, text in told], np.int64),
        )
        lines = [row for row, arg in enumerate(args) if arg.line is not None]
        self._keep_sparse(
            "line", np.array(lines, np.int64), np.array([self._names[str(args[row].line)] for row in lines], np.int64)
        )

    def _take_memory(self, args: list[Args], rows: IntArray) -> None:
        held = self._numbers([args[row].held_bytes for row in rows.tolist()])
        self._keep_sparse("held_bytes", rows, self._sizes(held, np.zeros(len(rows), dtype=np.bool_)))
        kinds = self._numbers([args[row].device_type for row in rows.tolist()])
        self._keep_sparse("on_device", rows, np.where(kinds > _HOST, 1, NO_ID))

    def _keep_sparse(self, name: str, rows: IntArray, values: IntArray) -> None:
        here = values != NO_ID
        if here.any():
            pieces = self._sparse[name]
            pieces.append((rows[here] + self.rows, values[here]))

    def _correlations(self, events: list[Event], args: list[Args], kind: Kinds) -> IntArray:
        out = np.full(len(args), NO_ID, dtype=np.int64)
        linked = np.flatnonzero(is_any(kind, *_LINKED))
        out[linked] = self._numbers([args[row].correlation for row in linked.tolist()])
        flows = np.flatnonzero(is_any(kind, *_FLOWS))
        out[flows] = self._numbers([events[row].id for row in flows.tolist()])
        return _links(out)

    def _external_ids(self, args: list[Args], kind: Kinds) -> IntArray:
        out = np.full(len(args), NO_ID, dtype=np.int64)
        rows = np.flatnonzero(is_any(kind, *_WITH_EXTERNAL_ID))
        out[rows] = self._numbers([args[row].external_id for row in rows.tolist()])
        without = rows[out[rows] == NO_ID]
        out[without] = self._numbers([args[row].old_external_id for row in without.tolist()])
        return _links(out)

    def _durations(self, events: list[Event], kind: Kinds) -> IntArray:
        """Durations in ns; 0 for instants, and for those that are missing, negative or unreadable."""
        duration = np.zeros(len(events), dtype=np.int64)
        lasting = ~is_any(kind, *_INSTANTS)
        values, readable = _nanoseconds(
            [event.dur for event, lasts in zip(events, lasting.tolist(), strict=True) if lasts]
        )
        usable = readable & (values >= 0) & (values <= _LARGEST_AMOUNT)
        self.bad_durations += int(np.count_nonzero(~usable))
        duration[lasting] = np.where(usable, values, 0)
        return duration

    def _sizes(self, sizes: IntArray, allocated: BoolArray) -> IntArray:
        """Bytes of copies, of memsets and of allocations, which alone may be negative."""
        bad = (sizes != NO_ID) & ((np.abs(sizes) > _LARGEST_AMOUNT) | ((sizes < 0) & ~allocated))
        self.bad_numbers += int(np.count_nonzero(bad))
        return np.where(bad, NO_ID, sizes)

    def _collective_bytes(self, args: Args) -> int:
        elements = int(self._numbers([args.elements_in, args.elements_out]).max())
        size = _BYTES_OF_DTYPE.get(str(args.dtype).lower().split("_")[0], 0)
        usable = 0 <= elements * size <= _LARGEST_AMOUNT and (size > 0 or elements <= 0)
        self.bad_numbers += elements != NO_ID and not usable
        return elements * size if usable else 0

    def _numbers(self, values: list[Any]) -> IntArray:
        """Whole numbers from whatever stands in the file; `NO_ID` where there is none."""
        if set(map(type, values)) <= {int}:
            try:
                numbers = np.array(values, dtype=np.int64)
            except OverflowError:
                pass
            else:
                if not np.any((np.abs(numbers) >= _LARGEST) & (numbers != NO_ID)):
                    return numbers
        return np.array([self._number(value) for value in values], dtype=np.int64)

    def _number(self, value: object) -> int:
        if value is None or value == NO_ID:
            return NO_ID
        number = _whole(value)
        if number is None:
            self.bad_numbers += 1
            return NO_ID
        return number


def _links(ids: IntArray) -> IntArray:
    ids[ids == NO_LINK] = _OF_THAT_ID
    ids[ids == NO_ID] = NO_LINK
    return ids


def _narrow(column: npt.NDArray[Any], *, may: bool) -> npt.NDArray[Any]:
    """A copy without room to grow; in 32 bits where that is wanted and holds all."""
    bounds = np.iinfo(np.int32)
    if may and len(column) and bounds.min <= column.min() and column.max() <= bounds.max:
        return column.astype(np.int32)
    return column.copy()


def _keep(events: list[Event], kind: Kinds, good: BoolArray) -> tuple[list[Event], Kinds]:
    if good.all():
        return events, kind
    return list(itertools.compress(events, good.tolist())), kind[good]


def _plain(value: int | str | None) -> int | str:
    return "" if value is None else value


_POWERS = 10 ** np.arange(4, dtype=np.int64)


def _nanoseconds(texts: Sequence[msgspec.Raw]) -> tuple[IntArray, BoolArray]:
    """Decimal microseconds to int64 nanoseconds, exactly, and which of them could be read.

    A float holds no nanoseconds at the sizes that time stamps have (4e12 us), so digits are moved, not
    multiplied; what is finer than a nanosecond is rounded, half to even.
    """
    joined = b"\n".join(texts) + b"\n" if texts else b""
    if joined.count(b"\n") == len(texts) and not joined.translate(None, b"0123456789.\n"):
        data = np.frombuffer(joined, dtype=np.uint8)
        newline = np.flatnonzero(data == ord("\n"))
        dot = np.flatnonzero(data == ord("."))
        of_text = np.searchsorted(newline, dot)
        decimals = np.zeros(len(texts), dtype=np.int64)
        decimals[of_text] = newline[of_text] - dot - 1
        digits = np.diff(newline, prepend=-1) - 1
        digits[of_text] -= 1
        plain = bool(np.all(of_text[1:] > of_text[:-1])) and bool(
            np.all((digits > 0) & (decimals <= 3) & (digits - decimals <= 15))
        )
        if plain:
            whole = np.fromstring(joined.translate(None, b"."), dtype=np.int64, sep="\n")
            return whole * _POWERS[3 - decimals], np.ones(len(texts), dtype=np.bool_)
    return _nanoseconds_one_by_one(texts)


def _nanoseconds_one_by_one(texts: Iterable[msgspec.Raw]) -> tuple[IntArray, BoolArray]:
    found = [_nanosecond(bytes(text)) for text in texts]
    readable = np.array([value is not None for value in found], dtype=np.bool_)
    return np.array([value or 0 for value in found], dtype=np.int64), readable


def _nanosecond(text: bytes) -> int | None:
    try:
        number = _decimal(text.decode().strip('"'))
    except UnicodeDecodeError:
        return None
    if number is None:
        return None
    value = int(number.scaleb(3, _EXACTLY).to_integral_value(ROUND_HALF_EVEN))
    return value if -_LARGEST < value < _LARGEST else None


def _whole(value: object) -> int | None:
    """A whole number, also where it is written as text or as 7.0; None for anything else."""
    if not isinstance(value, int | float | str) or isinstance(value, bool):
        return None
    number = _decimal(str(value))
    if number is None or number != number.to_integral_value():
        return None
    return int(number) if -_LARGEST < number < _LARGEST else None


def _decimal(text: str) -> Decimal | None:
    """What a text says in decimal, None where it says no number or one beyond all measure."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    # Beyond this many digits before the point, making it an int could take all time and memory.
    return number if number.is_finite() and number.adjusted() < _DIGITS else None


def _compiled_for(args: Args) -> str:
    """The types of a kernel's arguments, and after a bar those that are multiples of 16; empty where not told."""
    told = [text for text in (args.signature, args.multiples) if isinstance(text, str)]
    return " | ".join(told)
