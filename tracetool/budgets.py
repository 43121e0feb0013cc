"""Budgets: bounds on the metrics of ranges, as TOML or a marker writes them.

    [[budgets]]
    range = "decode_step/h2d_block_tables"
    per = "call"
    h2d_copies = 1
    h2d_bytes = "<= 64 KiB"
    "self.syncs" = 0
    kernel_launches = "<= baseline * 1.05"
    allow = [{ op = "aten::copy_", line = "sampler.py:40", metric = "h2d_copies", reason = "the ids come back" }]

A number alone is exact. `self.` counts what a range does directly, without the ranges in it.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tracetool.amounts import NANOSECONDS
from tracetool.errors import BudgetError, SettingError, nearest
from tracetool.globs import PathGlob, name_glob
from tracetool.metrics import Metric, Unit, lookup, op_calls
from tracetool.project import ours, parsed

PER = ("call", "step", "trace")
"""What a budget can be for."""

_OWN = ("range", "per", "allow")
_PLACES = ("op", "line")
_SELF = "self."

_NUMBER = r"(?P<number>\d[\d_,]{0,40}(?:\.\d{1,40})?)"
_BOUND = re.compile(
    rf"\s*(?P<relation><=|>=|==|<|>|=)?\s*(?:(?P<baseline>baseline)(?:\s*\*\s*(?P<factor>\d{{1,40}}(?:\.\d{{1,40}})?))?"
    rf"|{_NUMBER}\s*(?P<unit>[A-Za-z]+)?)\s*"
)
_UNITS: dict[Unit, dict[str, int]] = {
    Unit.COUNT: {},
    Unit.BYTES: {
        "B": 1,
        **{f"{letter}B": 1000**power for power, letter in enumerate("kMGT", 1)},
        **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGT", 1)},
    },
    Unit.NS: dict(NANOSECONDS),
}


class Relation(enum.StrEnum):
    """How a number has to stand to its limit."""

    EXACTLY = "="
    AT_MOST = "<="
    AT_LEAST = ">="
    BELOW = "<"
    ABOVE = ">"

    def holds(self, value: Fraction | float, limit: Fraction | float) -> bool:
        """Whether a number stands so."""
        return {
            Relation.EXACTLY: value == limit,
            Relation.AT_MOST: value <= limit,
            Relation.AT_LEAST: value >= limit,
            Relation.BELOW: value < limit,
            Relation.ABOVE: value > limit,
        }[self]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a number may be.

    Attributes:
        relation: to the limit.
        number: the limit, in the metric's unit (bytes, nanoseconds or a count); for a relative bound the factor on the
            baseline's number.
        relative: whether the limit is the baseline's number times `number`.
    """

    relation: Relation
    number: Fraction
    relative: bool = False

    def limit(self, baseline: Fraction) -> Fraction:
        """The limit, given the baseline's number."""
        return self.number * baseline if self.relative else self.number


@dataclass(frozen=True, slots=True)
class Allowance:
    """Work that a budget does not count, and why.

    Attributes:
        op: a pattern over the names of ops; None for any.
        line: the end of a source line, `block_tables.py:88`; None for any.
        metric: the one metric that it is for; None for all.
        reason: why.
    """

    reason: str
    op: str | None = None
    line: str | None = None
    metric: str | None = None

    def fits(self, op: str, line: str) -> bool:
        """Whether it is for work of this op, called at this line (empty where that is not known)."""
        if self.op is not None and name_glob(self.op).fullmatch(op) is None:
            return False
        return self.line is None or line == self.line or line.endswith(f"/{self.line}")

    @property
    def place(self) -> str:
        """What it is for: `aten::copy_ at sampler.py:40`."""
        return " ".join(filter(None, [self.op, self.line and f"at {self.line}"]))


@dataclass(frozen=True, slots=True)
class Budget:
    """A bound on one metric of the ranges that a pattern fits.

    Attributes:
        pattern: as `PathGlob` has it; empty for the whole trace.
        metric: what is bounded.
        scope: `total`, or `self`: without the ranges inside.
        per: one of `PER`.
        bound: what its numbers may be.
        allowed: what is not counted.
        source: who says so: a file, or a marker of a test.
    """

    pattern: str
    metric: Metric
    scope: str
    per: str
    bound: Bound
    allowed: tuple[Allowance, ...]
    source: str

    @property
    def place(self) -> str:
        """Where it is written, for messages."""
        return f"{self.source}: {_range_words(self.pattern)}: {_SELF * (self.scope == 'self')}{self.metric.name}"


def parse_toml(text: str, source: str) -> list[Budget]:
    """The budgets of a TOML file: of its tables `[[budgets]]`, or of `[[tool.tracetool.budgets]]` in a pyproject.toml.

    Args:
        text: its content.
        source: what messages call it.

    Returns:
        None of them where it is a pyproject.toml without budgets.

    Raises:
        BudgetError: it is no TOML, or something in it is no budget.
    """
    content = parsed(text, source, BudgetError)
    project = "tool" in content or "project" in content
    if project:
        tables = ours(content).get("budgets", [])
        header = "[[tool.tracetool.budgets]]"
    else:
        header = "[[budgets]]"
        unknown = next((key for key in content if key != "budgets"), None)
        if unknown is not None:
            raise BudgetError(f"{source} has {unknown!r}, which is not known there: budgets are tables {header}")
        tables = content.get("budgets", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise BudgetError(f"{source}: budgets are tables {header}, one for each range")
    if not tables and not project:
        raise BudgetError(f"{source} has no budgets: write at least one table {header} with a range and a metric")
    return [budget for table in tables for budget in parse_table(table, source)]


def parse_table(table: Mapping[str, Any], source: str) -> list[Budget]:
    """The budgets of one range: its pattern under `range`, `per`, `allow`, and metrics with their bounds.

    Args:
        table: as TOML gives it; `self` and `op_calls` may be tables of their own.
        source: what messages call the place where it stands.

    Raises:
        BudgetError: something in it is no budget.
    """
    pattern = table.get("range", "")
    if not isinstance(pattern, str):
        raise BudgetError(f"{source}: a budget's range is a pattern in quotes, but is {pattern!r:.60}")
    where = f"{source}: {_range_words(pattern)}"
    if "range" in table:
        try:
            PathGlob(pattern)
        except SettingError as error:
            raise BudgetError(f"{source}: {error}") from None
    per = table.get("per", "call" if pattern else "trace")
    if per not in PER:
        raise BudgetError(f"{where}: per is one of {', '.join(PER)}, but is {per!r:.60}")
    if per == "call" and not pattern:
        raise BudgetError(f"{where}: a whole trace has no calls: say per = 'step' or 'trace', or name a range")
    allowed = _allowances(table.get("allow", []), where)
    settings = {key: value for key, value in table.items() if key not in _OWN}
    found = [
        _budget(pattern, name, value, per, allowed, source, where) for name, value in _flat(settings, where).items()
    ]
    if not found:
        raise BudgetError(f"{where}: it bounds nothing: name a metric and its bound, as in h2d_copies = 1")
    return found


def _range_words(pattern: str) -> str:
    return f"budget of range '{pattern}'" if pattern else "budget of the whole trace"


def _flat(settings: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Bounds by names of metrics, of which some begin with `self.`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            named = {key: value}
        elif key == "self":
            named = {f"{_SELF}{name}": one for name, one in _flat(value, where).items()}
        elif key in ("op_calls", "self.op_calls"):
            named = {f"{key.removesuffix('op_calls')}{op_calls(name)}": one for name, one in value.items()}
        else:
            raise BudgetError(f"{where}: {key} is a table, but a bound is a number or text, as in '<= 140'")
        twice = next((name for name in named if name in found), None)
        if twice is not None:
            raise BudgetError(f"{where}: {twice} is bounded twice: leave one of them")
        found.update(named)
    return found


def _budget(
    pattern: str, name: str, value: object, per: str, allowed: tuple[Allowance, ...], source: str, where: str
) -> Budget:
    try:
        metric = lookup(name.removeprefix(_SELF))
        bound = parse_bound(metric, value)
    except SettingError as error:
        raise BudgetError(f"{where}: {error}") from None
    if not pattern and (metric.name == "calls" or not metric.exact):
        raise BudgetError(f"{where}: {metric.name} is a range's, and not a whole trace's: name a range")
    mine = tuple(one for one in allowed if one.metric in (None, metric.name))
    if mine and not metric.additive:
        raise BudgetError(f"{where}: {metric.name} is no sum of what ops do, so nothing of it can be allowed")
    return Budget(pattern, metric, "self" if name.startswith(_SELF) else "total", per, bound, mine, source)


def parse_bound(metric: Metric, value: object) -> Bound:
    """A bound as it is written: 1, "<= 140", "<= 64 KiB", ">= 100", "<= baseline * 1.05".

    Raises:
        BudgetError: it cannot be read, or its unit is not the metric's.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    match = _BOUND.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise BudgetError(
            f"{metric.name} = {value!r:.60} is no bound: write a number, or text like '<= 140', '>= 100', '<= 64 KiB' "
            "or '<= baseline * 1.05'"
        )
    relation = Relation((match["relation"] or "=").replace("==", "="))
    if match["baseline"]:
        return _checked(metric, Bound(relation, Fraction(match["factor"] or 1), relative=True), value)
    number = Fraction(re.sub("[_,]", "", match["number"]))
    if unit := match["unit"]:
        units = _UNITS[metric.unit]
        if unit not in units:
            kind = f"is counted in {', '.join(units)}" if units else "is a count, which has no unit"
            raise BudgetError(f"{metric.name} = {value!r:.60}: {metric.name} {kind}, not {unit!r}")
        number *= units[unit]
    return _checked(metric, Bound(relation, number), value)


def _checked(metric: Metric, bound: Bound, value: object) -> Bound:
    if not metric.exact and bound.relation is Relation.EXACTLY:
        raise BudgetError(f"{metric.name} = {value!r:.60}: a time is never exact: bound it with '<=' or '>='")
    if metric.exact and not bound.relative and bound.number.denominator != 1:
        raise BudgetError(f"{metric.name} = {value!r:.60} is no whole number of {metric.unit.value}")
    return bound


def _allowances(entries: object, where: str) -> tuple[Allowance, ...]:
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise BudgetError(f"{where}: allow is a list of tables, as in [{{ op = 'aten::copy_', reason = '...' }}]")
    return tuple(_allowance(entry, where) for entry in entries)


def _allowance(entry: object, where: str) -> Allowance:
    if not isinstance(entry, Mapping) or not all(isinstance(value, str) for value in entry.values()):
        raise BudgetError(f"{where}: each entry of allow is a table of texts with op or line, and a reason")
    known = (*_PLACES, "metric", "reason")
    unknown = next((key for key in entry if key not in known), None)
    if unknown is not None:
        raise BudgetError(f"{where}: allow has no setting {unknown!r}: {nearest(str(unknown), known)}")
    if not any(entry.get(key) for key in _PLACES):
        raise BudgetError(f"{where}: an entry of allow names what it is for: an op, a line (file.py:88) or both")
    if not str(entry.get("reason", "")).strip():
        raise BudgetError(f"{where}: an entry of allow says why, in reason = '...'")
    try:
        name_glob(entry.get("op", ""))
        if "metric" in entry:
            lookup(entry["metric"])
    except SettingError as error:
        raise BudgetError(f"{where}: allow: {error}") from None
    return Allowance(entry["reason"], entry.get("op"), entry.get("line"), entry.get("metric"))
