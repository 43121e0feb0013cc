"""Whether times differ: bootstrap intervals of medians."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
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
    random = np.random.default_rng(_SEED)
    below, above = _resampled_medians(before, random), _resampled_medians(after, random)
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(_ratios(above, below), [tail, 1 - tail], method="nearest")
    (value,) = _ratios(np.array([np.median(after)]), np.array([np.median(before)]))
    return Ratio(float(value), float(low), float(high))


def _ratios(above: npt.NDArray[np.float64], below: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    without = np.where(above > 0, np.inf, 1.0)
    found: npt.NDArray[np.float64] = np.divide(above, below, out=without, where=below > 0)
    return found


def _resampled_medians(ordered: npt.NDArray[np.float64], random: np.random.Generator) -> npt.NDArray[np.float64]:
    """Medians of samples drawn with replacement, without drawing them.

    Drawing n of n sorted values is drawing n uniform numbers and taking `floor(n u)`; the k-th smallest of n uniform
    numbers is Beta(k, n - k + 1), and the next one above it is then 1 - (1 - u) * Beta(n - k, 1) (David and Nagaraja,
    Order Statistics, 2003, ch. 2).
    """
    n = len(ordered)
    k = (n + 1) // 2
    lower = random.beta(k, n - k + 1, _RESAMPLES)
    at_lower: npt.NDArray[np.float64] = ordered[np.minimum((lower * n).astype(np.int64), n - 1)]
    if n % 2:
        return at_lower
    upper = 1 - (1 - lower) * random.beta(n - k, 1, _RESAMPLES)
    at_upper = ordered[np.minimum((upper * n).astype(np.int64), n - 1)]
    middle: npt.NDArray[np.float64] = (at_lower + at_upper) / 2
    return middle
