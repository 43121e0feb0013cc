"""Events from a window that slides over the text of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tracetool.chrome.columns import ColumnBuilder
from tracetool.chrome.decode import LenientDecoder, MalformedError, decode_strict
from tracetool.chrome.quick import Status
from tracetool.chrome.scan import SPLIT_WINDOW, NoEventsError, exact_edges, likely_ends, likely_split
from tracetool.limits import Limits

if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from tracetool.chrome.decode import Event


class Helper(Protocol):
    """Somebody who reads the events that follow the end of one near `position` (a byte of the JSON)."""

    position: int

    def result(self) -> Events | None:
        """What it has read; None where it failed."""
        ...


class Text:
    """A growing, shrinking window on the text of a file."""

    def __init__(
        self,
        source: io.BufferedReader[Any],
        chunk_bytes: int,
        progress: Callable[[int], object] | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.buffer = bytearray()
        self.ended = False
        self.cut_gzip = False
        self.read = 0
        """Bytes read so far; the window ends there."""
        self._source = source
        self._chunk_bytes = chunk_bytes
        self._progress = progress

    @property
    def begin(self) -> int:
        """Where in the file the window begins."""
        return self.read - len(self.buffer)

    def grow(self) -> None:
        """Read one more chunk, or notice the end."""
        self._read_on(1)

    def double(self) -> None:
        """Read as much as there is, or notice the end: where nothing could be taken, and all is to be read again.

        Raises:
            NoEventsError: one piece is larger than the limit.
        """
        length, most = len(self.buffer), self.limits.piece_bytes
        if length >= most:
            raise NoEventsError(
                f"has one event, or something before or after the events, of more than {self.limits.max_piece_mib} "
                "MiB, which is refused: TRACETOOL_MAX_PIECE_MIB sets another limit"
            )
        self._read_on(max(1, min(length, most - length)))

    def _read_on(self, least: int) -> None:
        pieces: list[bytes | bytearray] = [self.buffer]
        while least > 0 and not self.ended:
            chunk = self._chunk()
            self.ended = not chunk
            self.read += len(chunk)
            least -= len(chunk)
            pieces.append(chunk)
            if self._progress is not None:
                self._progress(self.read)
        # A new object each time: decoded events may still point into the old one.
        self.buffer = bytearray().join(pieces)

    def _chunk(self) -> bytes:
        """What is there now, so that a wait for more can be interrupted; nothing at the end."""
        try:
            return self._source.read1(self._chunk_bytes)
        except EOFError:
            self.cut_gzip = True
            return b""

    def drop(self, position: int) -> None:
        """Forget what stands before `position`."""
        try:
            del self.buffer[:position]
        except BufferError:
            # Decoded events still point into it.
            self.buffer = self.buffer[position:]


@dataclass
class _Taken:
    """Events decoded from the front of the window, and what follows them."""

    events: list[Event]
    end: int
    closed: bool


@dataclass
class Events:
    """The events of a file or of its second half, with what follows them."""

    columns: ColumnBuilder
    closed: bool = False
    """Whether the list of events ends with its bracket."""
    unfinished: bool = False
    """Whether a piece of an event is left over at the end."""
    cut_gzip: bool = False
    tail: bytes = b""
    replaced_text: int = 0
    lenient_drops: int = 0


class EventReader:
    """Reads the list of events from a window that begins with its bracket, or with the comma before an event."""

    def __init__(self, text: Text, helper: Helper | None = None) -> None:
        self._text = text
        self._helper = helper
        self._lenient = LenientDecoder()
        self._columns = ColumnBuilder()
        self._taker = self._columns.taker()

    def read(self) -> Events:
        """Read to the end of the file."""
        closed = self._read_list()
        if closed is None and self._helper is not None:
            found = self._helper.result()
            if found is not None:
                return self._joined(found)
            self._helper = None
            closed = self._read_list()
        text = self._text
        tail = self._read_tail() if closed else b""
        unfinished = not closed and bool(text.buffer.strip(b", \t\r\n"))
        return self._joined(Events(ColumnBuilder(), bool(closed), unfinished, text.cut_gzip, tail))

    def _joined(self, rest: Events) -> Events:
        self._columns.append(rest.columns)
        self._check()
        rest.columns = self._columns
        rest.replaced_text += self._lenient.replaced_text
        rest.lenient_drops += self._lenient.dropped_events
        return rest

    def _read_list(self) -> bool | None:
        """Read the list; says whether it was closed, or None where the helper takes over."""
        text = self._text
        while True:
            if self._helper is not None and text.read >= self._helper.position:
                if text.read < self._helper.position + SPLIT_WINDOW and not text.ended:
                    text.grow()
                    continue
                if self._take_up_to_helper():
                    return None
                self._helper = None
            closed = self._take()
            if closed:
                return True
            if closed is None and text.ended:
                self._take_last()
                return False
            if closed is None:
                text.double()
            elif not text.ended:
                text.grow()

    def _add(self, events: list[Event]) -> None:
        self._columns.add(events)
        self._check()

    def _check(self) -> None:
        """Refuse more than is to be kept.

        Raises:
            NoEventsError: there are more events than the limit, or their names take more.
        """
        limits = self._text.limits
        if self._columns.rows > limits.max_events:
            raise NoEventsError(
                f"has more than {limits.max_events:,} events that count, which is refused: "
                "TRACETOOL_MAX_EVENTS sets another limit"
            )
        if self._columns.names_bytes > limits.names_bytes:
            raise NoEventsError(
                f"has names that take more than {limits.max_names_mib:,} MiB, which is refused: "
                "TRACETOOL_MAX_NAMES_MIB sets another limit"
            )

    def _take(self) -> bool | None:
        """Take the whole events of the window; says whether the list was closed, or None where there was nothing."""
        before = len(self._text.buffer)
        status = self._take_quickly()
        some = len(self._text.buffer) < before
        if status is not Status.ODD:
            return True if status is Status.CLOSED else False if some else None
        taken = self._take_likely() or self._take_exact()
        if taken is None:
            return False if some else None
        self._add(taken.events)
        self._text.drop(taken.end)
        return taken.closed

    def _take_quickly(self) -> Status:
        if self._taker is None:
            return Status.ODD
        while True:
            taken = self._taker.take(self._text.buffer)
            self._columns.add_taken(taken, self._taker, self._text.buffer)
            self._check()
            self._text.drop(taken.consumed)
            if taken.status is not Status.FULL:
                return taken.status

    def _take_last(self) -> None:
        """Take what stands at the end of a list that is not closed, if it is a whole event."""
        rest = bytes(self._text.buffer[1:])
        try:
            self._add(decode_strict(memoryview(b"[" + rest + b"]")))
        except MalformedError:
            self._text.buffer = bytearray(rest)
        else:
            self._text.buffer = bytearray()

    def _take_up_to_helper(self) -> bool:
        """Read up to where the helper began; says whether an event really ends there."""
        assert self._helper is not None
        text = self._text
        end = likely_split(text.buffer, self._helper.position - text.begin)
        events = None if end is None else self._decode(end)
        if end is None or events is None:
            return False
        self._add(events)
        text.drop(end)
        return True

    def _take_likely(self) -> _Taken | None:
        """Try the places where events usually end: that it decodes proves that it is one."""
        for end in likely_ends(self._text.buffer):
            closed = self._text.buffer[end] == ord("]")
            events = self._decode(end)
            if events is not None:
                return _Taken(events, end + closed, closed)
        return None

    def _decode(self, end: int) -> list[Event] | None:
        """Decode the window's events up to a comma or bracket; None where they are not whole events."""
        buffer = self._text.buffer
        follows = buffer[end]
        buffer[0], buffer[end] = ord("["), ord("]")
        try:
            with memoryview(buffer) as view:
                return decode_strict(view[: end + 1])
        except MalformedError:
            return None
        finally:
            buffer[end] = follows

    def _take_exact(self) -> _Taken | None:
        """Follow the brackets, and decode leniently."""
        buffer = self._text.buffer
        edges = exact_edges(buffer, 1)
        if not edges.ends:
            return None
        end = edges.ends[-1]
        piece = b"[" + bytes(buffer[1:end]) + b"]"
        try:
            events = decode_strict(memoryview(piece))
        except MalformedError:
            events = self._lenient.decode(piece, edges.ends)
        return _Taken(events, end + edges.closed, edges.closed)

    def _read_tail(self) -> bytes:
        while not self._text.ended:
            self._text.double()
        tail = bytes(self._text.buffer)
        self._text.buffer = bytearray()
        return tail
