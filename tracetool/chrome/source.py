"""The bytes of a trace: a file or standard input, plain or gzip, told by content and not by name."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from isal import igzip_threaded

from tracetool.errors import TraceReadError

if TYPE_CHECKING:
    from collections.abc import Iterator

GZIP_MAGIC = b"\x1f\x8b"
_BLOCK_BYTES = 512 * 1024


@contextlib.contextmanager
def open_bytes(path: str) -> Iterator[BinaryIO]:
    """Open a trace for reading; `-` is standard input. Gzip is undone in a thread beside the reader.

    Raises:
        TraceReadError: there is no such file, or it may not be read.
    """
    with contextlib.ExitStack() as stack:
        if path == "-":
            raw = io.BufferedReader(cast("Any", sys.stdin.buffer))
            stack.callback(raw.detach)
        else:
            raw = _open_file(path)
            stack.callback(raw.close)
        if raw.peek(2)[:2] == GZIP_MAGIC:
            plain = igzip_threaded.open(raw, "rb", block_size=_BLOCK_BYTES)  # type: ignore[no-untyped-call]
            stack.callback(plain.close)
            yield plain
        else:
            yield cast("BinaryIO", raw)


def _open_file(path: str) -> io.BufferedReader[Any]:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise TraceReadError(f"{path}: there is no such file; check the path") from None
    except IsADirectoryError:
        raise TraceReadError(f"{path} is a directory; name a trace file in it") from None
    except OSError as error:
        raise TraceReadError(f"{path} cannot be opened: {error.strerror}") from None
