"""Captures and times the variants of a program, each in processes of its own, and lays them side by side.

Traces say what is done; how long it takes is measured apart, without a profiler, whose tax on every call would decide
the comparison. Each variant runs in several processes, in turn with the others, so that what differs from process to
process, and from minute to minute, is seen as the noise that it is.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tracetool.capturing.jobs import Job
from tracetool.capturing.options import ENDING
from tracetool.chrome import read
from tracetool.differ import TraceDiff, diff
from tracetool.errors import CaptureError, SettingError, TracetoolError
from tracetool.processes import Processes
from tracetool.summary import summarize
from tracetool.unprofiled import Times, times_beside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tracetool.summary import TraceSummary

STEPS_PER_SAMPLE = 10
WARM_STEPS = 10


@dataclass(frozen=True, slots=True)
class Variation:
    """Something that is varied, and its values: an axis of a workload, a variable (`env:`) or a flag (`arg:`)."""

    kind: str
    name: str
    values: tuple[str, ...]


def variation(text: str) -> Variation:
    """Read `axis=a,b`, `env:NAME=a,b` or `arg:--flag=a,b`.

    Raises:
        SettingError: it is none of these.
    """
    name, equals, values = text.partition("=")
    kind, colon, rest = name.partition(":")
    if not colon:
        kind, rest = "axis", name
    if kind not in {"axis", "env", "arg"} or not (equals and rest):
        raise SettingError(f"--vary {text} is not AXIS=A,B, env:NAME=A,B or arg:--FLAG=A,B")
    each = tuple(dict.fromkeys(value.strip() for value in values.split(",")))
    return Variation(kind, rest, each)


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination.

    Attributes:
        label: What it is called.
        settings: Values of a workload's axes.
        environment: Variables that it has besides.
        arguments: Of the program.
    """

    label: str
    settings: dict[str, str]
    environment: dict[str, str]
    arguments: tuple[str, ...]


def combinations(
    variations: Sequence[Variation], settings: Mapping[str, str], arguments: Sequence[str]
) -> list[Variant]:
    """Every combination of values, the first of each first.

    Raises:
        SettingError: there are not two, or something is varied twice or set as well.
    """
    names = [(one.kind, one.name) for one in variations]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SettingError(f"--vary {twice[1]} is given twice; name all its values in one")
    found = []
    for values in itertools.product(*(one.values for one in variations)):
        chosen = list(zip(variations, values, strict=True))
        axes = {one.name: value for one, value in chosen if one.kind == "axis"}
        clash = next((name for name in axes if name in settings), None)
        if clash is not None:
            raise SettingError(
                f"{clash} is varied, so --set {clash}={settings[clash]} cannot hold; leave out one of them"
            )
        flags = [word for one, value in chosen if one.kind == "arg" for word in (one.name, value)]
        label = values[0] if len(values) == 1 else " ".join(f"{one.name}={value}" for one, value in chosen)
        found.append(
            Variant(
                label,
                {**settings, **axes},
                {one.name: value for one, value in chosen if one.kind == "env"},
                (*arguments, *flags),
            )
        )
    if len(found) < 2:
        raise SettingError("a comparison needs two variants at least: give --vary NAME=A,B")
    return found


@dataclass
class Measured:
    """What came of a variant.

    Attributes:
        samples: Nanoseconds a step, by process.
        result: What its steps came to, where the workload says so.
        eager: Settings of its twin without CUDA graphs, where the workload names one.
        trace: Where its trace is, once it is there.
        failure: Why there is no more, in a sentence.
    """

    variant: Variant
    samples: list[list[int]] = field(default_factory=list)
    result: Any = None
    eager: dict[str, str] | None = None
    trace: Path | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run.

    Attributes:
        target: As `tracetool capture` takes it, and `module`.
        rounds: Processes of each variant that are timed.
        samples: Times that each takes.
        folder: Where traces go.
        window: Fields of a `Window`, if one is asked for.
        options: Fields of `CaptureOptions`.
    """

    target: str
    module: bool
    rounds: int
    samples: int
    folder: Path
    window: dict[str, int]
    options: dict[str, bool]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        diff: The traces laid side by side; None where fewer than two came.
        speeds: How long steps take unprofiled, of the variants that were timed; the baseline first.
        results: Whether all variants that say so came to the same; None where none says.
        different: Labels of variants whose result is not the baseline's.
        failures: Why variants failed, by label.
        ungiven: Why the work of a variant's CUDA graphs stays with their launches, by label.
        traces: Where traces are, by label.
        notes: Why processes were not forked though the workload preloads.
    """

    diff: TraceDiff | None
    speeds: list[Times]
    results: bool | None
    different: list[str]
    failures: dict[str, str]
    ungiven: dict[str, str]
    traces: dict[str, Path]
    notes: list[str]


def run(
    plan: Plan, variants: Sequence[Variant], *, force: bool, progress: Callable[[str], None] | None = None
) -> Comparison:
    """Time and capture all variants, then compare.

    Args:
        plan: What is run.
        variants: The baseline first.
        force: Whether traces that exist may be replaced.
        progress: Told what runs.

    Raises:
        SettingError: a trace exists already.
        CaptureError: nothing came of the baseline.
    """
    measured = [Measured(variant) for variant in variants]
    paths = _trace_paths(plan.folder, variants, force=force)
    plan.folder.mkdir(parents=True, exist_ok=True)
    say = progress or (lambda _: None)
    with Processes() as processes:
        for turn in range(plan.rounds):
            # Each round begins with another variant, so that nobody is always first after the one before.
            for i in range(len(measured)):
                one = measured[(i + turn) % len(measured)]
                if one.failure is None:
                    say(f"round {turn + 1} of {plan.rounds}: {one.variant.label}")
                    _measure(plan, one, None, processes)
            # What forks share differs from round to round.
            processes.renew()
        for one, path in zip(measured, paths, strict=True):
            if one.failure is None:
                say(f"capture: {one.variant.label}")
                _measure(plan, one, path, processes)
        if measured[0].trace is None:
            raise CaptureError(f"the baseline {measured[0].variant.label} failed: {measured[0].failure}")
        counted = _count(plan, measured, say, processes)
    say("")
    return _compare(measured, counted, processes.notes)


def _trace_paths(folder: Path, variants: Sequence[Variant], *, force: bool) -> list[Path]:
    names = [re.sub(r"[^\w.=-]+", "_", variant.label) for variant in variants]
    paths = [folder / f"{name}{ENDING}" for name in names]
    there = next((path for path in paths if path.exists()), None)
    if there is not None and not force:
        raise SettingError(f"{there} exists already; name another folder with --traces, or --force overwrites it")
    return paths


def _measure(plan: Plan, one: Measured, trace: Path | None, processes: Processes) -> None:
    """Run a process for a variant, and take what it answers."""
    job = Job(
        target=plan.target,
        arguments=list(one.variant.arguments),
        module=plan.module,
        settings=one.variant.settings,
        warm_steps=WARM_STEPS if trace is None else 0,
        samples=plan.samples if trace is None else 0,
        steps_per_sample=STEPS_PER_SAMPLE,
        trace=None if trace is None else str(trace),
        window=plan.window,
        options=plan.options,
        earlier_samples=one.samples,
    )
    try:
        answer = processes.do(job, one.variant.environment)
    except CaptureError as error:
        one.failure = str(error)
        return
    if trace is None:
        one.samples.append(answer.samples)
    else:
        one.trace, one.result, one.eager = trace, answer.result, answer.eager


@dataclass(frozen=True, slots=True)
class _Counted:
    """Summaries of the variants' traces, and why graphs' work could not be given back, by label."""

    summaries: dict[str, TraceSummary]
    ungiven: dict[str, str]


def _count(plan: Plan, measured: Sequence[Measured], say: Callable[[str], None], processes: Processes) -> _Counted:
    """Count the traces; where there are CUDA graphs, with the ranges of an eager twin, which is captured too."""
    found = _Counted({}, {})
    for one in measured:
        if one.trace is None:
            continue
        label, trace = one.variant.label, read(str(one.trace))
        summary = summarize(trace)
        found.summaries[label] = summary
        if not summary.totals.get("graph_launches"):
            continue
        say(f"capture: {label}, without graphs")
        try:
            given = summarize(trace, ranges_from=_eager_twin(plan, one, one.trace, processes))
        except TracetoolError as error:
            found.ungiven[label] = str(error)
            continue
        found.summaries[label] = given
        if given.replays is not None and given.replays.given < given.replays.pieces:
            left = given.replays.pieces - given.replays.given
            found.ungiven[label] = f"{left:,} of {given.replays.pieces:,} pieces do not line up with the eager twin"
    return found


def _eager_twin(plan: Plan, one: Measured, trace: Path, processes: Processes) -> TraceSummary:
    if one.eager is None:
        raise CaptureError("the workload names no twin without graphs")
    path = trace.with_name(trace.name.removesuffix(ENDING) + ".eager" + ENDING)
    twin = Measured(replace(one.variant, settings=one.eager))
    _measure(plan, twin, path, processes)
    if twin.failure is not None:
        raise CaptureError(f"its twin without graphs failed: {twin.failure}")
    return summarize(read(str(path)))


def _compare(measured: Sequence[Measured], counted: _Counted, notes: list[str]) -> Comparison:
    there = [one for one in measured if one.trace is not None]
    labels, summaries = list(counted.summaries), list(counted.summaries.values())
    baseline = measured[0]
    told = [one for one in there if one.result is not None]
    different = [one.variant.label for one in told if one.result != baseline.result]
    return Comparison(
        diff=diff(*summaries, labels=labels) if len(there) > 1 else None,
        speeds=times_beside([(one.variant.label, one.samples) for one in measured if one.samples]),
        results=None if not told else not different,
        different=different,
        failures={one.variant.label: one.failure for one in measured if one.failure is not None},
        ungiven=counted.ungiven,
        traces={one.variant.label: one.trace for one in there if one.trace is not None},
        notes=notes,
    )
