"""Speed without a profiler, from the times that `tracetool compare` stores with each variant's trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.environment import as_captured
from tracetool.stats import Ratio, mean_of_medians, ratio_of_nested_medians

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.differ import Side
    from tracetool.summary import TraceSummary

_KEY = "unprofiled_ns_per_step"


@dataclass(frozen=True, slots=True)
class Times:
    """Unprofiled times of one side.

    Attributes:
        label: Of the side.
        samples: Nanoseconds a step, by process; empty where none are stored.
        median_ns: The mean over processes of their median; None without samples.
        ratio: Of it to the baseline's, with its interval; None for the baseline, or where there is too little to say.
    """

    label: str
    samples: tuple[tuple[float, ...], ...]
    median_ns: float | None
    ratio: Ratio | None


def times_of(sides: Sequence[Side]) -> list[Times]:
    """The unprofiled times that are stored with each side's trace, the baseline first."""
    return times_beside([(side.label, _stored(side.summary)) for side in sides])


def times_beside(measured: Sequence[tuple[str, Sequence[Sequence[float]]]]) -> list[Times]:
    """Labels with their samples by process as times, the baseline first."""
    return [
        Times(
            label,
            tuple(map(tuple, samples)),
            mean_of_medians(samples),
            ratio_of_nested_medians(measured[0][1], samples) if number else None,
        )
        for number, (label, samples) in enumerate(measured)
    ]


def _stored(found: TraceSummary) -> tuple[tuple[float, ...], ...]:
    """Whatever else a file may have under the key is no times."""
    value = as_captured(found.metadata).get(_KEY)
    if not isinstance(value, list):
        return ()
    processes = [
        tuple(float(one) for one in process if isinstance(one, int | float) and one > 0)
        for process in value
        if isinstance(process, list)
    ]
    return tuple(process for process in processes if process)
