"""TT05: a range in which the device idles while the CPU launches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import DEVICE_WORK
from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.events import IntArray
    from tracetool.findings.subject import Subject

_FEWEST = 10
_IDLE = 0.5
_MOST_OF = 0.8
_GRAPH_LAUNCHES = 4
_PAUSE_NS = 1_000_000
"""Without a launch for this long the CPU does something else, or waits: no graph would save that."""

_MEND = Mend(
    "",
    "Capture the range as a CUDA graph and replay it, with its inputs in buffers that stay: one launch takes the place "
    "of all. Where shapes change, one graph for each size (padded up) does; torch.compile(mode='reduce-overhead') "
    "makes them.",
    "graph = torch.cuda.CUDAGraph()\n"
    "with torch.cuda.graph(graph):  # after a warm-up on a side stream\n"
    "    static_out = model(static_in)\n"
    "static_in.copy_(x)\n"
    "graph.replay()",
)


def _find(subject: Subject) -> Iterator[Finding]:
    summary = subject.summary
    if "kernel_launches" not in summary.totals:
        return
    launches = summary.total("kernel_launches")
    graphs = summary.total("graph_launches")
    roots = [row for row in range(summary.outside_row) if summary.parent(row) < 0]
    for root in roots:
        row = _tightest(subject, root, launches.tolist())
        # What runs once, as a set-up does, is no loop that could be captured.
        again = summary.step_count or summary.calls[row] > 1
        if launches[row] / subject.units >= _FEWEST and not graphs[row] and again and not summary.ambiguous[row]:
            yield from _judge(subject, row)


def _tightest(subject: Subject, row: int, launches: list[int]) -> int:
    """The innermost range that makes most of the launches of the one around it."""
    summary = subject.summary
    while True:
        inner = [one for one in subject.summary.subtree(row) if summary.parent(one) == row]
        best = max(inner, key=lambda one: launches[one], default=-1)
        if best < 0 or launches[best] < _MOST_OF * launches[row]:
            return row
        row = best


def _judge(subject: Subject, row: int) -> Iterator[Finding]:
    summary, events, work = subject.summary, subject.events, subject.work
    inside = np.isin(subject.row(np.arange(len(work.event))), list(summary.subtree(row)))
    device = subject.steady(work.of(*DEVICE_WORK))
    device = device[inside[device]]
    launches = subject.amounts("kernel_launches")
    launches = launches[inside[launches]]
    if not len(launches):
        return
    of = work.event[launches]
    start, end = events.start[of], events.end[of]
    launch = float(np.median(end - start))
    stretches = [stretch for span in subject.runs(row) for stretch in _without_pause(start, end, *span)]
    wall = sum(last - first for first, last in stretches)
    cuts = [(first + round(_GRAPH_LAUNCHES * launch), last) for first, last in stretches]
    busy = subject.busy_between(stretches, device)
    if not wall or busy > (1 - _IDLE) * wall:
        return
    count = len(launches) / subject.units
    waits = int(summary.total("syncs")[row]) / subject.units
    stands = f"; its {plural_of(waits, 'wait')} for the device would have to go first" if waits else ""
    yield Finding(
        RULE,
        subject.path(row),
        f"{plural_of(count, 'launch', 'launches')} of {amount(launch, 'launch_ns')} each take "
        f"{amount(wall / subject.units, 'cpu_ns')} of CPU time, in which the device works "
        f"{amount(busy / subject.units, 'gpu_ns')}: it idles {1 - busy / wall:.0%}{stands}",
        {
            "kernel_launches": count,
            "launch_ns": int((end - start).sum()) / subject.units,
            "gpu_busy_ns": busy / subject.units,
        },
        subject.calls(row),
        subject.culprits(launches),
        subject.cost(
            launches,
            Change(cuts),
            f"replayed with one launch, of {_GRAPH_LAUNCHES} times the time of one here, in the place of all: what is "
            "left is the device's time",
        ),
        _MEND,
        launches,
    )


def _without_pause(start: IntArray, end: IntArray, begin: int, stop: int) -> Iterator[tuple[int, int]]:
    """Stretches of a run of a range, from a first launch to a last, in which one launch soon follows another."""
    mine = np.flatnonzero((start >= begin) & (start < stop))
    pauses = np.flatnonzero(start[mine][1:] - end[mine][:-1] > _PAUSE_NS) + 1
    for stretch in np.split(mine, pauses):
        if len(stretch) > 1:
            yield int(start[stretch[0]]), int(end[stretch].max())


RULE = Rule(
    "TT05",
    "launch-bound",
    "A range with 10 launches a step and more in which the device idles for more than half of the time from the first "
    "launch to the last.",
    "The device waits for the next launch: Python, the ops and the launch calls take longer than the kernels.",
    "Replayed with one launch, of four times the time of one here, in the place of all.",
    (_MEND,),
    _find,
)
