"""TT10: CUDA graphs captured anew, cut small, or with much left beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import Category
from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.events import IntArray
    from tracetool.findings.subject import Group, Subject

_FEWEST_GRAPHS = 4
_SMALL = 10
_FEWEST_LAUNCHES = 10
_OF_A_CAPTURE = 4

_ONCE = Mend(
    "a graph captured in each step",
    "Capture once for each shape, before the loop, and keep the graphs; new inputs are copied into the buffers that "
    "were captured. Pad sizes up to a few, so that there is a graph for each.",
    "graphs = {size: captured(model, size) for size in (1, 2, 4, 8, 16)}  # once\n"
    "static_in[:n].copy_(x)\n"
    "graphs[next(size for size in graphs if size >= n)].replay()",
)
_JOIN = Mend(
    "many small graphs",
    "Capture what follows each other as one graph: one launch then takes the place of all, and nothing of the host "
    "stands between them. A read, a copy from pageable memory or Python that decides has to move out of the way first.",
    "with torch.cuda.graph(graph):\n    for layer in layers:\n        x = layer(x)",
)
_INSIDE = Mend(
    "launches beside a graph",
    "Take what is launched beside the graph into it, sampling and the building of inputs among it. It needs its inputs "
    "in buffers that stay, and no step that waits for the device.",
    "with torch.cuda.graph(graph):\n"
    "    logits = model(ids, positions)\n"
    "    ids.copy_(logits.argmax(-1))  # the next step's input stays on the device",
)


def _find(subject: Subject) -> Iterator[Finding]:
    yield from _captures(subject)
    launches = subject.amounts("graph_launches")
    kernels = subject.kernels_of(launches)
    small = launches[np.array([0 < len(kernels[one]) <= _SMALL for one in launches.tolist()], dtype=np.bool_)]
    for group in subject.groups(small, [""] * len(small)):
        if subject.repeated(group.rows) and subject.per_step(group.rows) >= _FEWEST_GRAPHS:
            yield _small(subject, group, kernels)
    if len(launches) and subject.repeated(launches):
        yield from _beside(subject, launches)


def _captures(subject: Subject) -> Iterator[Finding]:
    calls = subject.work.of(Category.CALL)
    begins = subject.steady(subject.named(calls, lambda name: "StreamBeginCapture" in name))
    if subject.summary.step_count > 1:
        begins = begins[subject.work.step[begins] != subject.first_step]
    ends = subject.steady(subject.named(calls, lambda name: "StreamEndCapture" in name or "GraphInstantiate" in name))
    for group in subject.groups(begins, [""] * len(begins)):
        if not subject.repeated_later(group.rows):
            continue
        cuts = [_capture(subject, row, ends) for row in group.rows.tolist()]
        inside = subject.within(calls, cuts)
        steps = max(1, subject.summary.step_count - 1)
        time = sum(end - start for start, end in cuts) / steps
        count = len(group.rows) / steps
        yield Finding(
            RULE,
            subject.path(group.row),
            f"{plural_of(count, 'graph')} captured anew in each step, {amount(time, 'cpu_ns')} until it can be "
            "launched",
            {"cpu_ns": time},
            subject.calls(group.row),
            subject.culprits(group.rows),
            subject.cost(
                group.rows,
                Change(cuts),
                "replayed without the time from the beginning of each capture to its instantiation",
                steps=steps,
            ),
            _ONCE,
            inside,
        )


def _capture(subject: Subject, row: int, ends: IntArray) -> tuple[int, int]:
    """From the call that begins a capture to the last that ends or instantiates it.

    `torch.cuda.graph` first waits for the device, collects garbage and empties the cache of memory: where nothing was
    launched since such a wait, the capture begins with it.
    """
    events, work = subject.events, subject.work
    start = int(events.start[work.event[row]])
    later = ends[subject.start(ends) > start][:2]
    instantiated = subject.named(later, lambda name: "GraphInstantiate" in name)
    last = instantiated[:1] if len(instantiated) else later[:1]
    end = int(events.end[work.event[last[0]]]) if len(last) else int(events.end[work.event[row]])
    waits = subject.amounts("syncs")
    waits = subject.named(waits[subject.slot(waits) == subject.slot(np.array([row]))], _waits_for_all)
    before = subject.start(waits)[subject.start(waits) < start]
    if len(before) and not _launched(subject, int(before[-1]), start):
        start = int(before[-1])
    return start, end


def _launched(subject: Subject, start: int, end: int) -> bool:
    """Whether more than the few kernels with which a capture sets its random numbers was launched in an interval."""
    return subject.launches_between(start, end) > _OF_A_CAPTURE


def _waits_for_all(name: str) -> bool:
    return "DeviceSynchronize" in name


def _small(subject: Subject, group: Group, kernels: dict[int, list[int]]) -> Finding:
    rows, count = group.rows, len(group.rows) / subject.units
    each = sum(len(kernels[row]) for row in rows.tolist()) / len(rows)
    kinds = len({tuple(subject.raw_name(np.array(kernels[row]))) for row in rows.tolist()})
    return Finding(
        RULE,
        subject.path(group.row),
        f"{plural_of(count, 'graph launch', 'graph launches')} of {amount(each, 'kernels')} kernels each, in "
        f"{plural_of(kinds, 'sequence')} of kernels",
        {"graph_launches": count, "graph_kernels": each * count},
        subject.calls(group.row),
        subject.culprits(rows),
        subject.cost(
            rows,
            Change(subject.gaps(rows)),
            "replayed without the CPU time between the launches: one graph of all takes as long to launch as they do",
        ),
        _JOIN,
        rows,
    )


def _beside(subject: Subject, graphs: IntArray) -> Iterator[Finding]:
    steps = np.unique(subject.work.step[graphs])
    launches = subject.amounts("kernel_launches")
    launches = launches[np.isin(subject.work.step[launches], steps)]
    for group in subject.groups(launches, [""] * len(launches)):
        if not subject.repeated(group.rows) or subject.per_step(group.rows) < _FEWEST_LAUNCHES:
            continue
        spans = [subject.span(row) for row in group.rows.tolist()]
        time = sum(end - start for start, end in spans) / subject.units
        count = len(group.rows) / subject.units
        yield Finding(
            RULE,
            subject.path(group.row),
            f"{plural_of(count, 'launch', 'launches')} one by one beside "
            f"{plural_of(len(graphs) / subject.units, 'graph')} in the same step, {amount(time, 'cpu_ns')} of CPU time",
            {"kernel_launches": count, "graph_launches": len(graphs) / subject.units},
            subject.calls(group.row),
            subject.culprits(group.rows),
            subject.cost(
                group.rows,
                Change([*spans, *subject.loop_cuts(group.rows)]),
                "replayed without the CPU time of these ops: their kernels follow each other in the graph",
            ),
            _INSIDE,
            group.rows,
        )


RULE = Rule(
    "TT10",
    "graph-misuse",
    "CUDA graphs that are captured in most steps after the first; 4 graph launches a step and more of at most 10 "
    "kernels each in one range; 10 launches a step and more, in one range, beside a graph.",
    "A capture runs everything through Python and instantiates anew; a graph saves only the launches that are in it.",
    "Replayed without the time of each capture until the graph can be launched; without the CPU time between small "
    "graphs; without that of the ops beside a graph.",
    (
        _ONCE,
        _JOIN,
        _INSIDE,
    ),
    _find,
)
