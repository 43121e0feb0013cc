"""Whether times differ: bootstrap intervals of medians."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

FEWEST = 6
"""With fewer samples than this, not even their whole range holds the median with 95 % confidence: 1 - 2 / 2**n."""

_RESAMPLES = 4000
_CONFIDENCE = 0.95
_SEED = 20_001


@dataclass(frozen=True, slots=True)
class Ratio:
    """A variant's median over a baseline's, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def faster(self) -> bool:
        """Whether the whole interval lies below 1."""
        return self.high < 1

    @property
    def slower(self) -> bool:
        """Whether the whole interval lies above 1."""
        return self.low > 1


def ratio_of_medians(baseline: npt.ArrayLike, variant: npt.ArrayLike) -> Ratio | None:
    """Compare two sets of times by the ratio of their medians.

    Percentile bootstrap over the samples of each side (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, ch. 13). The result is the same on every call.

    Returns:
        None where either side has fewer than `FEWEST` samples. Something over nothing is infinite, nothing over
        nothing is 1.
    """
    before, after = np.sort(np.asarray(baseline, np.float64)), np.sort(np.asarray(variant, np.float64))
    if min(len(before), len(after)) < FEWEST:
        return None
    places = _places(len(before), len(after))
    below, above = (_at(side, drawn) for side, drawn in zip((before, after), places, strict=True))
    (value,) = _ratios(np.array([middle(after)]), np.array([middle(before)]))
    return Ratio(float(value), *_interval(_ratios(above, below)))


FEWEST_PROCESSES = 4
"""With 3 on each side, all of one come out above all of the other by chance once in 10 comparisons; with 4 in 35."""


def ratio_of_nested_medians(baseline: Sequence[Sequence[float]], variant: Sequence[Sequence[float]]) -> Ratio | None:
    """Compare times that several processes took each, by the ratio of the means of the processes' medians.

    Hierarchical percentile bootstrap: processes are drawn with replacement, and of each its samples (Davison and
    Hinkley, Bootstrap Methods and their Application, 1997, sec. 3.8), so that what differs from process to process
    widens the interval. With few processes it is still somewhat narrow. The result is the same on every call.

    Args:
        baseline: Times by process.
        variant: Likewise.

    Returns:
        None where a side has fewer than `FEWEST_PROCESSES` processes with samples.
    """
    sides = [[np.asarray(samples, np.float64) for samples in side if len(samples)] for side in (baseline, variant)]
    if min(map(len, sides)) < FEWEST_PROCESSES:
        return None
    random = np.random.default_rng(_SEED)
    below, above = (_resampled_means(side, random) for side in sides)
    means = [np.array([np.mean([np.median(samples) for samples in side])]) for side in sides]
    (value,) = _ratios(means[1], means[0])
    return Ratio(float(value), *_interval(_ratios(above, below)))


def mean_of_medians(processes: Sequence[Sequence[float]]) -> float | None:
    """What is compared: the mean over processes of their median; None where none has a sample."""
    medians = [np.median(samples) for samples in processes if len(samples)]
    return float(np.mean(medians)) if medians else None


def _resampled_means(processes: list[npt.NDArray[np.float64]], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Means of medians, of processes drawn with replacement and their samples drawn anew for each."""
    count = len(processes)
    chosen = random.integers(count, size=(_RESAMPLES, count))
    medians = np.empty((_RESAMPLES, count))
    for number, samples in enumerate(processes):
        where = np.nonzero(chosen == number)
        drawn = samples[random.integers(len(samples), size=(len(where[0]), len(samples)))]
        medians[where] = np.median(drawn, axis=1)
    means: npt.NDArray[np.float64] = medians.mean(axis=1)
    return means


def _ratios(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    without = np.where(above > 0, np.inf, 1.0)
    found: npt.NDArray[np.float64] = np.divide(above, below, out=without, where=below > 0)
    return found


def _interval(ratios: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The quantiles, of `_RESAMPLES` ratios, between which the confidence lies: those nearest to them."""
    tail = round((_RESAMPLES - 1) * (1 - _CONFIDENCE) / 2)
    ordered = np.partition(ratios, (tail, _RESAMPLES - 1 - tail))
    return float(ordered[tail]), float(ordered[_RESAMPLES - 1 - tail])


def middle(ordered: npt.NDArray[Any]) -> float:
    """The median of sorted values: what `np.median` gives, which takes 20 times as long for a few."""
    half = len(ordered) // 2
    return (float(ordered[half]) + float(ordered[half - 1 + len(ordered) % 2])) / 2


Places = tuple["npt.NDArray[np.int32]", ...]
"""Where the medians of samples drawn with replacement stand among sorted values: one, or two to take the mean of."""


@lru_cache(maxsize=64)
def _places(before: int, after: int) -> tuple[Places, Places]:
    """Places of the resampled medians of two sides of so many values; most rows of a trace have as many as others."""
    random = np.random.default_rng(_SEED)
    return _drawn(before, random), _drawn(after, random)


def _drawn(n: int, random: np.random.Generator) -> Places:
    """Places of medians of samples drawn with replacement, without drawing them.

    Drawing n of n sorted values is drawing n uniform numbers and taking `floor(n u)`; the k-th smallest of n uniform
    numbers is Beta(k, n - k + 1), and the next one above it is then 1 - (1 - u) * Beta(n - k, 1) (David and Nagaraja,
    Order Statistics, 2003, ch. 2).
    """
    k = (n + 1) // 2
    lower = random.beta(k, n - k + 1, _RESAMPLES)
    places = [lower] if n % 2 else [lower, 1 - (1 - lower) * random.beta(n - k, 1, _RESAMPLES)]
    return tuple(np.minimum((place * n).astype(np.int32), n - 1) for place in places)


def _at(ordered: npt.NDArray[np.float64], places: Places) -> npt.NDArray[np.float64]:
    if len(places) == 1:
        return ordered[places[0]]
    between: npt.NDArray[np.float64] = (ordered[places[0]] + ordered[places[1]]) / 2
    return between
