"""A capture from beginning to end: record, save, say what came of it, whatever happens on the way."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracetool import __version__, chrome
from tracetool.capturing import facts
from tracetool.capturing.alignment import align
from tracetool.capturing.options import ENDING, CaptureOptions, Window
from tracetool.capturing.recorder import Recorder
from tracetool.capturing.save import save
from tracetool.errors import CaptureError, OutputError, SettingError
from tracetool.events import DEVICE_WORK
from tracetool.folding import step_number
from tracetool.output import check_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from tracetool.capturing.alignment import Lines
    from tracetool.capturing.targets import Program, Stepper
    from tracetool.events import Trace


@dataclass(frozen=True, slots=True)
class Captured:
    """What came of a capture.

    Attributes:
        path: The trace.
        events: How many events it holds; `steps` how many profiler steps.
        lines: Which of its ops have the line that called them, where that was asked for and came about.
        warning: What is wrong with it, in a sentence, if anything is.
    """

    path: Path
    events: int
    steps: int
    lines: Lines | None
    warning: str | None


class Capture:
    """Captures what runs inside its `with` block; `result` is there afterwards.

    When the block ends with an exception, what was recorded until then is saved, the trace says so, and the exception
    goes on.

    Args:
        path: Where the trace goes; its name ends with `.json.gz`.
        window: Which steps are recorded, where `tracetool.step()` ends each; None records everything.
        force: Whether a file that exists may be replaced.
        about: What the trace says of the program.
        options: What is recorded besides.
        on_step: Told how many steps have ended.

    Raises:
        OutputError: the file exists, or cannot be written.
        SettingError: lines are asked for without a window.
        CaptureError: nothing was recorded, or no device event although there is a GPU.
    """

    def __init__(
        self,
        path: Path,
        window: Window | None = None,
        *,
        force: bool = False,
        about: dict[str, Any] | None = None,
        options: CaptureOptions | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> None:
        check_trace_target(path, force=force)
        if window is None and options is not None and options.lines:
            raise SettingError(
                "lines are noted in one more step after those that are recorded: call tracetool.step() at the end of "
                "each step, and say with --active how many are to be recorded"
            )
        self.path = path
        self.about = about or {}
        self.result: Captured | None = None
        self._options = options or CaptureOptions()
        self._recorder = Recorder(self._options, window, on_step=on_step, on_complete=self._save)
        self._interrupted_by: str | None = None
        self._began = time.time()
        # A program may change these.
        self._target = path.absolute()
        self._folder = Path.cwd()
        self._command = _command()

    def __enter__(self) -> Capture:
        try:
            self._recorder.start()
        except BaseException:
            self._recorder.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not self._complete and not (kind is SystemExit and not getattr(error, "code", None)):
            self._interrupted_by = "Ctrl-C" if kind is KeyboardInterrupt else f"{kind.__name__}: {error}".rstrip(": ")
        try:
            self._save()
        except CaptureError:
            if kind is None:
                raise
            # The program's own failure is what its user has to see.
        finally:
            self._recorder.close()

    @property
    def _complete(self) -> bool:
        """Whether all steps that are to be recorded have been."""
        window = self._recorder.window
        return window is not None and self._recorder.steps >= window.steps

    @property
    def steps_needed(self) -> int | None:
        """How many steps there have to be, where that is known: those of the window, and one for lines."""
        return self._recorder.steps_needed

    def step(self) -> None:
        """A step has ended."""
        self._recorder.step()

    def _save(self) -> None:
        """Save what has been recorded, if that has not happened yet."""
        if self.result is not None:
            return
        recorder, window = self._recorder, self._recorder.window
        raw = recorder.finish()
        if raw is None:
            assert window is not None
            raise CaptureError(
                f"nothing was recorded: {recorder.steps} of {window.steps} steps ended, of which the first "
                f"{window.wait + window.warmup} are not kept; call tracetool.step() at the end of each step, or leave "
                "out --wait, --warmup and --active to record everything"
            )
        notes = recorder.notes
        lines = None if notes is None else align(chrome.read(str(raw)).events, notes)
        of_op = {} if lines is None else lines.of_op
        self.result = save(
            raw,
            self._target,
            recorder.host_events(),
            self._metadata(lines),
            of_op,
            lambda written: self._look(written, lines),
        )

    def _metadata(self, lines: Lines | None) -> dict[str, Any]:
        window = self._recorder.window
        return {
            "version": __version__,
            "command": self._command,
            **self.about,
            "captured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._began)),
            "window": None if window is None else asdict(window),
            "options": asdict(self._options),
            "compiles": self._recorder.hears_compiles,
            "expects_device": self._recorder.expects_device,
            "lines": None if lines is None else {"ops": lines.ops, "known": lines.known},
            "interrupted_by": self._interrupted_by,
            **facts.collect(self._folder),
        }

    def _look(self, written: Path, lines: Lines | None) -> Captured:
        """Read what was written, as everyone will."""
        trace = chrome.read(str(written))
        if not len(trace.events):
            raise CaptureError("nothing was recorded: the program ran no op, no range and nothing on the GPU meanwhile")
        return Captured(self.path, len(trace.events), _count_steps(trace), lines, self._warning(trace))

    def _warning(self, trace: Trace) -> str | None:
        window, ended = self._recorder.window, self._recorder.steps
        if window is not None and ended < window.steps:
            before = window.wait + window.warmup
            return f"only {max(0, ended - before)} of {window.active} steps to be recorded ended; the last may be cut"
        if self._recorder.expects_device and not len(trace.events.of(*DEVICE_WORK)):
            return (
                "there is a GPU, and the trace has not one device event: either the program does not use it (then say "
                "--cpu), or this process ran a CPU-only profile before (then capture in a new one)"
            )
        if self._options.lines and self._recorder.notes is None:
            return "it has no lines: they are noted in the step after those recorded, and the program ended before that"
        return None


def _command() -> list[str]:
    """What was typed; our own command by its name, wherever it is installed."""
    program = Path(sys.argv[0])
    ours = program.name == "tracetool" or program.parent == Path(__file__).parents[1]
    return ["tracetool" if ours else sys.argv[0], *sys.argv[1:]]


def _count_steps(trace: Trace) -> int:
    return sum(step_number(name) is not None for name in trace.events.names)


def check_trace_target(path: Path, *, force: bool) -> None:
    """Refuse a file that could not be written, before anything runs.

    Raises:
        OutputError: it exists and may not be overwritten, or nothing can be written in its folder.
        CaptureError: its name does not end as a trace's does.
    """
    if not path.name.endswith(ENDING) or path.name == ENDING:
        raise CaptureError(f"{path} must be named *{ENDING}: traces are compressed")
    check_target(path, force=force)
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: nothing may be written in {path.parent}")


def capture_program(program: Program, capture: Capture) -> None:
    """Run a program to its end under a capture.

    A program that calls `sys.exit` ends like any other where it exits with 0.
    """
    try:
        with capture:
            program.run()
    except SystemExit as error:
        if error.code:
            raise


def capture_steps(stepper: Stepper, capture: Capture, window: Window) -> None:
    """Run as many steps as a capture with a window needs; the program has been set up."""
    session = stepper.set_up()
    with capture:
        for _ in range(capture.steps_needed or window.steps):
            session.step()
            capture.step()
