"""Lines up what a graph replayed with an eager run of the same code, as far as that can be said for certain.

Both are sequences of device work. Some pieces of the first are a graph's, and where they belong is asked; the
others were launched one by one, and may only be lined up with eager pieces of the same place. An *assignment* lines
up pieces that are the same thing, without crossings. The largest assignments are longest common subsequences, and
there can be many. A piece is given a place only if all of them line it up, and all with pieces of that place: a
kernel that an assignment as good as any other leaves out, or gives to another place, is in doubt.

Order tells pieces apart only along one stream: what a graph runs on two streams runs in any order. So where a graph
or the eager run uses several, things are put together by the stream that they run on there and here, each pair of
streams is lined up by itself, and of a thing that runs on several streams only one that has a single place in the
eager run is given it.

Lengths of common subsequences come from the bit-vector recurrence of Crochemore, Iliopoulos, Pinzon and Reid, "A fast
and practical bit-vector algorithm for the longest common subsequence problem", Information Processing Letters 80,
2001, in the form of Hyyro, "Bit-parallel LCS-length computation revisited", AWOCA 2004: a row of the table is one
integer, whose zeros are the columns at which the length grows. An assignment of length L with n and m pieces never
leaves the diagonals from `-(m - L)` to `n - L` (Ukkonen, "Algorithms for approximate string matching", Information
and Control 64, 1985), so only these are looked at.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from tracetool.events import BoolArray, IntArray

ASKED = -1
"""In place of a place: the piece is a graph's."""

MOST_PAIRS = 1 << 28
"""Sequences of more pairs than this (16,384 pieces on both sides) are lined up only where they are equal.

Below it that takes at most three seconds and 100 MB; sequences of 10,000 that nearly agree take 0.2 seconds.
"""


class Doubt(enum.IntEnum):
    """In place of a place: why a piece has none."""

    ABSENT = -1
    """The eager run has no such thing."""
    UNCLEAR = -2
    """Assignments that are as good as each other disagree."""
    TOO_LONG = -3
    """The sequences are longer than `MOST_PAIRS` allows, and differ."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces of device work in order, as columns of equal length; all numbers but `ASKED` are 0 or more."""

    thing: IntArray
    """What a piece is: equal numbers are the same kernel, or copies of the same kind."""
    place: IntArray
    """Where it belongs, or `ASKED`."""
    lane: IntArray
    """The stream that it ran on; of pieces that are asked about, counted in each graph launch by itself."""

    def __len__(self) -> int:
        return len(self.thing)


@dataclass(frozen=True, slots=True)
class Alignment:
    """What is known of each piece of a replay."""

    place: IntArray
    """The place of each piece that is asked about, or a `Doubt`; of the others what they came with."""
    partner: IntArray
    """The eager piece that one of the largest assignments lines it up with, or -1.

    Where several eager pieces of one place are possible, which one it is has no meaning.
    """
    labels: tuple[IntArray, ...]
    """Each label of its eager piece, where all largest assignments agree on that; else -1."""


def align(replay: Stretch, eager: Stretch, labels: Sequence[IntArray] = ()) -> Alignment:
    """Find the place of each piece that is asked about.

    Args:
        replay: pieces of which some are asked about.
        eager: pieces whose places are known.
        labels: further columns over the eager pieces, to be found for the replay's in the same way.
    """
    columns = (eager.place, *labels)
    place = np.where(replay.place == ASKED, Doubt.ABSENT, replay.place).astype(np.int64)
    partner = np.full(len(replay), -1, dtype=np.int64)
    found = [place, *(np.full(len(replay), -1, dtype=np.int64) for _ in labels)]
    parts = _Parts(replay, eager)
    for ours, theirs in parts.ordered:
        settled = _Table(_select(replay, ours), _select(eager, theirs)).settle([column[theirs] for column in columns])
        asked = replay.place[ours] == ASKED
        rows = ours[asked]
        partner[rows] = np.where(settled[0][asked] >= 0, theirs[settled[0][asked]], -1)
        for column, values in zip(found, settled[1:], strict=True):
            column[rows] = values[asked]
    for ours, theirs in parts.unordered:
        asked = ours[replay.place[ours] == ASKED]
        enough = len(ours) <= len(theirs)
        place[asked] = _common(eager.place[theirs], Doubt.UNCLEAR) if enough else Doubt.UNCLEAR
        if place[asked[0]] >= 0:
            partner[asked] = theirs[: len(asked)]
            for column, label in zip(found[1:], labels, strict=True):
                column[asked] = _common(label[theirs], -1)
    return Alignment(place, partner, tuple(found[1:]))


def edits(replay: Stretch, eager: Stretch) -> int:
    """How many pieces of both sides find no partner: 0 where the two are equal."""
    parts = _Parts(replay, eager)
    found = parts.left_over
    for ours, theirs in parts.ordered:
        found += len(ours) + len(theirs) - 2 * _Table(_select(replay, ours), _select(eager, theirs)).length()
    return found + sum(abs(len(ours) - len(theirs)) for ours, theirs in parts.unordered)


def least_edits(replay: Stretch, eager: Stretch) -> int:
    """No more than `edits` gives, and much quicker: things are counted, whatever their order."""
    most = max(replay.thing.max(initial=0), eager.thing.max(initial=0)) + 1
    ours, theirs = np.bincount(replay.thing, minlength=most), np.bincount(eager.thing, minlength=most)
    return int(np.abs(ours - theirs).sum())


def _select(stretch: Stretch, rows: IntArray) -> Stretch:
    return Stretch(stretch.thing[rows], stretch.place[rows], stretch.lane[rows])


def _common(values: IntArray, otherwise: int) -> int:
    """The value that all have, if they have one."""
    return int(values[0]) if len(values) and np.all(values == values[0]) else otherwise


class _Parts:
    """A replay and an eager run taken apart into what order can tell apart.

    Attributes:
        ordered: rows of both sides that are lined up by their order, for each pair of streams.
        unordered: rows of both sides of each thing whose order says nothing.
        left_over: how many rows of both sides are in neither, for want of a counterpart.
    """

    def __init__(self, replay: Stretch, eager: Stretch) -> None:
        asked = replay.place == ASKED
        things = int(max(replay.thing.max(initial=-1), eager.thing.max(initial=-1))) + 1
        here = _only_lane(replay.thing[asked], replay.lane[asked], things)
        there = _only_lane(eager.thing, eager.lane, things)
        both = (here != _NOWHERE) & (there != _NOWHERE)
        single = both & (here != _SEVERAL) & (there != _SEVERAL)
        # What is only ever launched by itself is in one order with all else, on whatever stream.
        known = np.zeros(things, dtype=np.bool_)
        known[replay.thing[~asked]] = True
        fixed_ours, fixed_theirs = _same_at_same_place(replay, eager, known & (here == _NOWHERE))
        pairs = np.where(single, here * (int(there.max(initial=0)) + 1) + there, -1)
        self.ordered: list[tuple[IntArray, IntArray]] = []
        taken = [np.zeros(len(side), dtype=np.bool_) for side in (replay, eager)]
        for pair in np.unique(pairs[single]).tolist():
            ours, theirs = (pairs[replay.thing] == pair) | fixed_ours, (pairs[eager.thing] == pair) | fixed_theirs
            self.ordered.append((np.flatnonzero(ours), np.flatnonzero(theirs)))
            taken[0] |= ours
            taken[1] |= theirs
        self.unordered = [
            (np.flatnonzero(replay.thing == thing), np.flatnonzero(eager.thing == thing))
            for thing in np.flatnonzero(both & ~single).tolist()
        ]
        several = both & ~single
        self.left_over = int(
            np.count_nonzero(~taken[0] & ~several[replay.thing]) + np.count_nonzero(~taken[1] & ~several[eager.thing])
        )


_NOWHERE, _SEVERAL = -1, -2


def _only_lane(thing: IntArray, lane: IntArray, things: int) -> IntArray:
    """The lane that each thing is in; `_NOWHERE`, or `_SEVERAL` where it is in more than one."""
    low = np.full(things, np.iinfo(np.int64).max)
    high = np.full(things, _NOWHERE, dtype=np.int64)
    np.minimum.at(low, thing, lane)
    np.maximum.at(high, thing, lane)
    return np.where((high >= 0) & (low != high), _SEVERAL, high)


def _same_at_same_place(replay: Stretch, eager: Stretch, fixed: BoolArray) -> tuple[BoolArray, BoolArray]:
    """Which pieces of both sides are a fixed thing that the other side has at the same place too."""
    places = int(max(replay.place.max(initial=0), eager.place.max(initial=0))) + 1
    ours, theirs = replay.thing * places + replay.place, eager.thing * places + eager.place
    return (
        fixed[replay.thing] & np.isin(ours, theirs[fixed[eager.thing]]),
        fixed[eager.thing] & np.isin(theirs, ours[fixed[replay.thing]]),
    )


_BLOCK = 64
"""Rows of a table that are looked at together."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Pieces of both sides that some longest subsequence lines up, sorted by row, then by column."""

    row: IntArray
    column: IntArray
    before: IntArray
    """The length up to the pair, without it."""
    can_be_left: BoolArray
    """Whether some longest subsequence leaves the row out."""


class _Table:
    """Common subsequences of two stretches of one pair of streams."""

    def __init__(self, replay: Stretch, eager: Stretch) -> None:
        self._replay = replay
        self._eager = eager
        self._rows, self._columns = len(replay), len(eager)
        self._full = (1 << self._columns) - 1
        self._equal = self._rows == self._columns and bool(
            np.all((replay.thing == eager.thing) & ((replay.place == ASKED) | (replay.place == eager.place)))
        )
        self._too_long = not self._equal and self._rows * self._columns > MOST_PAIRS

    def length(self) -> int:
        """Of the longest common subsequences; 0 where it would take too long to say."""
        if self._equal:
            return self._rows
        if self._too_long:
            return 0
        row = self._full
        for mask in self._masks(self._eager):
            row = self._next(row, mask)
        return self._columns - row.bit_count()

    def settle(self, columns: Sequence[IntArray]) -> tuple[IntArray, ...]:
        """A partner of each piece, then for each column the value of which all longest subsequences make it.

        The first column is the places: its value is a `Doubt` where there is none; that of the others is -1.
        """
        if self._equal:
            return np.arange(self._rows), *columns
        partner = np.full(self._rows, -1, dtype=np.int64)
        doubt = Doubt.TOO_LONG if self._too_long else Doubt.UNCLEAR
        values = [np.full(self._rows, doubt if number == 0 else -1, dtype=np.int64) for number in range(len(columns))]
        if self._too_long:
            return partner, *values
        before = self._before()
        length = self._columns - before[-1].bit_count()
        for pairs in self._pairs(before, length):
            begins = np.flatnonzero(np.diff(pairs.row, prepend=-1))
            rows = pairs.row[begins]
            for column, value in zip(columns, values, strict=True):
                of_pairs = column[pairs.column]
                least, most = np.minimum.reduceat(of_pairs, begins), np.maximum.reduceat(of_pairs, begins)
                agreed = (least == most) & ~pairs.can_be_left[begins]
                value[rows[agreed]] = least[agreed]
            self._choose(pairs, begins, length, partner)
        return partner, *values

    def _choose(self, pairs: _Pairs, begins: IntArray, length: int, partner: IntArray) -> None:
        """Walk one longest subsequence back through some rows; those behind them have been walked."""
        taken = partner[partner >= 0]
        column = int(taken[0]) if len(taken) else self._columns
        left = length - len(taken)
        ends = [*begins[1:].tolist(), len(pairs.row)]
        for begin, end in zip(reversed(begins.tolist()), reversed(ends), strict=True):
            here = slice(begin, end)
            fitting = np.flatnonzero((pairs.column[here] < column) & (pairs.before[here] == left - 1))
            if len(fitting):
                column = int(pairs.column[begin + fitting[-1]])
                partner[pairs.row[begin]] = column
                left -= 1

    def _before(self) -> list[int]:
        """The rows of the table: before each piece of the replay, and after the last."""
        rows = [self._full]
        for mask in self._masks(self._eager):
            rows.append(self._next(rows[-1], mask))
        return rows

    def _pairs(self, before: Sequence[int], length: int) -> Iterator[_Pairs]:
        """The pairs that belong to longest subsequences, some rows at a time, the last ones first.

        A pair belongs to one when what can go before it, itself, and what can go after it make up the whole length; a
        piece can be left out when before and after make it up without it.
        """
        flipped = Stretch(self._eager.thing[::-1], self._eager.place[::-1], self._eager.lane[::-1])
        masks = self._masks(flipped)
        after = [self._full]
        for last in range(self._rows, 0, -_BLOCK):
            first = max(0, last - _BLOCK)
            after = after[-1:]
            for mask in masks[first + 1 : last][::-1]:
                after.append(self._next(after[-1], mask))
            low = max(0, first - (self._rows - length))
            high = min(self._columns, last - 1 + (self._columns - length))
            end = min(high + 1, self._columns)
            heads = self._grown(before[first:last], low, high)
            tails = self._grown(after[::-1], self._columns - end, self._columns - low)[:, ::-1]
            can_be_left = np.any(heads + tails[:, : high - low + 1] == length, axis=1)
            paired = self._matches(slice(first, last), slice(low, end))
            paired &= heads[:, : end - low] + 1 + tails[:, 1:] == length
            row, column = np.nonzero(paired)
            if len(row):
                yield _Pairs(first + row, low + column, heads[row, column], can_be_left[row])
            after.append(self._next(after[-1], masks[first]))

    def _masks(self, eager: Stretch) -> list[int]:
        """For each piece of the replay, the columns that it matches, as the bits of a number."""
        places = int(max(self._replay.place.max(initial=0), eager.place.max(initial=0))) + 2
        wanted = self._replay.thing * places + self._replay.place + 1
        kinds, which = np.unique(wanted, return_inverse=True)
        numbers = []
        for kind in kinds.tolist():
            thing, place = divmod(kind, places)
            matches = eager.thing == thing
            if place - 1 != ASKED:
                matches &= eager.place == place - 1
            numbers.append(int.from_bytes(np.packbits(matches, bitorder="little").tobytes(), "little"))
        return [numbers[kind] for kind in which.tolist()]

    def _matches(self, rows: slice, columns: slice) -> BoolArray:
        place = self._replay.place[rows, None]
        matches: BoolArray = self._eager.thing[columns] == self._replay.thing[rows, None]
        matches &= (place == ASKED) | (self._eager.place[columns] == place)
        return matches

    def _next(self, row: int, mask: int) -> int:
        matched = row & mask
        return ((row + matched) | (row - matched)) & self._full

    def _grown(self, rows: Sequence[int], low: int, high: int) -> npt.NDArray[np.int32]:
        """The lengths of rows at columns `low` to `high`, both included: how many zeros each has below them."""
        width, below = high - low, (1 << low) - 1
        window, size = (1 << width) - 1, (width + 7) // 8
        octets = b"".join(((row >> low) & window).to_bytes(size, "little") for row in rows)
        ones = np.unpackbits(
            np.frombuffer(octets, dtype=np.uint8).reshape(len(rows), size), axis=1, count=width, bitorder="little"
        )
        lengths = np.empty((len(rows), width + 1), dtype=np.int32)
        lengths[:, 0] = [low - (row & below).bit_count() for row in rows]
        np.cumsum(ones ^ 1, axis=1, out=lengths[:, 1:])
        lengths[:, 1:] += lengths[:, :1]
        return lengths
