"""Makes a large trace from a small real one: copies of it, one after the other in time, with ids of their own."""

from __future__ import annotations

import gzip
import json
import re
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ID = re.compile(rb'("(?:id|correlation|External id)": )(\d+)')
_TS = re.compile(rb'("ts": )(\d+\.\d{3})')
_STEP = re.compile(rb"ProfilerStep#\d+")
_EVENT = re.compile(rb"\{\s*\"ph\": \"[Xsf]\".*?\n  \}", re.DOTALL)


def replicate(source: Path, target: Path, events: int, *, steps: int = 5) -> int:
    """Write at least `events` events to `target` (gzip), in `steps` profiler steps; returns how many.

    Each copy keeps the text of the original but for its times, its ids and its steps, which are dropped and
    laid anew around equal shares of the copies.
    """
    text = gzip.decompress(source.read_bytes())
    begin = text.index(b'"traceEvents": [') + len(b'"traceEvents": [')
    end = text.rindex(b"]")
    # What does not repeat (names of processes and threads) is kept once.
    once = [piece for piece in _split(text[begin:end]) if b'"ph": "M"' in piece]
    repeated = [piece for piece in _split(text[begin:end]) if _EVENT.match(piece) and not _STEP.search(piece)]
    times = [int(Decimal(m.group(2).decode()) * 1000) for piece in repeated for m in _TS.finditer(piece)]
    span = max(times) - min(times) + 10_000_000
    largest = max(int(m.group(2)) for piece in repeated for m in _ID.finditer(piece)) + 1
    copies = -(-events // len(repeated))
    main = json.loads(next(piece for piece in _split(text[begin:end]) if _STEP.search(piece)))
    with gzip.open(target, "wb", compresslevel=1) as out:
        out.write(text[:begin] + b"\n  " + b",\n  ".join(once))
        share = -(-copies // steps)
        for copy in range(copies):
            if copy % share == 0:
                out.write(b",\n  " + _step(main, copy // share, min(times) + copy * span - 1000, share * span))
            body = b",\n  ".join(repeated)
            body = _ID.sub(lambda m, k=copy: m.group(1) + str(int(m.group(2)) + k * largest).encode(), body)
            body = _TS.sub(lambda m, k=copy: m.group(1) + _shift(m.group(2), k * span), body)
            out.write(b",\n  " + body)
        out.write(b"\n  " + text[end:])
    return copies * len(repeated) + len(once) + steps


def _split(body: bytes) -> list[bytes]:
    return [b"{" + piece.strip().removeprefix(b"{") for piece in re.split(rb",\s*(?=\{\s*\"(?:ph|name)\")", body)]


def _shift(text: bytes, nanoseconds: int) -> bytes:
    value = int(text.replace(b".", b"")) + nanoseconds
    return b"%d.%03d" % divmod(value, 1000)


def _step(like: dict[str, object], number: int, start: int, duration: int) -> bytes:
    event = (
        b'{\n    "ph": "X", "cat": "user_annotation", "name": "ProfilerStep#%d", "pid": %d, "tid": %d,\n'
        b'    "ts": %d.%03d, "dur": %d.%03d,\n    "args": {}\n  }'
    )
    return event % (number, like["pid"], like["tid"], *divmod(start, 1000), *divmod(duration, 1000))
