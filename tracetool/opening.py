"""Opens the traces that commands are given, and says so where that takes long."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tracetool.errors import SettingError
from tracetool.output import harmless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.summary import TraceSummary

_PATIENCE_S = 1.0


def summarize_all(paths: Sequence[str], options: dict[str, Any]) -> tuple[list[TraceSummary], list[TraceSummary]]:
    """The summaries of the traces that are looked at, and that of the eager one which tells ranges, if one is named."""
    eager_path = options["ranges_from"]
    if [*paths, eager_path].count("-") > 1:
        raise SettingError("standard input can be read only once: name a file for the other traces")
    if eager_path is None:
        return [_summary_of(path, options, None) for path in paths], []
    eager = _summary_of(eager_path, options, None)
    launches = "graph_launches" in eager.totals
    found = [eager if path == eager_path and not launches else _summary_of(path, options, eager) for path in paths]
    if not any(one.replays for one in found):
        names = list(dict.fromkeys(one.source for one in found))
        have = "has" if len(names) == 1 else "have"
        raise SettingError(
            f"{', '.join(names)} {have} no graph launches: leave out --ranges-from, which gives back what those do"
        )
    return found, [eager]


def _summary_of(path: str, options: dict[str, Any], eager: TraceSummary | None) -> TraceSummary:
    from tracetool.chrome import read
    from tracetool.folding import DEFAULT_FOLDS, user_fold
    from tracetool.ranges import range_source
    from tracetool.summary import summarize

    folds = (*DEFAULT_FOLDS, *(user_fold(regex) for regex in options["fold"]))
    sources = [range_source(text) for text in options["ranges_as"]]
    with _Progress(path) as progress:
        trace = read(path, progress=progress.show)
        trace = replace(trace, path=printable(path))
        return summarize(trace, ranges_as=sources, folds=folds, ranges_from=eager)


def printable(text: str) -> str:
    """An argument that is no UTF-8, as file names may be, with its odd bytes written out."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Progress:
    """Says on standard error what is being read, once that has taken a second."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._shown = False

    def __enter__(self) -> _Progress:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, read: int) -> None:
        """Take the number of bytes read so far."""
        if time.monotonic() - self._began < _PATIENCE_S:
            return
        name = harmless(self._path)
        if sys.stderr.isatty():
            click.echo(f"\rreading {name}: {read >> 20:,} MiB", nl=False, err=True)
        elif not self._shown:
            click.echo(f"reading {name} ...", err=True)
        self._shown = True
