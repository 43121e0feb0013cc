"""TT01: copies to the device from pageable memory in a repeated range."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import Category
from tracetool.findings.finding import Cost, Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.events import IntArray
    from tracetool.findings.subject import Group, Subject

_PINNED = Mend(
    "pageable memory",
    "Keep the host side in pinned memory that is made once and copy with non_blocking=True: the copy is then one "
    "asynchronous transfer. Rotate two buffers, or wait for an event, before the host writes to one again.",
    "staging = torch.empty(shape, dtype=dtype, pin_memory=True)  # once\n"
    "staging.copy_(values)\n"
    "on_device.copy_(staging, non_blocking=True)",
)
_DENSE = Mend(
    "a slice that is not dense",
    "Lay the pinned buffer out so that the part that is sent is dense on both sides and of the same dtype: PyTorch "
    "copies anything else through a pageable temporary and a kernel, whatever non_blocking says. With the dimension "
    "that varies first, its slice is dense.",
    "staging = torch.empty(capacity, layers, blocks, dtype=torch.int32, pin_memory=True)\n"
    "on_device[:batch].copy_(staging[:batch], non_blocking=True)",
)


def _find(subject: Subject) -> Iterator[Finding] | str:
    return subject.untold_memory or _found(subject)


def _found(subject: Subject) -> Iterator[Finding]:
    rows = subject.copies("h2d", "pageable")
    ops = subject.around(rows, "aten::copy_")
    kernels = subject.steady(subject.work.of(Category.KERNEL))
    laid_out = np.isin(ops, _of(subject, kernels))
    waits = np.isin(ops, _of(subject, subject.amounts("syncs")))
    strided = (ops >= 0) & laid_out & ~waits
    for some, which in ((strided, True), (~strided, False)):
        chosen = rows[some]
        for group in subject.groups(chosen, subject.op_names(chosen)):
            if subject.repeated(group.rows):
                yield _finding(subject, group, strided=which)


def _of(subject: Subject, rows: IntArray) -> IntArray:
    """The copies that work belongs to."""
    ops = subject.around(rows, "aten::copy_")
    return ops[ops >= 0]


def _finding(subject: Subject, group: Group, *, strided: bool) -> Finding:
    rows = group.rows
    ops = _of(subject, rows)
    syncs, kernels = subject.amounts("syncs"), subject.steady(subject.work.of(Category.KERNEL))
    syncs = syncs[np.isin(subject.around(syncs, "aten::copy_"), ops)]
    kernels = kernels[np.isin(subject.around(kernels, "aten::copy_"), ops)]
    size, count = int(subject.bytes(rows).sum()) / subject.units, len(rows) / subject.units
    waits = len(syncs) / subject.units
    counts = {"h2d_pageable_copies": count, "h2d_pageable_bytes": size, "syncs": waits}
    each = "it" if count == 1 else "each"
    if strided:
        counts["kernel_launches"] = len(kernels) / subject.units
        what = (
            f"{plural_of(count, 'copy', 'copies')} of {amount(size, 'h2d_bytes')} asked not to block, of a slice that "
            f"is not dense: {each} goes through a pageable temporary and a kernel that lays it out"
        )
        cost = _cost_of_strided(subject, rows, kernels)
    else:
        waited = f", and the CPU waits for {each}" if waits >= count else ""
        what = (
            f"{plural_of(count, 'HtoD copy', 'HtoD copies')} from pageable memory, {amount(size, 'h2d_bytes')}{waited}"
        )
        cost = _cost(subject, rows, syncs)
    return Finding(
        RULE,
        subject.path(group.row),
        what,
        {name: value for name, value in counts.items() if value},
        subject.calls(group.row),
        subject.culprits(rows),
        cost,
        _DENSE if strided else _PINNED,
        np.concatenate([rows, subject.call(rows), syncs, kernels if strided else rows[:0]]),
    )


_CALL_NS = 5_000
"""What an asynchronous copy's call takes where nothing is wrong; longer, and it copied the bytes itself."""


def _cost(subject: Subject, rows: IntArray, syncs: IntArray) -> Cost:
    """Without the waits, and with calls that only start the copy."""
    cuts = [
        *((start + _CALL_NS, end) for start, end in subject.times(subject.call(rows)) if end - start > _CALL_NS),
        *subject.times(syncs),
    ]
    how = "replayed without the waits after the copies, and with calls that only start them"
    return subject.cost(rows, Change(cuts), how)


def _cost_of_strided(subject: Subject, rows: IntArray, kernels: IntArray) -> Cost:
    """Without the temporary and the kernel: of each op that which makes the copy is left."""
    cuts = []
    for outer, inner in zip(subject.around(rows, "aten::copy_").tolist(), subject.op(rows).tolist(), strict=True):
        start, end = subject.events.start, subject.events.end
        cuts += [(int(start[outer]), int(start[inner])), (int(end[inner]), int(end[outer]))]
    how = "replayed with the bare copy in the place of the op: no temporary, no kernel"
    return subject.cost(rows, Change(cuts, device=kernels), how)


RULE = Rule(
    "TT01",
    "pageable-copy",
    "Copies to the device from pageable host memory in a repeated range; and copies that are asked not to block from "
    "pinned memory, but go through a pageable temporary and a kernel because the slice is not dense.",
    "The driver first copies the bytes to memory of its own, on the thread that launches, and a blocking copy then "
    "waits for the device.",
    "Replayed without the waits after the copies and with calls that only start them; of a slice that is not dense, "
    "with the bare copy in the place of the op.",
    (
        _PINNED,
        _DENSE,
    ),
    _find,
)
