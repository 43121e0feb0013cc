"""TT03: waits for the device in the middle of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.events import BoolArray, IntArray
    from tracetool.findings.subject import Group, Subject

_READ = "aten::_local_scalar_dense"
_BOOLEAN = "boolean indexing"
_SEVERAL = 3
_READY_NS = 10_000

_ITEM = Mend(
    ".item()",
    "Keep the values on the device and read them all at once after the loop, or leave the decision there (torch.where) "
    "if that takes no more launches than the question. What the host has to know can come one step late, by an "
    "asynchronous copy into pinned memory and an event.",
    "y = torch.where(norm > limit, y * (limit / norm), y)  # instead of: if norm.item() > limit\n"
    "losses.append(loss.detach())  # read torch.stack(losses).tolist() once",
)
_SIZES = Mend(
    "nonzero and boolean indexing",
    "Work with the mask and not with the indices of its true elements, whose number the host must wait for: multiply "
    "by it, or use torch.where or masked_fill. Where the number is known beforehand, give it (torch.nonzero_static).",
    "total = (values * mask).sum()  # instead of: values[mask].sum()\n"
    "values = values.masked_fill(~mask, 0)  # instead of: values[~mask] = 0",
)
_EXPLICIT = Mend(
    "explicit synchronisation",
    "Leave the wait out: work on one stream runs in order, and between streams an event makes the device wait and not "
    "the host. Time with events, and read them at the end.",
    "event = stream.record_event()\ntorch.cuda.current_stream().wait_event(event)  # instead of: stream.synchronize()",
)
_COPY = Mend(
    "blocking copies",
    "Copy into or from pinned memory with non_blocking=True, and wait for an event where the values are needed, after "
    "more work has been launched. A blocking copy waits for all that was launched before it.",
    "host.copy_(on_device, non_blocking=True)  # host: pinned\n"
    "copied = torch.cuda.current_stream().record_event()\n"
    "...  # launch what comes next\n"
    "copied.synchronize()",
)


def _find(subject: Subject) -> Iterator[Finding]:
    syncs = subject.amounts("syncs")
    syncs = syncs[~_own_compile(subject, syncs) & ~_ready(subject, syncs)]
    last = _ends_step(subject, syncs)
    for group in subject.groups(syncs, _kinds(subject, syncs)):
        ends = last[np.searchsorted(subject.start(syncs), subject.start(group.rows))]
        # What a step ends with is how it gives its result; several reads there could be one.
        chosen = group.rows if subject.per_step(group.rows[ends]) >= _SEVERAL else group.rows[~ends]
        if len(chosen) and subject.repeated(chosen):
            yield _finding(subject, group, chosen, at_end=bool(ends.all()))


def _own_compile(subject: Subject, syncs: IntArray) -> BoolArray:
    """What an autotuner waits for is TT04's."""
    tunings = subject.summary.tally.amounts_of("autotunes").rows
    inside = np.zeros(len(syncs), dtype=np.bool_)
    start = subject.start(syncs)
    for event in subject.work.event[tunings].tolist():
        inside |= (start >= subject.events.start[event]) & (start < subject.events.end[event])
    return inside


def _ready(subject: Subject, syncs: IntArray) -> BoolArray:
    """A wait for an event that has come already costs its call alone."""
    events = subject.named_mask(syncs, lambda name: "EventSynchronize" in name)
    return events & (subject.duration(syncs) < _READY_NS)


def _ends_step(subject: Subject, syncs: IntArray) -> BoolArray:
    """After which of the syncs nothing is launched any more in their step (without steps: in the outermost run)."""
    if subject.summary.step_count:
        ends = subject.work.steps.end[subject.work.step[syncs]]
    else:
        ends = subject.outermost_end(syncs)
    return np.array(
        [
            not subject.launches_between(start, end, reads=False)
            for start, end in zip(subject.events.end[subject.work.event[syncs]].tolist(), ends.tolist(), strict=True)
        ],
        dtype=np.bool_,
    )


def _kinds(subject: Subject, syncs: IntArray) -> list[str]:
    kinds = []
    for chain, name in zip(subject.chains(syncs), subject.raw_name(syncs), strict=True):
        if not chain:
            kinds.append(name)
        elif chain[0] == _READ:
            kinds.append(".item()")
        elif any(op in ("aten::nonzero", "aten::masked_select", "aten::_unique2") for op in chain):
            indexed = "aten::nonzero" in chain and ("aten::index" in chain or "aten::index_put_" in chain)
            kinds.append(_BOOLEAN if indexed else "nonzero")
        else:
            kinds.append(chain[0])
    return kinds


def _finding(subject: Subject, group: Group, rows: IntArray, *, at_end: bool) -> Finding:
    waits = dict(zip(*_waits(subject), strict=True))
    wait = sum(waits[row] for row in rows.tolist()) / subject.units
    count = len(rows) / subject.units
    explicit = subject.op(rows[:1])[0] < 0
    item = group.name == ".item()"
    sizes = group.name in (_BOOLEAN, "nonzero")
    mend = _ITEM if item else _SIZES if sizes else _EXPLICIT if explicit else _COPY
    where = "at the end of a step, one by one" if at_end else "with work still to launch in the step"
    what = f"{plural_of(count, 'wait')} for the device by {group.name}, {where}: {amount(wait, 'sync_wait_ns')} waited"
    if item:
        cuts = [subject.span(row) for row in rows.tolist()]
        cuts = [*subject.loop_cuts(rows), *(() if at_end else cuts)]
        device = subject.with_op_of(rows)
        how = "replayed without the reads" if not at_end else "replayed with the first read alone"
    elif group.name == _BOOLEAN:
        searches = subject.around(rows, "aten::nonzero")
        cuts = list(zip(subject.events.start[searches].tolist(), subject.events.end[searches].tolist(), strict=True))
        device = subject.inside("aten::nonzero", searches)
        how = "replayed without the search for true elements, of whose indexing an op with the mask takes the place"
    else:
        cuts, device, how = subject.times(rows), rows[:0], "replayed without the waits"
    return Finding(
        RULE,
        subject.path(group.row),
        what,
        {"syncs": count, "sync_wait_ns": wait},
        subject.calls(group.row),
        subject.culprits(rows),
        subject.cost(rows, Change(cuts, device=device), f"{how}, so that the host launches on while the device works"),
        mend,
        rows,
    )


def _waits(subject: Subject) -> tuple[list[int], list[int]]:
    amounts = subject.summary.tally.amounts_of("sync_wait_ns")
    return amounts.rows.tolist(), amounts.values.tolist()


RULE = Rule(
    "TT03",
    "sync-in-step",
    "Calls on which the CPU waits for the device while there is more of the step to launch: .item(), nonzero and "
    "boolean indexing, blocking copies, explicit synchronisation; and several reads one by one at a step's end.",
    "The device runs dry while the host launches what comes next, and the host stands still while the device works.",
    "Replayed without the waits; without the whole reads of .item(), and without the search for true elements of "
    "boolean indexing. What the mend adds is not known.",
    (
        _ITEM,
        _SIZES,
        _EXPLICIT,
        _COPY,
    ),
    _find,
)
