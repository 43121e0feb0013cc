"""Counts and times in the sentences of findings."""

from __future__ import annotations

from fractions import Fraction

from tracetool.amounts import number
from tracetool.metrics import lookup


def amount(value: float, metric: str) -> str:
    """A number of a metric as people read it: `12`, `48 KiB`, `31.2 us`; small fractions of counts are rounded."""
    return number(Fraction(round(value * 100), 100), lookup(metric).unit)


def plural_of(count: float, one: str, many: str = "") -> str:
    """`1 copy`, `12 copies`; a count need not be whole, where steps differ."""
    return f"{amount(count, 'ops')} {one if count == 1 else many or f'{one}s'}"
