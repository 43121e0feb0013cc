r"""Snapshots: the exact counts of a trace as small, sorted text to commit, a section for each environment.

    # tracetool snapshot 1

    environment
      gpu NVIDIA H200
      torch 2.11.0+cu130
      triton 3.6.0
      cuda 13.0
      records device compiles

    range train_step/h2d_batch
      calls 1 a step
      h2d_copies 17 a call
      syncs 3..5 a call

A metric that is not listed is 0, as far as the trace had it on record. Ops by name (`op_calls`) are listed where there
is no device, whose work says more. In names, a backslash stands before `\`, `/` and `*`; control characters are `\x0a`.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING

from tracetool import measuring
from tracetool.budgets import Bound, Relation
from tracetool.checking import Known, Outcome, Result, no_baseline_for
from tracetool.errors import BudgetError, SettingError
from tracetool.folding import STEP
from tracetool.metrics import METRICS, Needs, lookup, op_of
from tracetool.ranges import NO_RANGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.measuring import Target
    from tracetool.summary import Path, TraceSummary

HEADER = "# tracetool snapshot 1"

SETTINGS = ("gpu", "torch", "triton", "cuda")
"""What tells one environment from another."""

_RECORDS = {Needs.DEVICE: "device", Needs.MEMORY: "memory", Needs.COMPILES: "compiles"}
_BY_NAME = "op_calls"
_WORDS = (*_RECORDS.values(), _BY_NAME)
_ENTRY = re.compile(r"(.+) (\d{1,18})(?:\.\.(\d{1,18}))? a (call|step|trace)")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})|\\(.)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_PLAIN_SLASH = re.compile(r"(?<!\\)((?:\\\\)*)/")


@dataclass(frozen=True, slots=True)
class Entry:
    """A metric of a range: least and most of what it is for each call, step or trace."""

    least: int
    most: int
    per: str

    def __str__(self) -> str:
        """As it is written."""
        return f"{self.least if self.least == self.most else f'{self.least}..{self.most}'} a {self.per}"


Environment = tuple[tuple[str, str], ...]
"""Settings by name, those that are known."""
Counts = dict["Path", dict[str, Entry]]


@dataclass(frozen=True, slots=True)
class Section:
    """The counts of one environment.

    Attributes:
        environment: where they hold.
        records: what is on record besides ops and ranges: `device`, `memory`, `compiles`; `op_calls` for ops by name.
        ranges: by path without steps, by metric; what is not there is 0.
    """

    environment: Environment
    records: frozenset[str]
    ranges: Counts


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Sections by their environments."""

    sections: dict[Environment, Section]

    def with_section(self, section: Section) -> Snapshot:
        """The same with a section in the place of the one for its environment."""
        return Snapshot({**self.sections, section.environment: section})


def environment_of(summary: TraceSummary) -> Environment:
    """The settings that counts depend on, as far as a trace tells them; how many GPUs a host has is none of them."""
    told = summary.environment
    cuda = told.get("cuda", told.get("cuda_runtime_version"))
    gpu = re.sub(r"(^|, )\d+ x ", r"\1", told["gpu"]) if "gpu" in told else None
    values = {"gpu": gpu, "torch": told.get("torch"), "triton": told.get("triton"), "cuda": cuda}
    return tuple((name, value) for name in SETTINGS if (value := values[name]))


def environment_text(environment: Environment) -> str:
    """An environment in words."""
    return ", ".join(f"{name} {value}" if name != "gpu" else value for name, value in environment) or "unknown"


def _record_of(metric: str) -> str | None:
    """What has to be on record for a metric."""
    return _BY_NAME if op_of(metric) is not None else _RECORDS.get(lookup(metric).needs)


def take(summary: TraceSummary) -> Section:
    """The exact counts of a trace."""
    records = {word for needs, word in _RECORDS.items() if any(METRICS[one].needs is needs for one in summary.held)}
    records |= set() if _RECORDS[Needs.DEVICE] in records else {_BY_NAME}
    names = [name for name, metric in METRICS.items() if metric.exact and name in summary.metrics]
    counted = summary.counted()
    ranges: Counts = {}
    for target in measuring.targets(summary):
        some = {name for row in target.rows for name in counted[row]}
        entries = {
            name: _entry(summary, target, name)
            for name in (*names, *(summary.op_metrics if _BY_NAME in records else ()))
            if name in some and not (name == "calls" and target.path[-1] in (STEP, NO_RANGE))
        }
        if entries:
            ranges[target.path] = entries
    return Section(environment_of(summary), frozenset(records), ranges)


def _entry(summary: TraceSummary, target: Target, metric: str) -> Entry:
    """By call where all agree; else by step where all those agree; else least and most of the calls."""
    found = _by(summary, target, metric, "call")
    if found.least != found.most and found.per == "call" and summary.step_count:
        by_step = _by(summary, target, metric, "step")
        if by_step.per == "step" and by_step.least == by_step.most:
            return by_step
    return found


def _by(summary: TraceSummary, target: Target, metric: str, per: str) -> Entry:
    measured = measuring.measure(summary, target, metric, per=per)
    samples = measured.samples.tolist()
    return Entry(min(samples, default=0), max(samples, default=0), measured.per)


# Text ----------------------------------------------------------------------------------------------------------


def to_text(snapshot: Snapshot) -> str:
    """A snapshot as it is committed: the same for equal ones."""
    lines = [HEADER]
    for _, section in sorted(snapshot.sections.items()):
        lines += ["", "environment", *(f"  {name} {_escaped(value)}" for name, value in section.environment)]
        lines.append(f"  records {' '.join(sorted(section.records)) or 'nothing'}")
        for path, entries in sorted(section.ranges.items()):
            lines += ["", f"range {_path_text(path)}"]
            lines += [f"  {_escaped(metric)} {entry}" for metric, entry in sorted(entries.items())]
    return "\n".join(lines) + "\n"


def parse(text: str, source: str) -> Snapshot:
    """Read what `to_text` wrote.

    Raises:
        BudgetError: it is no snapshot, or a line of it cannot be read.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != HEADER:
        raise BudgetError(f"{source} is no snapshot: it begins with '{HEADER}'; tracetool snapshot makes one")
    sections: dict[Environment, Section] = {}
    for number, block in _blocks(lines, source):
        settings, ranges = _settings(block[1:], source, number), {}
        for line_number, path, entries in _ranges(block, source, number):
            if path in ranges:
                raise BudgetError(f"{source}, line {line_number}: the range is there twice; make the snapshot anew")
            ranges[path] = entries
        records = frozenset(settings.pop("records", "").split()) - {"nothing"}
        unknown = records - set(_WORDS)
        if unknown:
            raise BudgetError(f"{source}, line {number}: there is no record of '{min(unknown)}'; make it anew")
        environment = tuple((name, settings[name]) for name in SETTINGS if name in settings)
        if environment in sections:
            raise BudgetError(
                f"{source}, line {number}: two sections are for {environment_text(environment)}: leave one of them"
            )
        sections[environment] = Section(environment, records, ranges)
    return Snapshot(sections)


_Block = list[str]


def _blocks(lines: Sequence[str], source: str) -> Iterable[tuple[int, _Block]]:
    """The lines of each section, with the number of its first."""
    starts = [i for i, line in enumerate(lines) if line == "environment"]
    first = starts[0] if starts else len(lines)
    stray = next((i for i in range(1, first) if lines[i].strip() and not lines[i].startswith("#")), None)
    if stray is not None:
        raise BudgetError(f"{source}, line {stray + 1}: '{lines[stray]:.60}' stands before the first 'environment'")
    for begin, end in itertools.pairwise([*starts, len(lines)]):
        yield begin + 1, list(lines[begin:end])


def _settings(lines: Sequence[str], source: str, number: int) -> dict[str, str]:
    found: dict[str, str] = {}
    for offset, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if not line.startswith("  "):
            break
        name, _, value = line.strip().partition(" ")
        if name not in (*SETTINGS, "records") or not value or name in found:
            raise BudgetError(f"{source}, line {number + offset}: '{line.strip():.60}' is no setting of an environment")
        found[name] = _unescaped(value)
    return found


def _ranges(block: Sequence[str], source: str, number: int) -> Iterable[tuple[int, Path, dict[str, Entry]]]:
    entries: dict[str, Entry] | None = None
    for offset, line in enumerate(block):
        here = f"{source}, line {number + offset}"
        if line.startswith("range "):
            entries = {}
            yield number + offset, _path(line.removeprefix("range ")), entries
        elif line.startswith("  ") and entries is not None:
            match = _ENTRY.fullmatch(line.strip())
            if match is None:
                raise BudgetError(f"{here}: '{line.strip():.60}' is no count, as in 'h2d_copies 17 a call'")
            metric = _unescaped(match[1])
            try:
                lookup(metric)
            except SettingError as error:
                raise BudgetError(f"{here}: {error}") from None
            if metric in entries:
                raise BudgetError(f"{here}: {metric} is there twice; make the snapshot anew")
            entries[metric] = Entry(int(match[2]), int(match[3] or match[2]), match[4])
        elif line.strip() and not line.startswith("  ") and line != "environment":
            raise BudgetError(f"{here}: '{line:.60}' is neither a range nor a count")


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\\", r"\\"))


@lru_cache(maxsize=4096)
def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)) if match[1] else match[2], text)


def _path_text(path: Path) -> str:
    return "/".join(map(_name_text, path))


@lru_cache(maxsize=4096)
def _name_text(name: str) -> str:
    return re.sub(r"[/*]", r"\\\g<0>", _escaped(name))


def _path(text: str) -> Path:
    return tuple(_unescaped(name) for name in _PLAIN_SLASH.sub("\\1\0", text).split("\0"))


# Comparing -----------------------------------------------------------------------------------------------------


class SnapshotBaseline:
    """A section of a snapshot as the baseline of budgets.

    Args:
        section: which.
        source: the file, for messages.
    """

    def __init__(self, section: Section, source: str) -> None:
        self._section = section
        self._source = source

    def known(self, path: Path, metric: str, scope: str, per: str) -> Known | str:
        """Its numbers; or why it has none."""
        if path == measuring.WHOLE or scope == "self":
            what = "what ranges do themselves" if scope == "self" else "whole traces"
            return f"the snapshot {self._source} does not tell {what}: a trace as the baseline does"
        if path not in self._section.ranges:
            raise no_baseline_for(path, self._source)
        record = _record_of(metric)
        if record is not None and record not in self._section.records:
            what = "ops by name" if record == _BY_NAME else f"{lookup(metric).needs}"
            return f"the snapshot {self._source} has no {what} on record"
        entries = self._section.ranges[path]
        entry = entries.get(metric)
        if entry is None:
            return Known(0, 0)
        if entry.per == per:
            return Known(entry.least, entry.most)
        calls = entries.get("calls")
        if per == "step" and entry.per == "call" and calls and calls.per == "step" and entry.least == entry.most:
            return Known(entry.least * calls.least, entry.most * calls.most)
        return f"the snapshot {self._source} has it a {entry.per}, and the budget is a {per}"

    def times(self, path: Path, metric: str, scope: str, per: str) -> Sequence[int] | str:
        """No snapshot has any."""
        del path, metric, scope, per
        return f"the snapshot {self._source} holds no times: give a trace as the baseline"


def compare(summary: TraceSummary, section: Section, source: str) -> list[Outcome]:
    """Hold all exact counts of a trace against a snapshot's, range by range.

    Returns:
        An outcome for each count that either side has; for a range that only one side has, that of its calls alone.
        Where only one side has something on record, one outcome says that it was not checked.
    """
    now = take(summary)
    differing = now.records ^ section.records
    found = [_not_recorded(word, word in now.records, source) for word in sorted(differing - {_BY_NAME})]
    by_path = {target.path: target for target in measuring.targets(summary)}
    for path in [*now.ranges, *(path for path in section.ranges if path not in now.ranges)]:
        before, after = section.ranges.get(path, {}), now.ranges.get(path, {})
        metrics: Iterable[str] = dict.fromkeys([*before, *after])
        if not (before and after) and "calls" in (before or after):
            metrics = ["calls"]
        found += [
            _compared(summary, by_path.get(path), path, metric, before.get(metric), after.get(metric), source)
            for metric in metrics
            if _record_of(metric) not in differing
        ]
    return found


def _not_recorded(word: str, here: bool, source: str) -> Outcome:
    needs = next(one for one, each in _RECORDS.items() if each == word)
    names = [name for name, metric in METRICS.items() if metric.needs is needs and metric.exact]
    without, other = (source, "the trace") if here else ("the trace", source)
    return Outcome(
        measuring.WHOLE,
        names[0],
        "total",
        "trace",
        "snapshot",
        Bound(Relation.EXACTLY, Fraction(0)),
        Result.NOT_CHECKED,
        source,
        reason=f"{other} has {needs} on record, {without} has none (so for all {len(names)} metrics of it)",
    )


def _compared(
    summary: TraceSummary,
    target: Target | None,
    path: Path,
    metric: str,
    before: Entry | None,
    after: Entry | None,
    source: str,
) -> Outcome:
    per = (before or after or Entry(0, 0, "trace")).per
    samples: list[int] = [0]
    measured = None
    if target is not None:
        measured = measuring.measure(summary, target, metric, per=per)
        samples = measured.samples.tolist() or [0]
        per = measured.per
    low, high = (before.least, before.most) if before else (0, 0)
    same_per = before is None or before.per == per
    broken = [i for i, value in enumerate(samples) if not low <= value <= high]
    if not broken and (not same_per or (min(samples), max(samples)) != (low, high)):
        broken = list(range(len(samples)))
    worst = max(broken, key=lambda i: max(low - samples[i], samples[i] - high), default=0)
    limit = low if samples[worst] < low else high
    causes = measuring.causes(summary, target, measured, broken) if broken and target and measured else []
    return Outcome(
        path,
        metric,
        "total",
        per,
        "snapshot",
        Bound(Relation.EXACTLY, Fraction(high)),
        Result.BROKEN if broken else Result.HELD,
        source,
        limit=Fraction(limit),
        least=min(samples),
        most=max(samples),
        worst=samples[worst],
        samples=len(samples),
        broken=len(broken),
        causes=tuple(causes),
    )


def comparable_section(snapshot: Snapshot, environment: Environment, source: str, *, any_env: bool) -> Section | str:
    """The section that a trace is compared with, or why there is none, in words.

    Args:
        snapshot: what was committed.
        environment: the trace's.
        source: the snapshot's file.
        any_env: whether that of another environment will do: the one that shares most settings.
    """
    if environment in snapshot.sections:
        return snapshot.sections[environment]
    if any_env and snapshot.sections:
        return max(sorted(snapshot.sections.items()), key=lambda one: len(set(one[0]) & set(environment)))[1]
    there = " | ".join(environment_text(one) for one in sorted(snapshot.sections)) or "no environment"
    return f"not comparable: {source} holds for {there}, and this trace is of {environment_text(environment)}"
