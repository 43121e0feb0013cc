"""Ranks side by side as rows of text, and what is told of those that stand out; every format draws them its way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tracetool.metrics import METRICS, Unit, lookup
from tracetool.render import words
from tracetool.render.tables import SHORT, SUMMARY_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from fractions import Fraction

    from tracetool.ranks import Difference, Rank, RankDiff, Ranks, RanksDiff, Value

_MOST_TOLD = 3
_TIMES: tuple[tuple[str, Callable[[Ranks, Rank], Value]], ...] = (
    ("step", lambda _, one: one.step_ns),
    ("working", lambda found, one: found.time(one, one.working_ns)),
    ("in collectives", lambda found, one: found.time(one, one.collective_ns)),
)


@dataclass(frozen=True, slots=True)
class Lines:
    """A table of text, its last rows the spread of each column."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    spread: tuple[tuple[str, ...], ...]


def columns_of(totals: Iterable[dict[str, int]], chosen: Sequence[str]) -> tuple[str, ...]:
    """The metrics that are shown: those asked for, else the exact ones of a summary that count something."""
    if chosen:
        return tuple(chosen)
    some = {name for one in totals for name in one}
    return tuple(name for name in SUMMARY_METRICS if name in some and METRICS[name].exact and name != "kernels")


def table(found: Ranks) -> Lines:
    """One row a rank, and the spread."""
    times = [(title, of) for title, of in _TIMES if any(of(found, one) for one in found.rows)]
    readers: list[tuple[str, Unit, Callable[[Rank], Value]]] = [
        *((title, Unit.NS, partial(of, found)) for title, of in times),
        *((SHORT.get(name, name), lookup(name).unit, partial(found.value, metric=name)) for name in found.metrics),
    ]
    spreads = [(found.spread(of), unit) for _, unit, of in readers]
    return Lines(
        headings=(f"per {found.per}", *(title for title, _, _ in readers), "health"),
        rows=tuple(
            (_marked(found, one), *(words.number(of(one), unit) for _, unit, of in readers), one.verdict)
            for one in found.rows
        ),
        spread=tuple(
            (title, *(words.number(getattr(spread, part), unit) for spread, unit in spreads), "")
            for title, part in (("least", "least"), ("median", "median"), ("most", "most"))
        ),
    )


def _marked(found: Ranks, one: Rank) -> str:
    marks = [mark for mark, is_so in (("differs", found.differs(one)), ("straggles", found.straggles(one))) if is_so]
    return words.shorten(one.label, 60) + (f" ({', '.join(marks)})" if marks else "")


def told(found: Ranks) -> list[str]:
    """A sentence about each rank that stands out, and one where ranks do not agree on what is usual."""
    lines = [one.error for one in found.rows if one.error]
    lines += [_odd(one, differences) for one, differences in found.by_rank]
    split = [one for one in found.differences if one.usual is None]
    if split:
        first = split[0]
        shown = ", ".join(f"{one.label} {_value(first.metric, value)}" for one, value in first.others[:_MOST_TOLD])
        more = f" and {words.plural(len(split) - 1, 'more count')}" if len(split) > 1 else ""
        left = f", and {len(first.others) - _MOST_TOLD} more" if len(first.others) > _MOST_TOLD else ""
        lines.append(f"no value is usual for {_of(first)}{more}: {shown}{left}")
    for one in found.rows:
        if (ratio := found.straggles(one)) is not None:
            lines.append(f"{one.label} straggles: it works {_percent(ratio)} more than the median rank")
    return lines


def _percent(ratio: Fraction) -> str:
    return f"{float(ratio - 1) * 100:.0f}%"


def _odd(one: Rank, differences: Sequence[Difference]) -> str:
    parts = [
        f"{_of(difference)} {_value(difference.metric, value)}, not {_value(difference.metric, difference.usual or 0)}"
        for difference in _telling(differences)[:_MOST_TOLD]
        for value in [next(value for other, value in difference.others if other is one)]
    ]
    left = len(differences) - _MOST_TOLD
    more = f"; and {words.plural(left, 'more count')}" if left > 0 else ""
    return f"{one.label} differs: {'; '.join(parts)}{more}"


def _telling(differences: Sequence[Difference]) -> list[Difference]:
    """The innermost ranges first: those around them differ for that."""
    return sorted(differences, key=lambda one: (one.metric not in SUMMARY_METRICS, -len(one.path)))


def _of(difference: Difference) -> str:
    return f"{words.path_text(difference.path)}: {difference.metric}"


def _value(metric: str, value: int) -> str:
    return words.number(value, lookup(metric).unit)


def verdict(found: Ranks) -> str:
    """All in a line."""
    count = words.plural(len(found.rows), "rank")
    differing = [one for one in found.rows if found.differs(one)]
    straggling = [one for one in found.rows if found.straggles(one) is not None]
    if not found.differences:
        same = f"{count}: the same counts in every range"
    elif any(one.usual is None for one in found.differences) and len(differing) == len(found.rows):
        same = f"{count} that do not agree on {words.plural(len(found.differences), 'count')}"
    else:
        same = f"{count}: {_names(differing)} {'differs' if len(differing) == 1 else 'differ'} from the rest"
    late = (
        f"{_names(straggling)} {'straggles' if len(straggling) == 1 else 'straggle'}"
        if straggling
        else "none straggles"
    )
    return f"{same}; {late}."


def _names(rows: Sequence[Rank | RankDiff]) -> str:
    shown = [one.label for one in rows[:_MOST_TOLD]]
    left = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def diff_table(found: RanksDiff) -> Lines:
    """One row a rank: what changed."""
    return Lines(
        headings=("rank", "what changed", "health"),
        rows=tuple(
            (words.shorten(one.label, 60), words.clean(one.verdict), _healths(one.health)) for one in found.ordered
        ),
        spread=(),
    )


def _healths(both: tuple[str, str]) -> str:
    return both[0] if both[0] == both[1] else f"{both[0]} -> {both[1]}"


def diff_told(found: RanksDiff) -> list[str]:
    """Ranks that only one of the runs has."""
    return [
        f"only {label} has {', '.join(words.clean(source) for source in sources[:_MOST_TOLD])}"
        + (f" and {len(sources) - _MOST_TOLD} more" if len(sources) > _MOST_TOLD else "")
        for label, sources in zip(found.labels, found.alone, strict=True)
        if sources
    ]


def diff_verdict(found: RanksDiff) -> str:
    """All in a line."""
    differing = [one for one in found.ordered if one.differs]
    count = words.plural(len(found.rows), "rank")
    if not differing:
        return f"{count} of {found.labels[0]} and {found.labels[1]}: the same counts."
    others = "" if len(differing) == len(found.rows) else ", the others are the same"
    return f"{count}: {_names(differing)} {'differs' if len(differing) == 1 else 'differ'}{others}."
