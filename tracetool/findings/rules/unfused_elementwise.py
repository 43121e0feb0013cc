"""TT06: runs of tiny elementwise kernels."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount, plural_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.events import IntArray
    from tracetool.findings.subject import Subject

_POINTWISE = re.compile(
    r"elementwise_kernel|indexSelect|index_elementwise|FillFunctor|CatArrayBatchedCopy|scatter_gather", re.DOTALL
)
_SHORTEST = 3
_FEWEST = 5
_TINY_NS = 10_000

_MEND = Mend(
    "",
    "Fuse the run into one kernel: torch.compile does it for what stands in one function, a Triton kernel for what "
    "needs indices of its own. Often there is one op for the formula already (F.gelu, torch.addcmul, "
    "torch._foreach_*).",
    "@torch.compile\ndef activation(x):\n    return 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * x**3)))",
)


def _find(subject: Subject) -> Iterator[Finding]:
    # Whatever else is launched ends a run, in a graph that is being captured too.
    launches = subject.launches
    kernels = subject.kernels_of(launches)
    runs: dict[int, list[IntArray]] = defaultdict(list)
    for run in _runs(subject, launches, kernels):
        runs[int(subject.row(run[:1])[0])].append(run)
    for row, found in runs.items():
        rows = np.concatenate(found)
        if subject.repeated(rows) and subject.per_step(rows) >= _FEWEST:
            yield _finding(subject, row, found, rows)


def _runs(subject: Subject, launches: IntArray, kernels: dict[int, list[int]]) -> Iterator[IntArray]:
    """Launches one after the other in one run of a range, each of one tiny pointwise kernel, by different ops."""
    current: list[int] = []
    before = (-1, -1)
    threads = subject.work.thread[launches].tolist()
    for launch, slot, thread in zip(launches.tolist(), subject.slot(launches).tolist(), threads, strict=True):
        owned = kernels[launch]
        fits = len(owned) == 1 and _pointwise(subject, owned[0])
        if (slot, thread) != before or not fits:
            if len(current) >= _SHORTEST:
                yield np.array(current, dtype=np.int64)
            current = []
        before = (slot, thread)
        if fits:
            current.append(launch)
    if len(current) >= _SHORTEST:
        yield np.array(current, dtype=np.int64)


def _pointwise(subject: Subject, kernel: int) -> bool:
    rows = np.array([kernel])
    return _POINTWISE.search(subject.raw_name(rows)[0]) is not None and int(subject.duration(rows)[0]) <= _TINY_NS


def _finding(subject: Subject, row: int, runs: list[IntArray], rows: IntArray) -> Finding:
    kernels = subject.kernels_of(rows)
    others = np.concatenate([run[1:] for run in runs])
    cuts = [subject.span(one) for one in others.tolist()]
    gone = np.array([kernel for one in others.tolist() for kernel in kernels[one]], dtype=np.int64)
    every = np.array([kernel for one in rows.tolist() for kernel in kernels[one]], dtype=np.int64)
    count, many = len(rows) / subject.units, len(runs) / subject.units
    time = int(subject.duration(every).sum()) / subject.units
    return Finding(
        RULE,
        subject.path(row),
        f"{plural_of(count, 'elementwise or indexing kernel')} in {plural_of(many, 'run')} of "
        f"{amount(count / many, 'ops')}, {amount(time / count, 'gpu_ns')} each on the device",
        {"kernel_launches": count, "gpu_ns": time},
        subject.calls(row),
        subject.culprits(rows),
        subject.cost(
            rows, Change(cuts, device=gone), "replayed with the first kernel of each run in the place of the run"
        ),
        _MEND,
        rows,
    )


RULE = Rule(
    "TT06",
    "unfused-elementwise",
    "Three and more launches in a row, in one call of a range, of elementwise or indexing kernels of ATen that take at "
    "most 10 us each; five such kernels a step and more.",
    "Each costs an op, a launch and a pass over memory, where one kernel would do all of it in registers.",
    "Replayed with the first kernel of each run in the place of the run.",
    (_MEND,),
    _find,
)
