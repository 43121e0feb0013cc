"""TT11: the device idles at the beginning of a step while the host prepares its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import DEVICE_WORK
from tracetool.findings.finding import Finding, Mend, Rule
from tracetool.findings.whatif import Change
from tracetool.findings.wording import amount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.findings.subject import Subject

_LEAST_SHARE = 0.02
_MOST_OF_IDLE = 0.5
"""Where the device idles longer for other reasons, the host is late with everything, and early input is no help."""

_OPTIMIZER = "Optimizer."
"""What `torch.optim` names its ranges: zero_grad at the beginning of a step prepares no input."""

_MEND = Mend(
    "",
    "Prepare the next step's input while the device works on this one: DataLoader with num_workers > 0, pin_memory and "
    "persistent_workers, or a thread with a queue. What is prepared from the step before can stay on the device "
    "instead.",
    "loader = DataLoader(data, batch_size, num_workers=4, pin_memory=True, persistent_workers=True)\n"
    "for batch in loader:\n"
    '    model(batch.to("cuda", non_blocking=True))',
)


def _find(subject: Subject) -> Iterator[Finding] | str:
    if not subject.summary.step_count:
        return "it takes profiler steps to tell the beginning of a step"
    return _found(subject)


def _found(subject: Subject) -> Iterator[Finding]:
    summary = subject.summary
    work = np.stack([summary.total(name) for name in ("kernels", "copies", "memsets")]).sum(axis=0)
    for row in range(summary.outside_row):
        outermost = summary.parent(row) < 0 or work[summary.parent(row)]
        if work[row] or not outermost or summary.ambiguous[row] or summary.paths[row][-1].startswith(_OPTIMIZER):
            continue
        spans = [span for span in subject.runs(row) if subject.begins_step(*span)]
        if len(spans) * 2 <= summary.step_count:
            continue
        device = subject.steady(subject.work.of(*DEVICE_WORK))
        time = sum(end - start for start, end in spans)
        idle = (time - subject.busy_between(spans, device)) / subject.units
        least = max(_LEAST_SHARE * subject.step_ns, _MOST_OF_IDLE * (subject.step_ns - subject.busy_ns))
        if not subject.step_ns or idle <= 0 or idle < least:
            continue
        share = idle / subject.step_ns
        yield Finding(
            RULE,
            subject.path(row),
            f"the device idles {amount(idle, 'cpu_ns')} at the beginning of a step, {share:.0%} of it, while the host "
            f"prepares what it works on",
            {"cpu_ns": time / subject.units},
            subject.calls(row),
            (),
            subject.cost(
                np.empty(0, dtype=np.int64),
                Change(spans),
                "replayed without the time of this range before the first launch of each step, as if it were prepared "
                "meanwhile",
            ),
            _MEND,
            np.empty(0, dtype=np.int64),
        )


RULE = Rule(
    "TT11",
    "input-wait",
    "A range without device work before a step's first launch, in most steps, during which the device idles for 2 % of "
    "the step and more, and no longer in all the rest of it.",
    "Nothing runs on the device until the input is there, and the host could have made it while the step before ran.",
    "Replayed without the time of the range before the first launch of each step, as if it were prepared meanwhile.",
    (_MEND,),
    _find,
)
