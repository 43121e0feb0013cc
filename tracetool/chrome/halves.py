"""A second process for the second half of a large file.

It reads the file from its beginning too, since gzip has no middle and undoing it is quick, skips to a place near the
middle where an event probably ends, and decodes from there. The first process decodes up to the same place: that what
it has there decodes as whole events proves that an event ends there. Where it does not, the first process goes on
alone.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tracetool.chrome.scan import SPLIT_WINDOW, likely_split
from tracetool.chrome.source import GZIP_MAGIC, open_bytes
from tracetool.chrome.stream import EventReader, Text
from tracetool.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.chrome.stream import Events

WORTH_A_PROCESS = 48 << 20
"""Bytes of JSON from which a second process saves more than it takes to start."""

_FIRST_PART = 0.55
"""The first process's part: the second one has to start, and to skip this part, before it begins."""
_LEAST_GZIP_RATIO = 2


class SecondHalf:
    """The process at work on what follows the end of an event near `position` (a byte of the JSON)."""

    def __init__(self, process: subprocess.Popen[bytes], position: int) -> None:
        self.position = position
        self._process = process

    def result(self) -> Events | None:
        """What it has read; None where it failed."""
        assert self._process.stdout is not None
        try:
            # Written by our own child, a moment ago.
            return cast("Events", pickle.load(self._process.stdout))
        except (EOFError, pickle.UnpicklingError, OSError):
            return None


def middle_of(path: str) -> int:
    """Where to split a file, in bytes of its JSON; 0 where it is not worth it, or there is one core only."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if path == "-" or cores < 2 or not Path(path).is_file():
        return 0
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if file.read(2) == GZIP_MAGIC and size >= 8:
            # The last four bytes tell the size modulo 2**32 (RFC 1952); a wrong guess only splits worse.
            file.seek(-4, os.SEEK_END)
            told = struct.unpack("<I", file.read(4))[0]
            size = max(told, _LEAST_GZIP_RATIO * size)
    return int(size * _FIRST_PART) if size >= WORTH_A_PROCESS else 0


@contextlib.contextmanager
def second_half(path: str, position: int, chunk_bytes: int) -> Iterator[SecondHalf | None]:
    """Start the process; it is ended when this context is. None where there is nothing to split."""
    if position <= 0 or path == "-":
        yield None
        return
    package_root = str(Path(__file__).resolve().parents[2])
    search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "tracetool.chrome.halves", path, str(position), str(chunk_bytes)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": search},
        )
    except OSError:
        yield None
        return
    with process:
        try:
            yield SecondHalf(process, position)
        finally:
            process.kill()


def _work(path: str, position: int, chunk_bytes: int) -> None:
    """What the second process does: write the second half's `Events` to standard output, or nothing."""
    # An interrupt is the first process's to tell of.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with open_bytes(path) as source:
        text = Text(source, chunk_bytes, limits=Limits.of_environment())
        while text.read < position + SPLIT_WINDOW and not text.ended:
            text.drop(max(0, min(len(text.buffer), position - text.begin)))
            text.grow()
        text.drop(max(0, position - text.begin))
        end = likely_split(text.buffer, 0)
        if end is None:
            return
        text.drop(end)
        found = EventReader(text).read()
    pickle.dump(found, sys.stdout.buffer, protocol=5)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
