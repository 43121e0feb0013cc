"""The bytes of a trace: a file or standard input, plain or gzip, told by content and not by name."""

from __future__ import annotations

import contextlib
import gzip
import io
import queue
import sys
import threading
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from isal import igzip
from isal.igzip_lib import IsalError

from tracetool.errors import TraceReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

GZIP_MAGIC = b"\x1f\x8b"
UNREADABLE: tuple[type[Exception], ...] = (zlib.error, cast("type[Exception]", IsalError), OSError, MemoryError)
"""What reading can fail with, besides a file that ends too early."""

_BLOCK_BYTES = 1 << 20
_BLOCKS_AHEAD = 2


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
        plain = gzip.GzipFile(fileobj=_Pipe(raw)) if path == "-" else _Unpacked(raw)
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


class _Unpacked(io.BufferedIOBase):
    """What a gzip file holds, undone in a thread that is a few blocks ahead of the reader."""

    def __init__(self, raw: io.BufferedReader[Any]) -> None:
        self._plain = igzip.IGzipFile(fileobj=raw, mode="rb")  # type: ignore[no-untyped-call]
        self._blocks: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._block = memoryview(b"")
        self._end: BaseException | None = None
        self._ended = False
        for _ in range(_BLOCKS_AHEAD):
            self._wanted.put(True)
        self._thread = threading.Thread(target=self._unpack, daemon=True)
        self._thread.start()

    def _unpack(self) -> None:
        block = b"some"
        try:
            while block and self._wanted.get():
                block = self._plain.read1(_BLOCK_BYTES)
                self._blocks.put(block)
        except BaseException as error:  # noqa: BLE001 (it is the reader's, and is raised there)
            self._blocks.put(error)

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        """At most `size` bytes of those that are there next; none at the end."""
        if not self._block and not self._ended:
            self._next()
        if not self._block and self._end is not None:
            raise self._end
        block = self._block
        if 0 <= size < len(block):
            self._block = block[size:]
            return bytes(block[:size])
        self._block = memoryview(b"")
        return cast("bytes", block.obj) if block.nbytes == len(cast("bytes", block.obj)) else bytes(block)

    def read(self, size: int | None = -1, /) -> bytes:
        """As much as is asked for, less only at the end."""
        left = -1 if size is None else size
        pieces = []
        while left and (piece := self.read1(left)):
            pieces.append(piece)
            left -= len(piece) if left > 0 else 0
        return b"".join(pieces)

    def _next(self) -> None:
        block = self._blocks.get()
        if isinstance(block, BaseException):
            self._end = block
            self._ended = True
            return
        self._ended = not block
        self._block = memoryview(block)
        self._wanted.put(True)

    def close(self) -> None:
        if not self.closed:
            self._wanted.put(False)
            self._thread.join()
            self._plain.close()
        super().close()


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
