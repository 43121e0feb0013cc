"""Typed events to the columns of an `EventTable`, chunk by chunk."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

import numpy as np

from tracetool.events import NO_ID, Category, EventTable, Thread

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import msgspec
    import numpy.typing as npt

    from tracetool.chrome.decode import Args, Event
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
}
_CALL_SUFFIXES = ("_runtime", "_driver")
_NOT_READ = -1
_NO_CATEGORY = -2
_MEMORY_EVENT = "[memory]"

_LARGEST = 2**62
"""Times and numbers beyond this are no measurements; staying below it keeps sums of two inside int64."""

_LARGEST_AMOUNT = 2**53
"""Durations (ns; this is a hundred days) and sizes beyond this are no measurements; thousands of them add up."""

_DIGITS = 20
_EXACTLY = Context(prec=100)

_INSTANTS = (Category.FLOW_START, Category.FLOW_END, Category.MEMORY)
_FLOWS = (Category.FLOW_START, Category.FLOW_END)
_FLOW_PHASES: dict[str | None, int] = {"s": Category.FLOW_START, "f": Category.FLOW_END}

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
            code: int = _NO_CATEGORY
        else:
            code = _CATEGORIES.get(name, Category.CALL if name.endswith(_CALL_SUFFIXES) else _NOT_READ)
        self[name] = code
        return code


class _Numbers(dict[Any, int]):
    """Numbers things in the order in which they are first met."""

    def __missing__(self, thing: object) -> int:
        number = self[thing] = len(self)
        return number


@dataclass(frozen=True, slots=True)
class _Part:
    """The columns of one chunk."""

    category: Kinds
    name: npt.NDArray[np.int32]
    thread: npt.NDArray[np.int32]
    start: IntArray
    end: IntArray
    correlation: IntArray
    external_id: IntArray
    bytes: IntArray
    collective_bytes: IntArray
    line: npt.NDArray[np.int32]
    cache_hit: BoolArray


class ColumnBuilder:
    """Collects the events of a file into columns; counts what it could not use."""

    def __init__(self) -> None:
        self.dropped_events = 0
        self.bad_numbers = 0
        self.bad_durations = 0
        self.unpaired_phases = 0
        self._kinds = _Kinds()
        self._names = _Numbers()
        self._threads = _Numbers()
        self._thread_names: dict[tuple[Any, Any], str] = {}
        self._parts: list[_Part] = []

    def add(self, events: list[Event]) -> None:
        """Take the events of one chunk, in the order of the file."""
        of = self._kinds
        kinds = [of[event.cat] for event in events]
        if _NO_CATEGORY in kinds:
            self._take_thread_names(events)
        kept = [event for event, kind in zip(events, kinds, strict=True) if kind >= 0]
        kind = np.array([kind for kind in kinds if kind >= 0], dtype=np.int8)
        phases = [event.ph for event in kept]
        if phases.count("X") != len(kept) or kind.max(initial=0) in _INSTANTS:
            kept, kind = self._by_phase(kept, kind)
        if kept:
            self._parts.append(self._columns(kept, kind))

    def table(self) -> EventTable:
        """All that was collected. The builder is empty afterwards."""

        def column(name: str, dtype: type[np.generic]) -> Any:  # noqa: ANN401 (one of several array types)
            pieces = [getattr(part, name) for part in self._parts]
            return np.concatenate(pieces).astype(dtype, copy=False) if pieces else np.empty(0, dtype=dtype)

        table = EventTable(
            category=column("category", np.int8),
            name=column("name", np.int32),
            thread=column("thread", np.int32),
            start=column("start", np.int64),
            end=column("end", np.int64),
            correlation=column("correlation", np.int64),
            external_id=column("external_id", np.int64),
            bytes=column("bytes", np.int64),
            collective_bytes=column("collective_bytes", np.int64),
            line=column("line", np.int32),
            cache_hit=column("cache_hit", np.bool_),
            names=list(self._names),
            threads=[
                Thread(_plain(pid), _plain(tid), self._thread_names.get((pid, tid), "")) for pid, tid in self._threads
            ],
        )
        self._parts.clear()
        return table

    def _take_thread_names(self, events: list[Event]) -> None:
        for event in events:
            if event.ph == "M" and event.name == "thread_name" and isinstance(event.args.name, str):
                self._thread_names[event.pid, event.tid] = event.args.name

    def _by_phase(self, events: list[Event], kind: Kinds) -> tuple[list[Event], Kinds]:
        """Tell slices from flows and instants, and leave out what is none of these."""
        kinds = kind.tolist()
        for row, event in enumerate(events):
            if kinds[row] == Category.FLOW_START:
                kinds[row] = _FLOW_PHASES.get(event.ph, _NOT_READ)
            elif kinds[row] == Category.MEMORY:
                kinds[row] = Category.MEMORY if event.name == _MEMORY_EVENT else _NOT_READ
            elif event.ph != "X":
                kinds[row] = _NOT_READ
                self.unpaired_phases += event.ph in ("B", "E")
        kept = [event for event, code in zip(events, kinds, strict=True) if code >= 0]
        return kept, np.array([code for code in kinds if code >= 0], dtype=np.int8)

    def _columns(self, events: list[Event], kind: Kinds) -> _Part:
        start, good = _nanoseconds([event.ts for event in events])
        labels = [event.name for event in events]
        if None in labels:
            good &= np.array([label is not None for label in labels])
        if not good.all():
            self.dropped_events += int(np.count_nonzero(~good))
            events = [event for event, keep in zip(events, good.tolist(), strict=True) if keep]
            kind, start = kind[good], start[good]
        names, threads = self._names, self._threads
        args = [event.args for event in events]
        ids = [a.correlation for a in args]
        for row in np.flatnonzero(np.isin(kind, _FLOWS)).tolist():
            ids[row] = events[row].id
        return _Part(
            category=kind,
            name=np.array([names[event.name] for event in events], dtype=np.int32),
            thread=np.array([threads[event.pid, event.tid] for event in events], dtype=np.int32),
            start=start,
            end=start + self._durations(events, kind),
            correlation=self._numbers(ids),
            external_id=self._either([a.external_id for a in args], [a.old_external_id for a in args]),
            bytes=self._sizes(args),
            collective_bytes=self._collectives(events, kind),
            line=np.array([-1 if a.line is None else names[str(a.line)] for a in args], dtype=np.int32),
            cache_hit=np.array([a.cache_hit is True for a in args], dtype=np.bool_),
        )

    def _durations(self, events: list[Event], kind: Kinds) -> IntArray:
        """Durations in ns; 0 for instants, and for those that are missing, negative or unreadable."""
        duration = np.zeros(len(events), dtype=np.int64)
        instant = np.isin(kind, _INSTANTS)
        lasting = np.flatnonzero(~instant)
        values, readable = _nanoseconds(
            [event.dur for event, skip in zip(events, instant.tolist(), strict=True) if not skip]
        )
        usable = readable & (values >= 0) & (values <= _LARGEST_AMOUNT)
        self.bad_durations += int(np.count_nonzero(~usable))
        duration[lasting] = np.where(usable, values, 0)
        return duration

    def _either(self, values: list[Any], others: list[Any]) -> IntArray:
        numbers = self._numbers(values)
        return np.where(numbers == NO_ID, self._numbers(others), numbers)

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
        if number is not None:
            return number
        self.bad_numbers += 1
        return NO_ID

    def _sizes(self, args: list[Args]) -> IntArray:
        """Bytes of copies and memsets, and of allocations, which alone may be negative."""
        copied = self._numbers([a.bytes for a in args])
        allocated = self._numbers([a.allocated_bytes for a in args])
        bad = (copied != NO_ID) & ((copied < 0) | (copied > _LARGEST_AMOUNT))
        bad_too = (allocated != NO_ID) & (np.abs(allocated) > _LARGEST_AMOUNT)
        self.bad_numbers += int(np.count_nonzero(bad)) + int(np.count_nonzero(bad_too))
        copied[bad] = NO_ID
        allocated[bad_too] = NO_ID
        return np.where(copied == NO_ID, allocated, copied)

    def _collectives(self, events: list[Event], kind: Kinds) -> IntArray:
        out = np.full(len(events), NO_ID, dtype=np.int64)
        for row, event in enumerate(events):
            args = event.args
            if args.collective is not None and kind[row] == Category.KERNEL:
                elements = int(self._numbers([args.elements_in, args.elements_out]).max())
                size = _BYTES_OF_DTYPE.get(str(args.dtype).lower().split("_")[0], 0)
                usable = 0 <= elements * size <= _LARGEST_AMOUNT and (size > 0 or elements <= 0)
                self.bad_numbers += elements != NO_ID and not usable
                out[row] = elements * size if usable else 0
        return out


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
