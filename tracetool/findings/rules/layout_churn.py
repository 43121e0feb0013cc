"""TT08: the same change of layout or dtype over and over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import Category
from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.findings.subject import Group, Subject

_FEWEST = 4
_LAYOUT = ("aten::contiguous", "aten::reshape", "aten::clone")
_DTYPE = ("aten::_to_copy",)
_ASKED = (*_LAYOUT, *_DTYPE, "aten::to", "aten::type_as")

_KEEP_LAYOUT = Mend(
    "changes of layout",
    "Keep the tensor in the layout that its readers need, and change it once, where it is made. Products take "
    "transposed operands as they are, and channels_last is chosen for model and input once.",
    "keys = keys.transpose(1, 2).contiguous()  # once, before the layers\nfor layer in layers:\n    out = layer(keys)",
)
_CAST_ONCE = Mend(
    "changes of dtype",
    "Cast once, before the loop, and keep the result: weights that are used in bf16 are stored in bf16 (a master copy "
    "stays in the optimizer). Inside torch.autocast, casts of weights are kept for one forward pass only.",
    "model = model.to(torch.bfloat16)  # once; not weight.to(torch.bfloat16) in forward",
)


def _find(subject: Subject) -> Iterator[Finding]:
    work = subject.work
    device = subject.steady(np.concatenate([work.of(Category.KERNEL), subject.copies("d2d")]))
    device = device[(work.owner(device) >= 0) & (subject.op(device) >= 0)]
    device = device[~subject.by_graph(device)]
    # A copy that also crosses between host and device is no churn: its kernel is part of that.
    crossing = np.concatenate([subject.copies("h2d"), subject.copies("d2h")])
    device = device[~np.isin(subject.op(device), subject.op(crossing))]
    chains = subject.chains(device)
    # What another op changes for itself (linear under autocast, matmul of what is not dense) is not the program's.
    copied = np.array([chain[0] == "aten::copy_" and chain[-1] in _ASKED for chain in chains], dtype=np.bool_)
    for ops, mend in ((_DTYPE, _CAST_ONCE), (_LAYOUT, _KEEP_LAYOUT)):
        which = [next((op for op in reversed(chain) if op in ops), "") for chain in chains]
        fits = copied & np.array([bool(op) for op in which], dtype=np.bool_)
        copied &= ~fits
        names = [
            f"{op} {kernel}"
            for op, kernel, fit in zip(which, subject.raw_name(device), fits.tolist(), strict=True)
            if fit
        ]
        for group in subject.groups(device[fits], names):
            if subject.repeated(group.rows) and subject.per_step(group.rows) >= _FEWEST:
                yield _finding(subject, group, mend)


def _finding(subject: Subject, group: Group, mend: Mend) -> Finding:
    rows, count = group.rows, len(group.rows) / subject.units
    time = int(subject.duration(rows).sum()) / subject.units
    what = "casts to another dtype" if mend is _CAST_ONCE else "copies into another layout"
    op = group.name.partition(" ")[0]
    return Finding(
        RULE,
        subject.path(group.row),
        f"{plural_of(count, f'time {op} {what}', f'times {op} {what}')} by the same kernel, "
        f"{amount(time, 'gpu_ns')} on the device",
        {"kernel_launches": count, "gpu_ns": time},
        subject.calls(group.row),
        subject.culprits(rows),
        subject.cost(
            rows,
            Change([subject.span(row) for row in rows.tolist()], device=rows),
            "replayed without these ops and their kernels",
        ),
        mend,
        np.concatenate([rows, subject.call(rows)]),
    )


RULE = Rule(
    "TT08",
    "layout-churn",
    "The same kernel run 4 times a step and more, in one range, to change a tensor's layout (contiguous, reshape, "
    "clone) or dtype (to), where no other op does it for itself.",
    "Each reads and writes the whole tensor, and costs two or three ops and a launch, to give what was there before or "
    "could have been.",
    "Replayed without these ops and their kernels.",
    (
        _KEEP_LAYOUT,
        _CAST_ONCE,
    ),
    _find,
)
