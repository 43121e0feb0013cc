"""What can be said of speed, from unprofiled times alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracetool.unprofiled import Times


def speed_words(one: Times, baseline: Times) -> str | None:
    """A sentence about a variant's step beside the baseline's; None where no times are stored."""
    if not one.samples or not baseline.samples:
        return None
    if one.ratio is None:
        return "Too few processes were timed to say how fast a step is."
    return f"{speed_word(one)}{interval_words(one)}"


def speed_word(one: Times) -> str:
    """`1.31x faster`, or that no difference is to be seen; of a variant with a ratio."""
    ratio = one.ratio
    assert ratio is not None
    if ratio.slower:
        return f"{_factor(ratio.value)} slower"
    return f"{_factor(1 / ratio.value)} faster" if ratio.faster else "No difference to be seen"


def interval_words(one: Times) -> str:
    """What follows: of what, measured how, and with which interval."""
    ratio = one.ratio
    assert ratio is not None
    low, high = (ratio.low, ratio.high) if ratio.slower else (1 / ratio.high, 1 / ratio.low)
    said = (
        "a step, unprofiled,"
        if ratio.slower or ratio.faster
        else f"in a step, unprofiled: {_factor(1 / ratio.value)} as fast,"
    )
    return f" {said} 95 % interval {_factor(low)} to {_factor(high)}"


def _factor(value: float) -> str:
    return f"{value:.2f}x" if value < 10 else f"{value:.1f}x"
