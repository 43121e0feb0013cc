"""Text of events to typed events: fast for what profilers write, lenient for what others do to it."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import msgspec

from tracetool.chrome.mend import mend
from tracetool.events import NO_ID

_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NO_TIME = msgspec.Raw(b"null")


class Args(msgspec.Struct, gc=False, frozen=True):
    """The arguments that are read; what they hold is checked when columns are made of them."""

    correlation: Any = NO_ID
    external_id: Any = msgspec.field(default=NO_ID, name="External id")
    old_external_id: Any = msgspec.field(default=NO_ID, name="external id")
    bytes: Any = NO_ID
    allocated_bytes: Any = msgspec.field(default=NO_ID, name="Bytes")
    held_bytes: Any = msgspec.field(default=NO_ID, name="Total Allocated")
    device_type: Any = msgspec.field(default=NO_ID, name="Device Type")
    collective: Any = msgspec.field(default=None, name="Collective name")
    elements_in: Any = msgspec.field(default=NO_ID, name="In msg nelems")
    elements_out: Any = msgspec.field(default=NO_ID, name="Out msg nelems")
    dtype: Any = None
    line: Any = msgspec.field(default=None, name="Call line")
    cache_hit: Any = None
    signature: Any = None
    multiples: Any = msgspec.field(default=None, name="multiples_of_16")
    name: Any = None


NO_ARGS = Args()


class Event(msgspec.Struct, gc=False):
    """One event. Times stay text, because a float would lose nanoseconds at the sizes they have."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = None
    pid: int | str | None = None
    tid: int | str | None = None
    ts: msgspec.Raw = _NO_TIME
    dur: msgspec.Raw = _NO_TIME
    id: Any = None
    args: Args = NO_ARGS


_decode_events = msgspec.json.Decoder(list[Event]).decode
_decode_event = msgspec.json.Decoder(Event).decode
_split_events = msgspec.json.Decoder(list[msgspec.Raw]).decode


class MalformedError(ValueError):
    """The text is not JSON, or its events are not what they should be."""


def decode_strict(text: memoryview) -> list[Event]:
    """Decode a JSON list of events.

    Raises:
        MalformedError: it is not JSON, or some event has another shape.
    """
    try:
        return _decode_events(text)
    except _NOT_JSON as error:
        raise MalformedError(str(error)) from None


def decode_one(text: bytes | bytearray) -> Event:
    """Decode one event that is known to be valid."""
    return _decode_event(text)


@dataclass
class LenientDecoder:
    """Decodes what `decode_strict` refuses, and counts what it had to mend or drop."""

    replaced_text: int = 0
    dropped_events: int = 0

    def decode(self, text: bytes, ends: list[int]) -> list[Event]:
        """Decode a JSON list of events, whose commas and closing bracket are at `ends`."""
        pieces: list[Any]
        try:
            pieces = _split_events(text)
        except _NOT_JSON:
            # Each by itself, so that what is mended does not depend on what stands beside it.
            pieces = [
                piece for begin, end in itertools.pairwise([0, *ends]) if (piece := text[begin + 1 : end].strip())
            ]
        return self._each(pieces)

    def _each(self, pieces: list[Any]) -> list[Event]:
        events = []
        for piece in pieces:
            try:
                events.append(_decode_event(piece))
            except _NOT_JSON:
                self._coerce(bytes(piece), events)
        return events

    def _coerce(self, piece: bytes, events: list[Event]) -> None:
        mended, count = mend(piece)
        try:
            # Numbers stay text: times are read from it exactly, ids are checked later.
            found = json.loads(mended, parse_float=str)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            self.dropped_events += 1
            return
        self.replaced_text += count
        args = found.get("args")
        events.append(
            Event(
                ph=_text(found.get("ph")),
                cat=_text(found.get("cat")),
                name=_text(found.get("name")),
                pid=_track(found.get("pid")),
                tid=_track(found.get("tid")),
                ts=_raw(found.get("ts")),
                dur=_raw(found.get("dur")),
                id=found.get("id"),
                args=_coerce_args(args) if isinstance(args, dict) else NO_ARGS,
            )
        )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _track(value: object) -> int | str | None:
    return value if value is None or isinstance(value, int | str) else json.dumps(value)


def _raw(value: object) -> msgspec.Raw:
    return _NO_TIME if value is None else msgspec.Raw(str(value).encode("utf-8", "replace"))


def _coerce_args(args: dict[str, Any]) -> Args:
    names = {name.encode_name: name.name for name in msgspec.structs.fields(Args)}
    return Args(**{names[key]: value for key, value in args.items() if key in names})
