"""TT07: device memory taken from the driver, or cleared bit by bit, in each step."""

from __future__ import annotations

import re
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

_CALL = re.compile(
    r"(?:cuda|hip)(?:Ext)?(?:Malloc|Free|HostAlloc|HostMalloc|HostFree|HostRegister|HostUnregister|MallocHost|FreeHost)"
    r"|cuMem(?:Alloc|Free|Create|Release|HostAlloc|FreeHost|Map|Unmap)"
)
_FEWEST = 4

_KEEP = Mend(
    "memory from the driver",
    "Leave memory to PyTorch's allocator, which keeps what is freed: no torch.cuda.empty_cache() in the loop, and "
    "pinned buffers made once. Where it gives memory back because sizes vary, expandable segments or buffers of the "
    "largest size help.",
    'os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # before torch is imported\n'
    'buffer = torch.empty(largest, device="cuda")  # once',
)
_CLEAR = Mend(
    "buffers cleared one by one",
    "Clear them in one go: make them views of one buffer, or use torch._foreach_zero_. What is overwritten whole need "
    "not be cleared at all (torch.empty, zero_grad(set_to_none=True)).",
    'whole = torch.empty(total, device="cuda")\nparts = whole.split(sizes)  # once\nwhole.zero_()  # each step',
)


def _find(subject: Subject) -> Iterator[Finding]:
    calls = subject.steady(subject.named(subject.work.of(Category.CALL), lambda name: _CALL.match(name) is not None))
    # The first step may take what later ones keep.
    if subject.summary.step_count > 1:
        calls = calls[subject.work.step[calls] != subject.first_step]
    for group in subject.groups(calls, [""] * len(calls)):
        if subject.repeated_later(group.rows):
            yield _taken(subject, group)
    clears = _clears(subject)
    for group in subject.groups(clears, subject.op_names(clears)):
        if subject.repeated(group.rows) and subject.per_step(group.rows) >= _FEWEST:
            yield _cleared(subject, group)


def _taken(subject: Subject, group: Group) -> Finding:
    names = subject.raw_name(group.rows)
    steps = max(1, subject.summary.step_count - 1)
    kinds = ", ".join(f"{name} x {amount(names.count(name) / steps, 'ops')}" for name in dict.fromkeys(names))
    time = int(subject.duration(group.rows).sum()) / steps
    return Finding(
        RULE,
        subject.path(group.row),
        f"memory is taken from the driver and given back in steady state: {kinds}, {amount(time, 'cpu_ns')} a step",
        {"device_mallocs": len(names) / steps, "cpu_ns": time},
        subject.calls(group.row),
        subject.culprits(group.rows),
        subject.cost(group.rows, Change(subject.times(group.rows)), "replayed without these calls", steps=steps),
        _KEEP,
        group.rows,
    )


def _clears(subject: Subject) -> IntArray:
    """Memsets, and kernels that do nothing but fill, of `zero_`: what other ops clear for themselves is theirs."""
    work = subject.work
    fills = subject.steady(subject.named(work.of(Category.KERNEL), lambda name: "FillFunctor" in name))
    found = np.concatenate([subject.steady(work.of(Category.MEMSET)), fills])
    found = found[work.owner(found) >= 0]
    found = found[~subject.by_graph(found)]
    zeroed = np.array(["aten::zero_" in chain for chain in subject.chains(found)], dtype=np.bool_)
    return subject.steady(found[zeroed])


def _cleared(subject: Subject, group: Group) -> Finding:
    rows = group.rows
    count = len(rows) / subject.units
    first = np.unique(subject.work.step[rows], return_index=True)[1]
    others = np.delete(rows, first)
    cuts = [*subject.loop_cuts(rows), *(subject.span(row) for row in others.tolist())]
    return Finding(
        RULE,
        subject.path(group.row),
        f"{plural_of(count, 'buffer')} cleared one by one",
        {"memsets": count, "gpu_ns": int(subject.duration(rows).sum()) / subject.units},
        subject.calls(group.row),
        subject.culprits(rows),
        subject.cost(rows, Change(cuts, device=others), "replayed with the first of them alone"),
        _CLEAR,
        np.concatenate([rows, subject.call(rows)]),
    )


RULE = Rule(
    "TT07",
    "device-malloc",
    "Calls that take device or pinned memory from the driver or give it back (cudaMalloc, cudaFree, cudaHostAlloc) in "
    "most steps after the first; and 4 buffers and more cleared one by one, by zero_, in each step.",
    "cudaFree and cudaMalloc wait for the device and take up to a millisecond; a clear costs an op and a launch.",
    "Replayed without these calls; of buffers, with the first clear alone.",
    (
        _KEEP,
        _CLEAR,
    ),
    _find,
)
