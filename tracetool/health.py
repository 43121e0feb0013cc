"""Trace health: whether the numbers of a trace can be believed."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tracetool import apis
from tracetool.attribution import EARLIER, OUTSIDE
from tracetool.environment import as_captured
from tracetool.events import DEVICE_WORK, NO_ID, NO_LINK, Category
from tracetool.graphs import Doubt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.attribution import Work
    from tracetool.events import BoolArray, IntArray, ReadReport, Trace
    from tracetool.replays import Replays
    from tracetool.tally import Tally


class Severity(enum.StrEnum):
    """How much a finding matters; the worst one is the verdict."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a trace: a stable code, and a sentence with what would mend it."""

    code: str
    severity: Severity
    message: str
    count: int


@dataclass(frozen=True, slots=True)
class Health:
    """All findings, the gravest first."""

    findings: tuple[Finding, ...]

    @property
    def error(self) -> Finding | None:
        """The gravest finding, if it is an error."""
        return next((one for one in self.findings if one.severity is Severity.ERROR), None)

    @property
    def verdict(self) -> str:
        """`ok`, `warning` or `error`: an error never passes a budget."""
        severities = {finding.severity for finding in self.findings}
        for severity in (Severity.ERROR, Severity.WARNING):
            if severity in severities:
                return severity.value
        return "ok"


def assess(trace: Trace, tally: Tally, replays: Replays | None = None) -> Health:
    """Find all that is to be known about a trace before its numbers are believed."""
    findings = [*_of_reading(trace.report), *_of_content(trace), *_of_device(trace, tally), *_of_ranges(tally.work)]
    findings += _of_replays(replays) if replays else []
    gravest = list(reversed(Severity))
    return Health(tuple(sorted(findings, key=lambda finding: gravest.index(finding.severity))))


def _error(code: str, count: int, message: str) -> Finding:
    return Finding(code, Severity.ERROR, message, count)


def _warning(code: str, count: int, message: str) -> Finding:
    return Finding(code, Severity.WARNING, message, count)


def _info(code: str, count: int, message: str) -> Finding:
    return Finding(code, Severity.INFO, message, count)


def _of_reading(report: ReadReport) -> Iterator[Finding]:
    if report.truncated:
        yield _error("truncated", 1, "The file is cut off: what follows the cut is missing; copy or capture it again.")
    if report.unclosed_list:
        yield _warning(
            "unclosed_list",
            1,
            "The list of events is not closed: Chrome's format allows it, but a file cut between two events looks "
            "the same.",
        )
    if report.malformed_metadata:
        yield _warning(
            "malformed_metadata",
            1,
            "The text around the list of events is not the JSON that it should be: what the file says of its "
            "devices and versions is not known.",
        )
    if count := report.dropped_events:
        yield _warning(
            "dropped_events",
            count,
            f"{count} events have no readable name or time and are left out of every count.",
        )
    if count := report.bad_numbers:
        yield _warning("bad_numbers", count, f"{count} ids or sizes are no usable numbers and were taken as not there.")
    if count := report.bad_durations:
        yield _warning(
            "bad_durations",
            count,
            f"{count} events have a negative, missing or unreadable duration, taken as 0.",
        )
    if count := report.unpaired_phases:
        yield _warning(
            "unpaired_phases",
            count,
            f"{count} begin and end events (ph B, E) are not read: Kineto writes complete events (ph X).",
        )
    if count := report.replaced_text:
        yield _info(
            "replaced_text",
            count,
            f"{count} pieces of the file were not valid JSON (bad bytes, control characters, NaN) and were replaced.",
        )


def _of_content(trace: Trace) -> Iterator[Finding]:
    events = trace.events
    if not len(events):
        yield _error("no_events", 0, "There is nothing to count: the trace has no ops, calls, ranges or device work.")
        return
    if step := _coarseness(events.start):
        yield _warning(
            "coarse_times",
            len(events),
            f"Times are no finer than {step} ns, by an old profiler or by rewriting: counts stand, but short times "
            "and the nesting of short ranges are blurred.",
        )


_ENOUGH = 50
_FEW = 8
_SAMPLE = 1000


def _coarseness(times: IntArray) -> int:
    """The step of the clock in ns where it is coarser than 1 ns; else 0."""
    if len(times) < _ENOUGH or len(np.unique(times[:_SAMPLE] % 1000)) > _FEW:
        return 0
    residues = np.unique(times % 1000)
    if len(residues) > _FEW:
        return 0
    return int(np.gcd.reduce(np.append(residues, 1000)))


def _of_device(trace: Trace, tally: Tally) -> Iterator[Finding]:
    work = tally.work
    events = work.events
    launches = _named_launches(work)
    device = work.of(*DEVICE_WORK)
    if not len(device):
        if len(launches):
            calls = "launch call" if len(launches) == 1 else "launch calls"
            yield _error(
                "no_device_events",
                len(launches),
                f"{len(launches)} {calls} and not one device event: the device's activity was not recorded; "
                "capture again, in a process that ran no CPU-only profile before.",
            )
        elif as_captured(trace.metadata).get("expects_device") is True:
            yield _error(
                "no_device_events",
                0,
                "The device was to be recorded, and there is not one device event: either the program used none (then "
                "capture with --cpu), or its process had run a CPU-only profile before (then capture in a new one).",
            )
        elif len(events):
            yield _info(
                "no_device_work",
                0,
                "There is no device work: only ops, ranges and times of the CPU can be compared.",
            )
        return
    yield from _of_links(work, launches, tally.amounts_of("unlinked_launches").rows)
    before = int(np.count_nonzero(work.range[device] == EARLIER))
    if before:
        yield _warning(
            "before_window",
            before,
            f"{before} of {len(device)} pieces of device work have no call in the file: they were queued before the "
            "window, stand apart and are in no total.",
        )
    copies = work.event[work.of(Category.MEMCPY)]
    sizeless = int(np.count_nonzero(events.bytes.at(copies, NO_ID) == NO_ID))
    if sizeless:
        yield _warning(
            "copies_without_bytes",
            sizeless,
            f"{sizeless} copies do not say their size: counted with 0 bytes.",
        )
    yield from _of_collectives(work)


def _of_links(work: Work, launches: IntArray, unlinked: IntArray) -> Iterator[Finding]:
    captured = _while_capturing(work, unlinked)
    stray = len(unlinked) - int(np.count_nonzero(captured))
    outside = len(launches) - int(np.count_nonzero(captured))
    if stray * 2 > outside:
        yield _error(
            "launches_unlinked",
            stray,
            f"{stray} of {outside} launch calls own no device work: most of the device's activity is missing; "
            "capture again.",
        )
    elif stray:
        yield _warning(
            "unlinked_launches",
            stray,
            f"{stray} of {outside} launch calls own no device work: cut off by the window's edge, and not counted "
            "as launches.",
        )
    if captured.any():
        count = int(np.count_nonzero(captured))
        yield _info(
            "captured_launches",
            count,
            f"{count} launch calls were made while a graph was captured, and did not run.",
        )
    several = _ids_of_unrelated_calls(work)
    if several:
        yield _warning(
            "duplicate_correlation_ids",
            several,
            f"{several} correlation ids are carried by calls that do not contain each other: their device work goes "
            "to the call that started last.",
        )


def _named_launches(work: Work) -> IntArray:
    calls = work.of(Category.CALL)
    return calls[_named(work, calls, apis.named(work.events.names, apis.is_launch))]


def _named(work: Work, rows: IntArray, flags: BoolArray) -> BoolArray:
    return flags[work.events.name[work.event[rows]]]


def _while_capturing(work: Work, rows: IntArray) -> BoolArray:
    """Which rows lie between a call that begins the capture of a stream and the one that ends it."""
    names = work.events.names
    calls = work.of(Category.CALL)
    begins = calls[_named(work, calls, apis.named(names, lambda name: "StreamBeginCapture" in name))]
    ends = calls[_named(work, calls, apis.named(names, lambda name: "StreamEndCapture" in name))]
    begun, ended = (_started_before(work, calls, rows) for calls in (begins, ends))
    # A capture that began before the window has only its end in the file.
    earlier = max(0, len(ends) - len(begins))
    return begun + earlier > ended


def _started_before(work: Work, calls: IntArray, rows: IntArray) -> IntArray:
    """How many of some calls started before each row, or with it."""
    start, event = work.events.start, work.event
    count: IntArray = np.searchsorted(np.sort(start[event[calls]]), start[event[rows]], "right")
    return count


def _ids_of_unrelated_calls(work: Work) -> int:
    """How many ids that own device work are carried by calls of which none contains the other."""
    events = work.events
    calls = work.event[work.of(Category.CALL)]
    calls = calls[events.correlation[calls] != NO_LINK]
    ids = np.sort(events.correlation[calls])
    twice = ids[1:][ids[1:] == ids[:-1]]
    if not len(twice):
        return 0
    shared = np.intersect1d(twice, events.correlation[work.event[work.owned]])
    calls = calls[np.isin(events.correlation[calls], shared)]
    order = np.lexsort((-events.end[calls], events.start[calls], events.correlation[calls]))
    ids, ends = events.correlation[calls[order]], events.end[calls[order]]
    unrelated = (ids[1:] == ids[:-1]) & (ends[1:] > ends[:-1])
    return len(np.unique(ids[1:][unrelated]))


def _of_collectives(work: Work) -> Iterator[Finding]:
    kernels = work.event[work.of(Category.KERNEL)]
    nccl = apis.named(work.events.names, apis.is_nccl_kernel)
    silent = nccl[work.events.name[kernels]] & (work.events.collective_bytes.at(kernels, NO_ID) == NO_ID)
    if count := int(np.count_nonzero(silent)):
        yield _info(
            "collectives_without_args",
            count,
            f"{count} NCCL kernels do not say which collective they are: counted as kernels, not as collectives.",
        )


def _of_ranges(work: Work) -> Iterator[Finding]:
    ranges, events = work.ranges, work.events
    if not len(ranges):
        if len(events):
            yield _info(
                "no_ranges",
                0,
                "There are no record_function ranges: everything is in '(no range)'; --ranges-as lets ops, Python "
                "functions, modules or threads serve as ranges.",
            )
        return
    if count := int(np.count_nonzero(ranges.ambiguous)):
        name = ranges.paths.name[ranges.path[np.flatnonzero(ranges.ambiguous)[0]]]
        yield _warning(
            "ambiguous_ranges",
            count,
            f"{count} times a range overlaps another of its thread without one containing the other ('{name}' is "
            "one): work in the overlap counts for the one that started last.",
        )
    ends_last = ranges.end >= events.end.max()
    if count := int(np.count_nonzero(ends_last)):
        end = "range ends with the trace and is" if count == 1 else "ranges end with the trace and are"
        yield _info("perhaps_cut", count, f"{count} {end} perhaps cut.")
    stray = int(np.count_nonzero(work.range[work.of(*DEVICE_WORK)] == OUTSIDE))
    if stray:
        were = "piece of device work was" if stray == 1 else "pieces of device work were"
        yield _info("outside_ranges", stray, f"{stray} {were} queued outside any range.")


_TOLD = 3
_WHY_LEFT = {
    Doubt.ABSENT: "without a counterpart there",
    Doubt.UNCLEAR: "that could be lined up in several ways",
    Doubt.TOO_LONG: "in sequences too long to line up unless they are equal",
}


def _of_replays(replays: Replays) -> Iterator[Finding]:
    launches = "1 graph launch" if replays.launches == 1 else f"{replays.launches} graph launches"
    pieces = "kernels" if replays.all_kernels else "pieces of device work"
    told = f"{launches}: {replays.given} of {replays.pieces} {pieces} given back to ranges of {replays.source}"
    count = replays.pieces - replays.given
    if not count:
        yield _info("graph_work_given_back", replays.given, f"{told}.")
    else:
        stay = "1 stays" if count == 1 else f"{count} stay"
        why = "; ".join(_why_left(replays, doubt) for doubt in Doubt if any(one.doubt is doubt for one in replays.left))
        yield _warning("graph_work_left", count, f"{told}, {stay} with the range of the launch: {why}.")
    for one in replays.varied:
        name = f"'{one.path[-1]}'" if one.path else "the step"
        yield _info(
            "eager_runs_differ",
            one.sequences,
            f"In {replays.source} {name} ran {one.runs} times with {one.sequences} different sequences of device work: "
            "graph launches were lined up with the nearest.",
        )


def _why_left(replays: Replays, doubt: Doubt) -> str:
    """`3 without a counterpart there (gemm x 2, relu)`."""
    left = [one for one in replays.left if one.doubt is doubt]
    names = [f"{one.name} x {one.count}" if one.count > 1 else one.name for one in left[:_TOLD]]
    more = [f"and {len(left) - _TOLD} more"] if len(left) > _TOLD else []
    return f"{sum(one.count for one in left)} {_WHY_LEFT[doubt]} ({', '.join([*names, *more])})"
