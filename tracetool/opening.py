"""Opens the traces that commands are given, and says so where that takes long."""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path as FilePath
from typing import TYPE_CHECKING, Any

import click

from tracetool.errors import SettingError
from tracetool.output import harmless
from tracetool.rank_files import check_distinct, names_several, rank_of, traces_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.ranks import Ranks, RanksDiff
    from tracetool.render.view import View
    from tracetool.summary import Path, TraceSummary

_PATIENCE_S = 1.0
_AT_A_TIME = 2


def summarize_all(paths: Sequence[str], options: dict[str, Any]) -> tuple[list[TraceSummary], list[TraceSummary]]:
    """The summaries of the traces that are looked at, and that of the eager one which tells ranges, if one is named."""
    eager_path = options["ranges_from"]
    if [*paths, eager_path].count("-") > 1:
        raise SettingError("standard input can be read only once: name a file for the other traces")
    if eager_path is None:
        return _summaries_of(paths, options, None), []
    eager = _summary_of(eager_path, options, None)
    itself = eager_path if "graph_launches" not in eager.totals else None
    others = iter(_summaries_of([path for path in paths if path != itself], options, eager))
    found = [eager if path == itself else next(others) for path in paths]
    if not any(one.replays for one in found):
        names = list(dict.fromkeys(one.source for one in found))
        have = "has" if len(names) == 1 else "have"
        raise SettingError(
            f"{', '.join(names)} {have} no graph launches: leave out --ranges-from, which gives back what those do"
        )
    return found, [eager]


def _summaries_of(paths: Sequence[str], options: dict[str, Any], eager: TraceSummary | None) -> list[TraceSummary]:
    """The summaries of several traces, two at a time: what is compiled (our reader, numpy) runs side by side."""
    if len(paths) < 2 or "-" in paths:
        return [_summary_of(path, options, eager) for path in paths]
    from concurrent.futures import ThreadPoolExecutor

    stopped = threading.Event()
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        waiting = [pool.submit(_summary_of, path, options, eager, stopped) for path in paths]
        try:
            return [one.result() for one in waiting]
        except BaseException:
            stopped.set()
            pool.shutdown(cancel_futures=True)
            raise


def _summary_of(
    path: str, options: dict[str, Any], eager: TraceSummary | None, stopped: threading.Event | None = None
) -> TraceSummary:
    from tracetool.chrome import read
    from tracetool.folding import DEFAULT_FOLDS, user_fold
    from tracetool.ranges import range_source
    from tracetool.summary import summarize

    folds = (*DEFAULT_FOLDS, *(user_fold(regex) for regex in options["fold"]))
    sources = [range_source(text) for text in options["ranges_as"]]
    with _Progress(path, stopped) as progress:
        trace = read(path, progress=progress.show)
        trace = replace(trace, path=printable(path))
        return summarize(trace, ranges_as=sources, folds=folds, ranges_from=eager)


def several(arguments: Sequence[str]) -> bool:
    """Whether arguments name the traces of several ranks: a folder, a pattern, or more than one file."""
    return len(arguments) > 1 or any(names_several(one) for one in arguments)


def ranks_of(arguments: Sequence[str], options: dict[str, Any], view: View) -> tuple[Ranks, list[Path]]:
    """The ranks whose traces the arguments name, and every range path that one of them has.

    Each trace is read, reduced to its row and forgotten before the next one is read.
    """
    from tracetool.ranks import Rank, Ranks, rank_row, sharing
    from tracetool.render.ranks import columns_of

    rows: list[Rank] = []
    paths: dict[Path, None] = {}
    for source in _distinct(arguments):
        [found], _ = summarize_all([source], options)
        paths.update(dict.fromkeys(found.paths))
        rank = rank_of(found.metadata, source)
        one = rank_row(found, rank, view.shows, chosen=bool(view.patterns), metrics=view.metrics)
        rows.append(sharing(one, rows))
        del found
        check_distinct((one.rank, one.source) for one in rows)
    return Ranks(rows, columns_of([one.totals for one in rows], view.metrics), view.per), list(paths)


def ranks_diff_of(
    sides: tuple[str, str], labels: Sequence[str], scope: str, options: dict[str, Any], view: View
) -> tuple[RanksDiff, list[Path]]:
    """Two runs' ranks, each with its counterpart: by rank, where none is known by the file's name."""
    from tracetool.differ import diff
    from tracetool.ranks import RanksDiff, rank_diff
    from tracetool.render.verdict import verdict_of

    if labels and len(labels) != 2:
        raise SettingError(f"{len(labels)} names for 2 runs: give one name for each, in their order")
    before, after = (_by_rank(side) for side in sides)
    rows = []
    paths: dict[Path, None] = {}
    for key in (one for one in before if one in after):
        summaries, _ = summarize_all([before[key], after[key]], options)
        found = diff(*summaries, labels=[printable(label) for label in labels or sides], scope=scope, per=view.per)
        paths.update(dict.fromkeys(path for one in summaries for path in one.paths))
        rank = rank_of(summaries[0].metadata, before[key])
        rows.append(rank_diff(found, rank, view.shows, view.metrics, verdict_of(found)))
    if not rows:
        raise SettingError(f"{sides[0]} and {sides[1]} have no rank in common, and no file of one name: check both")
    first, second = (printable(label) for label in labels or sides)
    alone = tuple(
        tuple(printable(path) for key, path in ours.items() if key not in theirs)
        for ours, theirs in ((before, after), (after, before))
    )
    return RanksDiff((first, second), tuple(rows), (alone[0], alone[1])), list(paths)


def _distinct(arguments: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(path for argument in arguments for path in traces_in(argument)))


def _by_rank(argument: str) -> dict[int | str, str]:
    """The traces that an argument names, by rank, where none is known by file name."""
    from tracetool.chrome import read_head

    found: dict[int | str, str] = {}
    ranks = [(rank_of(read_head(path), path), path) for path in traces_in(argument)]
    check_distinct(ranks)
    for rank, path in ranks:
        found[rank if rank is not None else FilePath(path).name] = path
    return found


def printable(text: str) -> str:
    """An argument that is no UTF-8, as file names may be, with its odd bytes written out."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Progress:
    """Says on standard error what is being read, once that has taken a second."""

    def __init__(self, path: str, stopped: threading.Event | None = None) -> None:
        self._path = path
        self._stopped = stopped
        self._shown = False

    def __enter__(self) -> _Progress:
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)

    def show(self, read: int) -> None:
        """Take the number of bytes read so far; ends a reading whose result nobody waits for."""
        if self._stopped is not None and self._stopped.is_set():
            raise click.Abort
        if time.monotonic() - self._began < _PATIENCE_S:
            return
        name = harmless(self._path)
        if sys.stderr.isatty():
            click.echo(f"\rreading {name}: {read >> 20:,} MiB", nl=False, err=True)
        elif not self._shown:
            click.echo(f"reading {name} ...", err=True)
        self._shown = True
