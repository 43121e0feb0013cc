"""The bytes of a trace: a file or standard input, plain or gzip, told by content and not by name."""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isal import igzip_threaded
from isal.igzip_lib import IsalError

from tracetool.errors import TraceReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

GZIP_MAGIC = b"\x1f\x8b"
UNREADABLE: tuple[type[Exception], ...] = (zlib.error, cast("type[Exception]", IsalError), OSError, MemoryError)
"""What reading can fail with, besides a file that ends too early."""

_BLOCK_BYTES = 1024 * 1024


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[io.BufferedReader[Any]]:
    """Open a trace for reading; `-` is standard input. Gzip is undone in a thread beside the reader.

    Raises:
        TraceReadError: there is no such file, or it may not be read.
    """
    with contextlib.ExitStack() as stack:
        if path == "-":
            # Not through Python's own buffer, which goes on waiting for more when it is interrupted after a part.
            raw = io.BufferedReader(cast("Any", getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)))
            stack.callback(raw.detach)
        else:
            raw = _open_file(path)
            stack.callback(raw.close)
        if raw.peek(2)[:2] != GZIP_MAGIC:
            yield raw
            return
        # Of a pipe not in a thread: one that waits for more could not be ended.
        plain = gzip.GzipFile(fileobj=_Pipe(raw)) if path == "-" else _undo_in_thread(raw)
        stack.callback(plain.close)
        yield cast("io.BufferedReader[Any]", plain)


def read_whole(path: str, most: int) -> bytes:
    """All of a trace, but at most a byte more than `most`.

    Raises:
        TraceReadError: it cannot be read to its end.
    """
    try:
        with open_bytes(path) as file:
            return file.read(most + 1)
    except EOFError:
        raise TraceReadError(f"{path} is cut off, and cannot be merged; copy or capture it again") from None
    except UNREADABLE as error:
        raise TraceReadError(f"{path} cannot be read: {str(error) or 'out of memory'}") from None


def _undo_in_thread(raw: io.BufferedReader[Any]) -> io.BufferedReader[Any]:
    plain: io.BufferedReader[Any] = igzip_threaded.open(raw, "rb", block_size=_BLOCK_BYTES)  # type: ignore[no-untyped-call]
    return plain


class _Pipe(io.RawIOBase):
    """What a pipe has at the moment, so that every wait for more of it can be interrupted."""

    def __init__(self, source: io.BufferedReader[Any]) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 (as the base class has it)
        return self._source.readinto1(buffer)


def _open_file(path: str) -> io.BufferedReader[Any]:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise TraceReadError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise TraceReadError(f"{path} is a directory; name a trace file in it") from None
    except OSError as error:
        raise TraceReadError(f"{path} cannot be opened: {error.strerror}") from None
