"""Where results go: standard output, or a file that is never half written."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from tracetool.errors import OutputError

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
"""Characters that would steer a terminal: names of files and in traces hold anything."""


def harmless(text: str) -> str:
    """A text as it is, but on one line and without characters that would steer a terminal."""
    return STEERING.sub("\N{REPLACEMENT CHARACTER}", text)


def check_target(target: Path | None, *, force: bool) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        OutputError: it exists and may not be overwritten, or its folder does not exist.
    """
    if target is None:
        return
    try:
        if target.is_dir():
            raise OutputError(f"{target} is a directory; name a file in it")
        if not target.parent.is_dir():
            raise OutputError(f"{target} cannot be written: there is no folder {target.parent}; make it first")
        if target.exists() and not is_stream(target) and not force:
            raise OutputError(f"{target} exists already; --force overwrites it")
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None


def is_stream(target: Path) -> bool:
    """Whether it is a device or a pipe, like /dev/null: never replaced, and read only once."""
    return target.exists() and not target.is_file() and not target.is_dir()


def write(text: str, target: Path | None) -> None:
    """Write a result to a file, whole or not at all, or to standard output.

    Raises:
        OutputError: the file cannot be written.
    """
    if target is None:
        _print(text)
    else:
        write_bytes(text.encode("utf-8"), target)


def write_bytes(content: bytes, target: Path) -> None:
    """Write a file, whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        target = target.resolve()  # a link stays, and what it points to is replaced
        if is_stream(target):
            target.write_bytes(content)
            return
        with replacing(target) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[BinaryIO]:
    """A file beside `target` that takes its place when all has been written; after a failure `target` stays.

    A process that is killed leaves its file behind, which the next one to write `target` removes.

    Raises:
        OSError: it cannot be written.
    """
    _sweep(target)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=_prefix(target), suffix=_SUFFIX, delete=False) as file:
        temporary = Path(file.name)
        try:
            _lock(file)
            yield cast("BinaryIO", file)
            file.flush()
            # A temporary file is private; a result is as readable as any file made here.
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


_SUFFIX = ".part"


def _prefix(target: Path) -> str:
    return f".{target.name[:80]}."  # names of files are bounded


def _lock(file: IO[bytes]) -> None:
    """Keep others from removing a file as long as it is open, wherever files can be locked."""
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sweep(target: Path) -> None:
    """Remove what processes left that were killed while they wrote a target: files that nobody holds any more."""
    if sys.platform == "win32":
        return
    for left in target.parent.iterdir():
        if left.name.startswith(_prefix(target)) and left.name.endswith(_SUFFIX):
            with contextlib.suppress(OSError), left.open("rb") as file:
                _lock(file)
                left.unlink()


def _print(text: str) -> None:
    """Print; a reader that went away, as `head` does, is no failure."""
    if sys.stdout is None:
        raise OutputError("standard output is closed: name a file with -o")
    try:
        encoding = sys.stdout.encoding or "utf-8"
        try:
            text.encode(encoding, sys.stdout.errors or "strict")
        except UnicodeEncodeError:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        # What is left in the buffer must not fail again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise OutputError(f"standard output cannot be written: {error.strerror}") from None
