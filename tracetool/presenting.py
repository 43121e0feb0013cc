"""What commands share: from options to a view, from results to text, from summaries to exit codes."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from tracetool.output import harmless, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tracetool.differ import Per
    from tracetool.render.view import View
    from tracetool.summary import TraceSummary

FAILED = 2
INTERRUPTED = 130

_WIDTH_OF_FILES = 120


def fail(message: str, code: int) -> int:
    """Say why a command fails, on standard error; the code, for it to be returned."""
    click.echo(f"tracetool: {harmless(message)}", err=True)
    return code


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The arrays of a million events are kept; larger ones go back, since pieces between them would add up.
_LARGEST_KEPT = 6 << 20
_MOST_KEPT = 96 << 20


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For a short command: without Python's search for garbage, and with freed memory kept for the next array.

    numpy comes without a thread on each core for its linear algebra, of which nothing here makes use.

    By default glibc gives the memory of each array back to the system and takes it anew: a fifth of the time that a
    summary of a million events takes. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT)
    _import_numpy()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _import_numpy() -> None:
    name = "OPENBLAS_NUM_THREADS"
    if "numpy" in sys.modules or name in os.environ:
        return
    os.environ[name] = "1"
    try:
        importlib.import_module("numpy")
    finally:
        # Programs that are started from here have threads as they like.
        del os.environ[name]


class StatusLine:
    """One line on standard error that tells a person at a terminal what runs; it goes away at the end."""

    def __init__(self) -> None:
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> StatusLine:
        return self

    def __exit__(self, *_: object) -> None:
        self.show("")

    def show(self, text: str) -> None:
        """Put this in the place of what was shown before."""
        if self._shown:
            click.echo(f"\r\x1b[K{harmless(text)}", nl=False, err=True)


def view_of(options: dict[str, Any]) -> View:
    """What the options of `options.view_options` ask to be shown.

    Raises:
        SettingError: a metric or a pattern is none.
    """
    from tracetool.globs import PathGlob
    from tracetool.metrics import lookup
    from tracetool.render.view import View

    for name in options["metrics"]:
        lookup(name)
    return View(
        patterns=tuple(PathGlob(pattern) for pattern in options["patterns"]),
        metrics=tuple(dict.fromkeys(options["metrics"])),
        depth=options["depth"],
        everything=options["everything"],
        per=_per(options["per"]) if options["per"] else None,
    )


def _per(text: str) -> Per:
    from tracetool.differ import Per

    return Per(text)


def exit_code_of(summaries: Sequence[TraceSummary]) -> int:
    """0, or what a trace that is not healthy ends with, once it has been said."""
    for found in summaries:
        if found.unhealthy:
            return fail(found.unhealthy, FAILED)
    return 0


def emit(what: str, found: object, form: str, output: Path | None, view: View | None) -> None:
    """Render and write; `health` and `metrics` have no view."""
    write(rendered(what, found, form, output, view), output)


def rendered(what: str, found: object, form: str, output: Path | None, view: View | None) -> str:
    """A result as text, as wide and as colourful as where it goes."""
    renderer: Callable[..., str] = getattr(_renderer(form), what)
    arguments = [one for one in (found, view) if one is not None]
    settings: dict[str, Any] = {}
    if form == "terminal":
        to_terminal = output is None and sys.stdout is not None and sys.stdout.isatty()
        width = shutil.get_terminal_size((_WIDTH_OF_FILES, 24)).columns if output is None else _WIDTH_OF_FILES
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        settings = {"width": max(40, width), "colour": to_terminal and not plain}
    return renderer(*arguments, **settings)


def _renderer(form: str) -> Any:
    if form == "json":
        from tracetool.render import json

        return json
    if form == "github":
        from tracetool.render import github

        return github
    if form == "markdown":
        from tracetool.render import markdown

        return markdown
    from tracetool.render import terminal

    return terminal
