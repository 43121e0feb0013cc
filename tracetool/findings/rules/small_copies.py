"""TT02: many small copies that could be one, and index tensors made from Python lists."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.findings.subject import Group, Subject

_FEWEST = 4
_FEWEST_LISTS = 2
_LARGEST = 64 * 1024
_COPY = "aten::copy_"

_PACK = Mend(
    "small copies",
    "Pack them into one pinned buffer and send that in one copy: each small copy costs its call, whatever its size. "
    "Views of the buffer on the device take the place of the tensors.",
    "packed = torch.empty(total, dtype=dtype, pin_memory=True)  # once\n"
    "torch.cat(parts, out=packed)\n"
    "on_device.copy_(packed, non_blocking=True)\n"
    "views = on_device.split(sizes)",
)
_READ = Mend(
    "small reads",
    "Lay the values side by side on the device and read that one tensor, after the last of them: each read costs its "
    "call and a wait, whatever its size.",
    "told = torch.stack(values).tolist()  # instead of [value.cpu() for value in values]",
)
_LISTS = Mend(
    "tensors from lists",
    "Make the tensors once a step and not in each layer: write the lists as rows of one pinned int32 buffer and send "
    "it in one copy; or compute the indices on the device from what is there. torch.tensor(list, device=...) is one "
    "pageable copy and one wait every time.",
    "staging[0, :n] = torch.tensor(block_idx, dtype=torch.int32)\n"
    "staging[1, :n] = torch.tensor(pos, dtype=torch.int32)\n"
    "on_device.copy_(staging, non_blocking=True)  # once a step\n"
    "block_idx, pos = on_device[:, :n]",
)


def _find(subject: Subject) -> Iterator[Finding]:
    rows = np.concatenate([subject.copies("h2d"), subject.copies("d2h")])
    rows = rows[(subject.bytes(rows) <= _LARGEST) & (subject.op(rows) >= 0)]
    rows = subject.steady(rows)
    chains = subject.chains(rows)
    from_list = np.array(["aten::_to_copy" in chain for chain in chains], dtype=np.bool_)
    from_list &= subject.followed_by(rows, "aten::lift_fresh")
    # What nonzero or item() reads is theirs: it cannot be sent with something else.
    asked = np.array([chain[0] == _COPY for chain in chains], dtype=np.bool_)
    for chosen, which in ((rows[from_list], True), (rows[~from_list & asked], False)):
        directions = [name.split(" ")[1] for name in subject.raw_name(chosen)]
        names = [" ".join(pair) for pair in zip(subject.op_names(chosen), directions, strict=True)]
        for group in subject.groups(chosen, names):
            fewest = _FEWEST_LISTS if which else _FEWEST
            if subject.repeated(group.rows) and subject.per_step(group.rows) >= fewest:
                yield _finding(subject, group, lists=which)


def _finding(subject: Subject, group: Group, *, lists: bool) -> Finding:
    rows = group.rows
    direction = group.name.rsplit(" ", 1)[1]
    ops = subject.op(rows)
    syncs = subject.amounts("syncs")
    syncs = syncs[np.isin(subject.op(syncs), ops)]
    count, size = len(rows) / subject.units, int(subject.bytes(rows).sum()) / subject.units
    calls = subject.calls(group.row)
    prefix = "h2d" if direction == "HtoD" else "d2h"
    counts = {f"{prefix}_copies": count, f"{prefix}_bytes": size, "syncs": len(syncs) / subject.units}
    each = amount(size / count, "h2d_bytes")
    if lists:
        what = f"{plural_of(count, 'tensor')} made from Python lists, each a copy of {each} and a wait"
    else:
        what = f"{plural_of(count, f'{direction} copy', f'{direction} copies')} of {each} each that could be one"
    if calls > 1:
        what += f", {amount(count / calls, 'copies')} a call"
    # One a step is left: the first.
    first = np.unique(subject.work.step[rows], return_index=True)[1]
    others = np.delete(rows, first)
    spans = [subject.span(row) for row in others.tolist()]
    cuts = [*subject.loop_cuts(rows), *spans]
    return Finding(
        RULE,
        subject.path(group.row),
        what,
        {name: value for name, value in counts.items() if value},
        calls,
        subject.culprits(rows),
        subject.cost(
            rows,
            Change(cuts, device=others),
            "replayed with the first of them alone, without the CPU time of the others",
        ),
        _LISTS if lists else _PACK if direction == "HtoD" else _READ,
        np.concatenate([rows, subject.call(rows), syncs]),
    )


RULE = Rule(
    "TT02",
    "small-copies",
    "Many copies of at most 64 KiB by copy_ in one range (4 a step and more), and index tensors made from Python "
    "lists by torch.tensor(list, device=...) (2 a step and more).",
    "A copy costs its call and the op around it, about 30 us under the profiler, however few bytes it moves; a "
    "blocking one also waits for the device.",
    "Replayed with the first of them alone, without the CPU time of the others.",
    (
        _PACK,
        _READ,
        _LISTS,
    ),
    _find,
)
