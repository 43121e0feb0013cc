"""TT09: copies that could overlap with kernels and do not."""

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

_LEAST_NS = 20_000

_MEND = Mend(
    "",
    "Copy on a stream of its own, a step ahead, into a second buffer; the computing stream waits for the copy's event "
    "before it uses it. Pinned memory is needed, or the copy does not overlap.",
    "with torch.cuda.stream(copying):\n"
    "    buffers[1 - turn].copy_(next_batch, non_blocking=True)\n"
    "model(buffers[turn])\n"
    "torch.cuda.current_stream().wait_stream(copying)",
)


def _find(subject: Subject) -> Iterator[Finding] | str:
    return subject.untold_memory or _found(subject)


def _found(subject: Subject) -> Iterator[Finding]:
    pinned = np.concatenate([subject.copies("h2d", "pinned"), subject.copies("d2h", "pinned")])
    pinned = subject.steady(pinned[subject.duration(pinned) >= _LEAST_NS])
    kernels = subject.steady(subject.work.of(Category.KERNEL))
    streams = np.unique(subject.events.thread[subject.work.event[kernels]])
    shared = pinned[np.isin(subject.events.thread[subject.work.event[pinned]], streams)]
    for group in subject.groups(shared, subject.op_names(shared)):
        if subject.repeated(group.rows):
            found = _finding(subject, group, kernels)
            if found is not None:
                yield found


def _finding(subject: Subject, group: Group, kernels: IntArray) -> Finding | None:
    rows = group.rows
    exposed = subject.busy(np.concatenate([rows, kernels])) - subject.busy(kernels)
    compute = subject.busy(kernels)
    could = min(exposed, compute) / subject.units
    if exposed < 0.5 * int(subject.duration(rows).sum()):
        return None
    count, time = len(rows) / subject.units, int(subject.duration(rows).sum()) / subject.units
    return Finding(
        RULE,
        subject.path(group.row),
        f"{plural_of(count, 'pinned copy', 'pinned copies')} of {amount(time, 'gpu_ns')} on the stream that computes: "
        f"nothing else runs for {amount(exposed / subject.units, 'gpu_ns')} of that",
        {"copies": count, "copy_bytes": int(subject.bytes(rows).sum()) / subject.units, "gpu_ns": time},
        subject.calls(group.row),
        subject.culprits(rows),
        subject.cost(
            rows,
            Change(apart=rows),
            "replayed with the copies beside the kernels, at most the time of the kernels there are to hide them "
            "behind",
            most=could,
        ),
        _MEND,
        np.concatenate([rows, subject.call(rows)]),
    )


RULE = Rule(
    "TT09",
    "serial-copy",
    "Pinned copies of 20 us and more, between host and device, on a stream that also runs kernels, while nothing else "
    "runs on the device.",
    "The copy engines work beside the kernels only from another stream: on the same one each waits for the other.",
    "Replayed with the copies beside the kernels, and at most the time of the kernels there are to hide them behind.",
    (_MEND,),
    _find,
)
