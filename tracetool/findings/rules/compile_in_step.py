"""TT04: compiles, compile-cache hits and autotuning after the first step."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from tracetool.events import Category
from tracetool.findings.finding import Cost, Culprit, Finding, Mend, Rule
from tracetool.findings.wording import amount, plural_of
from tracetool.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tracetool.events import IntArray
    from tracetool.findings.subject import Group, Subject

_RECOMPILE = Mend(
    "a kernel compiled again",
    "Name the arguments that change in do_not_specialize, and annotate those that can pass 2**31 as int64: then one "
    "kernel serves every value. What torch.compile compiles anew takes dynamic=True or mark_dynamic for the dimension "
    "that varies.",
    '@triton.jit(do_not_specialize=["num_tokens", "stride_t"])\n'
    "def kernel(x_ptr, num_tokens, stride_t, BLOCK: tl.constexpr): ...",
)
_WARM = Mend(
    "the first use of a kernel in a later step",
    "Run every kernel once with every kind of argument before the loop, as a warm-up of the server does, so that no "
    "request pays for it. Triton's cache on disk then makes it short in the next process.",
    "for batch_size in warm_sizes:\n    model(example(batch_size))\ntorch.cuda.synchronize()",
)
_TUNE = Mend(
    "an autotuner that runs",
    "Tune once, before the loop, and key the tuner by what the best launch depends on, in classes: a number that "
    "changes in each step makes a key of its own each time. Or write the parameters that it chose into the launch.",
    'tuned = triton.autotune(configs, key=["HEAD_DIM", "tokens_class"])(kernel)\n'
    "tuned[grid](..., num_tokens, tokens_class=triton.next_power_of_2(num_tokens))",
)
_FEWEST_STEPS = 2


def _find(subject: Subject) -> Iterable[Finding] | str:
    if not subject.summary.holds("compiles"):
        return f"the trace has no {METRICS['compiles'].needs}"
    if subject.summary.step_count < _FEWEST_STEPS:
        return "it takes profiler steps, two at least, to tell the first use of a kernel from later ones"
    return _found(subject)


def _found(subject: Subject) -> Iterator[Finding]:
    compiles = subject.steady(subject.work.of(Category.COMPILE))
    keys: dict[str, set[str]] = defaultdict(set)
    names = subject.raw_name(compiles)
    again = np.zeros(len(compiles), dtype=np.bool_)
    first_step = subject.first_step
    for place, (name, step) in enumerate(zip(names, subject.work.step[compiles].tolist(), strict=True)):
        again[place] = name in keys or step != first_step
        keys[name].add("")
    late = compiles[again]
    hit = subject.events.cache_hit.at(subject.work.event[late], 0) == 1
    for chosen, which in ((late[~hit], "compiled"), (late[hit], "loaded from the disk cache")):
        for group in subject.groups(chosen, subject.raw_name(chosen)):
            yield _compiled(subject, group, compiles, which)
    tunings = subject.steady(subject.work.of(Category.AUTOTUNE))
    tunings = tunings[subject.work.step[tunings] != first_step]
    for group in subject.groups(tunings, subject.raw_name(tunings)):
        yield _tuned(subject, group)


def _compiled(subject: Subject, group: Group, compiles: IntArray, which: str) -> Finding:
    same = compiles[np.array([name == group.name for name in subject.raw_name(compiles)], dtype=np.bool_)]
    told = [subject.events.names[i] if i >= 0 else "" for i in subject.compiled_for(same)]
    differing = _differing(told)
    count = len(group.rows)
    what = f"{group.name} is {which} {plural_of(count, 'time')} after its first use or the first step"
    if differing:
        what += f"; its keys differ in {', '.join(differing)}"
    elif len(same) > count and any(told):
        what += (
            "; its keys do not differ in the types of its arguments: in a value that it was specialised for (1, or "
            "a multiple of 16)"
        )
    metric = "compiles" if which == "compiled" else "compile_cache_hits"
    stalls = [subject.until_launch(row) for row in group.rows.tolist()]
    again = len(same) > 1
    return Finding(
        RULE,
        subject.path(group.row),
        what,
        {metric: count / subject.units, "compile_ns": int(subject.duration(group.rows).sum()) / subject.units},
        subject.calls(group.row),
        _culprits(subject, group),
        Cost(
            subject.covered(stalls) / subject.units,
            f"from each of these compiles to the launch after it, over {plural_of(subject.units, 'step')}: each key "
            "costs it once in a process",
        ),
        _RECOMPILE if again else _WARM,
        group.rows,
    )


def _tuned(subject: Subject, group: Group) -> Finding:
    count, time = len(group.rows), int(subject.duration(group.rows).sum())
    return Finding(
        RULE,
        subject.path(group.row),
        f"{group.name} is tuned {plural_of(count, 'time')} after the first step, "
        f"{amount(time / count, 'autotune_ns')} each",
        {"autotunes": count / subject.units, "autotune_ns": time / subject.units},
        subject.calls(group.row),
        _culprits(subject, group),
        Cost(
            time / subject.units,
            f"the time of these runs, over {plural_of(subject.units, 'step')}: each key costs it once in a process",
        ),
        _TUNE,
        group.rows,
    )


def _culprits(subject: Subject, group: Group) -> tuple[Culprit, ...]:
    [(_, place), *_] = subject.summary.places(group.rows[:1])
    return (Culprit(group.name, place, len(group.rows) / subject.units),)


def _differing(told: list[str]) -> list[str]:
    """Arguments whose type, or being a multiple of 16, is not the same in all keys."""
    kinds: dict[str, set[str]] = defaultdict(set)
    parsed = []
    for text in told:
        signature, _, multiples = text.partition(" | ")
        divisible = {name.strip() for name in multiples.split(",")}
        pairs = [pair.partition(": ") for pair in signature.split(", ") if pair]
        parsed.append({name: f"{kind}{' /16' if name in divisible else ''}" for name, _, kind in pairs})
    for one in parsed:
        for name, kind in one.items():
            kinds[name].add(kind)
    return [f"{name} ({', '.join(sorted(found))})" for name, found in kinds.items() if len(found) > 1]


RULE = Rule(
    "TT04",
    "compile-in-step",
    "Kernels compiled, or loaded from the compile cache, and autotuners that run, after the first step or for a kernel "
    "that was compiled in the window already; with the arguments in which the keys differ.",
    "A step that meets a new key stands still for the compile, tens of milliseconds to seconds, while the device "
    "idles.",
    "From each compile to the launch after it, or the time of each tuning run, over all steps of the trace.",
    (
        _RECOMPILE,
        _WARM,
        _TUNE,
    ),
    _find,
    needs_device=False,
)
