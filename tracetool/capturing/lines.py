"""Notes the line of the program that calls each op of one step, which no profiler watches.

A dispatch mode sees each op where PyTorch dispatches it, with the Python frames around: the innermost one that is the
program's own counts. Kernels that Python launches itself, as Triton's are, are no ops and are not seen.
"""

from __future__ import annotations

import enum
import sys
import sysconfig
import threading
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from tracetool.capturing.alignment import Note

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import FrameType

_OURS = str(Path(__file__).parents[1])
_TORCH = str(Path(torch.__file__).parent)
_STDLIB = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
_INSTALLED = ("/site-packages/", "/dist-packages/")
_ENGINE = "_engine_run_backward"


class _Kind(enum.Enum):
    """Whose a source file is."""

    OWN = enum.auto()
    """The program's."""
    INSTALLED = enum.auto()
    """An installed package's, which is the program where there is no other."""
    MACHINERY = enum.auto()
    """Torch's or Python's."""
    OURS = enum.auto()
    """Ours, which run the program: it ends there."""


class LineNoter:
    """Notes lines from `start` to `stop`, of the thread that starts it and of autograd's for it.

    Attributes:
        notes: By the operating system's id of the thread.
    """

    def __init__(self) -> None:
        self.notes: dict[int, list[Note]] = defaultdict(list)
        self._places = _Places()
        self._mode = _Mode(self)
        self._thread = 0
        self._running = False

    def start(self) -> None:
        """Begin to note."""
        self._thread = threading.get_ident()
        self._running = True
        self._mode.__enter__()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """Note no more."""
        if not self._running:
            return
        self._running = False
        # Where the program has left a mode of its own on top, or ends the step on another thread, ours stays, idle.
        if _get_current_dispatch_mode() is self._mode:
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def note(self, op: str, frame: FrameType | None) -> None:
        """Take an op that is about to run on this thread, and the frame that calls it."""
        if not self._running or op.startswith("profiler::"):
            return
        line, of_backward = self._places.line_of(frame)
        if line is None and threading.get_ident() != self._thread:
            # An autograd thread, on which no Python runs: its caller waits in `backward()`.
            caller = sys._current_frames().get(self._thread)  # noqa: SLF001 - there is no other way to the frames
            line, of_backward = self._places.line_of(caller)[0], True
        self.notes[threading.get_native_id()].append(Note(op, line, of_backward))


class _Mode(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, noter: LineNoter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._noter = noter

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled code runs as it does without a mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Note an op, and run it."""
        del types
        self._noter.note(func.name().partition(".")[0], sys._getframe(1))  # noqa: SLF001 - as above
        return func(*args, **(kwargs or {}))


class _Places:
    """Tells the program's own frames from others; paths are shown from the folder that is current at the beginning."""

    def __init__(self) -> None:
        self._here = Path.cwd()
        self._known: dict[str, tuple[_Kind, str]] = {}

    def line_of(self, frame: FrameType | None) -> tuple[str | None, bool]:
        """The line where the innermost frame of the program stands, and whether it has called `backward()` there.

        Where there is none, as in a program that is installed, it is the innermost one of an installed package.
        """
        installed: tuple[str | None, bool] = None, False
        of_backward = False
        while frame is not None:
            code = frame.f_code
            of_backward = of_backward or code.co_name == _ENGINE
            kind, shown = self._place(code.co_filename)
            if kind is _Kind.OURS:
                break
            if kind is _Kind.OWN:
                return f"{shown}:{frame.f_lineno}", of_backward
            if kind is _Kind.INSTALLED and installed[0] is None:
                installed = f"{shown}:{frame.f_lineno}", of_backward
            frame = frame.f_back
        return installed

    def _place(self, file: str) -> tuple[_Kind, str]:
        """Whose a source file is, and how it is shown."""
        if file not in self._known:
            path = self._here / file
            shown = path.relative_to(self._here) if path.is_relative_to(self._here) else path
            self._known[file] = _kind_of(file, path), str(shown)
        return self._known[file]


def _kind_of(file: str, path: Path) -> _Kind:
    if path.is_relative_to(_OURS):
        return _Kind.OURS
    if file.startswith("<") or path.is_relative_to(_TORCH):
        return _Kind.MACHINERY
    if any(part in str(path) for part in _INSTALLED):
        return _Kind.INSTALLED
    return _Kind.MACHINERY if any(path.is_relative_to(folder) for folder in _STDLIB) else _Kind.OWN
