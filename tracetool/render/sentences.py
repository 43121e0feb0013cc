"""What came of budgets in sentences: the same in a terminal, in pytest and in a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetool.budgets import Relation
from tracetool.checking import Result
from tracetool.folding import STEP
from tracetool.metrics import Unit, lookup
from tracetool.ranges import NO_RANGE
from tracetool.render.words import clean, number, path_text, plural

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from fractions import Fraction

    from tracetool.checking import Check, Outcome
    from tracetool.summary import Path

_TOLD = 3
_SUMS = {"copies": "_copies", "copy_bytes": "_bytes", "kernels": "kernel_launches", "allocs": "device_mallocs"}


def sentence(outcome: Outcome) -> str:
    """`range 'decode_step/h2d': 12 h2d_copies a call, budget 1 (+11: aten::copy_ at block_tables.py:88)`."""
    subject = f"{where(outcome)}: "
    metric = clean(("self." if outcome.scope == "self" else "") + outcome.metric)
    if outcome.result is Result.NOT_CHECKED:
        return f"{subject}{metric} not checked: {clean(outcome.reason)}{_allowed(outcome)}"
    amount = _numbers(outcome)
    return (
        f"{subject}{amount} {metric}{', profiled,' if outcome.interval else ''} {_each(outcome)}, "
        f"{outcome.against} {_bound(outcome)}{_difference(outcome)}{_allowed(outcome)}"
    )


def where(outcome: Outcome) -> str:
    """The range of an outcome in words."""
    return f"range '{clean(path_text(outcome.path))}'" if outcome.path else "the whole trace"


def accepted(outcome: Outcome) -> str:
    """`range 'x': 17 h2d_copies a call, was 1`: a count that an update made the new one."""
    before = number(outcome.limit or 0, lookup(outcome.metric).unit)
    return f"{where(outcome)}: {_numbers(outcome)} {clean(outcome.metric)} {_each(outcome)}, was {before}"


def _each(outcome: Outcome) -> str:
    return "a call of its parent" if outcome.metric == "calls" and outcome.per == "call" else f"a {outcome.per}"


def _numbers(outcome: Outcome) -> str:
    unit = lookup(outcome.metric).unit
    if outcome.least == outcome.most:
        return number(outcome.least, unit)
    return f"{number(outcome.least, unit)}..{number(outcome.most, unit)}"


def _bound(outcome: Outcome) -> str:
    bound, unit = outcome.bound, lookup(outcome.metric).unit
    limit = number(outcome.limit if outcome.limit is not None else bound.number, unit)
    relation = "" if bound.relation is Relation.EXACTLY else f"{bound.relation} "
    if not bound.relative:
        return f"{relation}{limit}"
    factor = "" if bound.number == 1 else f" * {float(bound.number):g}"
    return f"{relation}baseline{factor} = {limit}"


def _difference(outcome: Outcome) -> str:
    if outcome.result is not Result.BROKEN or outcome.limit is None:
        return ""
    unit = lookup(outcome.metric).unit
    off = outcome.worst - outcome.limit
    signed = f"{'-' if off < 0 else '+'}{number(abs(off), unit)}"
    if outcome.interval:
        low, high = (number(end, unit) for end in outcome.interval)
        return f" ({signed}; 95 % interval of the median {low} to {high})"
    some = f" in {outcome.broken} of {plural(outcome.samples, outcome.per)}" if outcome.broken < outcome.samples else ""
    made = _causes(outcome, unit) if off > 0 else ""
    return f" ({signed}{some}{f': {made}' if made else ''})"


def _causes(outcome: Outcome, unit: Unit) -> str:
    told = [
        clean(f"{cause.op} at {cause.place}" if cause.place else cause.op)
        + (f" {_amount(cause.amount, unit)}" if len(outcome.causes) > 1 else "")
        for cause in outcome.causes[:_TOLD]
    ]
    more = len(outcome.causes) - len(told)
    return ", ".join([*told, *([f"and {more} more"] if more > 0 else [])])


def _amount(amount: Fraction, unit: Unit) -> str:
    return f"x {number(amount, unit)}" if unit is Unit.COUNT else number(amount, unit)


def _allowed(outcome: Outcome) -> str:
    told = []
    for allowance, amount in outcome.allowed:
        much = number(amount, lookup(outcome.metric).unit) if amount else "nothing"
        told.append(f"allowed: {much} of {clean(allowance.place)}, because {clean(allowance.reason)}")
    return f"; {'; '.join(told)}" if told else ""


def telling(outcomes: Iterable[Outcome]) -> tuple[list[Outcome], int]:
    """Of broken outcomes those that tell where it comes from, and how many others there are.

    A count that differs from a snapshot differs in every range around the one where that was made, and in every sum
    that it is part of: those are left out. Budgets are all told, since each was written on purpose.
    """
    broken = [one for one in outcomes if one.result is Result.BROKEN]
    compared = [one for one in broken if one.against == "snapshot"]
    inner = {(outer, one.metric) for one in compared for outer in _around(one.path)}
    at = {(one.path, one.metric) for one in compared}
    kept = [
        one for one in broken if one.against != "snapshot" or not ((one.path, one.metric) in inner or _follows(one, at))
    ]
    return kept, len(broken) - len(kept)


def _around(path: Path) -> Iterable[Path]:
    """The ranges around one, and the step that it is in."""
    yield from (path[:depth] for depth in range(1, len(path)))
    if path[-1:] not in ((STEP,), (NO_RANGE,)):
        yield (STEP,)


def _follows(outcome: Outcome, at: set[tuple[tuple[str, ...], str]]) -> bool:
    """Whether a count differs only because one that says more does."""
    others = {metric for path, metric in at if path == outcome.path} - {outcome.metric}
    if outcome.metric in _SUMS:
        ending = _SUMS[outcome.metric]
        return any(metric.endswith(ending) for metric in others)
    if outcome.metric.startswith("op_calls["):
        return any(not metric.startswith("op_calls[") for metric in others)
    return False


def verdict(found: Check) -> str:
    """All of it in one line."""
    if found.not_comparable:
        return found.not_comparable
    if found.accepted is not None:
        what = plural(len(found.accepted), "count") if found.accepted else "no change"
        told = f"accepted {what} into {found.baseline}"
        return told if not found.broken else f"{told}; {_count(found.broken)}"
    parts = [_count(found.broken)] if found.broken else []
    held = sum(one.result is Result.HELD for one in found.outcomes)
    parts += [f"{held:,} of {plural(len(found.outcomes), 'bound')} hold"]
    if found.not_checked:
        parts.append(f"{len(found.not_checked):,} not checked")
    return ", ".join(parts)


def _count(broken: Sequence[Outcome]) -> str:
    budgets = sum(one.against == "budget" for one in broken)
    counts = len(broken) - budgets
    told = [f"{plural(budgets, 'budget')} broken"] if budgets else []
    told += [f"{plural(counts, 'count')} not {'that' if counts == 1 else 'those'} of the snapshot"] if counts else []
    return ", ".join(told)
