"""Counts, sizes and times as people read them."""

from __future__ import annotations

from fractions import Fraction

from tracetool.metrics import Unit

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
NANOSECONDS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
"""Of each unit of time."""


def number(value: float | Fraction, unit: Unit) -> str:
    """A count, a size or a time: `1,234`, `384.2 KiB`, `2.34 ms`."""
    if unit is Unit.BYTES:
        return _bytes(float(value))
    if unit is Unit.NS:
        return _time(float(value))
    return _count(value)


def _count(value: float | Fraction) -> str:
    exact = Fraction(value)
    if exact.denominator == 1:
        return f"{int(exact):,}"
    return f"{float(exact):,.2f}" if abs(exact) >= Fraction(1, 10) else f"{float(exact):.2g}"


def _bytes(value: float) -> str:
    size, unit = value, _BINARY[0]
    for unit in _BINARY:
        if abs(size) < 1024 or unit == _BINARY[-1]:
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if size == int(size) else f"{size:,.1f} {unit}"


def _time(nanoseconds: float) -> str:
    for unit, size in reversed(NANOSECONDS.items()):
        if size > 1 and abs(nanoseconds) >= size:
            return f"{_digits(nanoseconds / size)} {unit}"
    return f"{nanoseconds:,.0f} ns"


def _digits(value: float) -> str:
    """Three digits, so that what is shown is what can be believed."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
