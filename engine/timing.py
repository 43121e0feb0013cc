"""When things happened to a request, and the times that come of it."""

from dataclasses import dataclass, field
from itertools import pairwise


@dataclass
class Timing:
    """When things happened, in seconds of `time.perf_counter`; None until they have."""

    arrived: float
    admitted: float | None = None
    first_token: float | None = None
    tokens: list[float] = field(default_factory=list)
    finished: float | None = None


@dataclass(frozen=True)
class RequestTimes:
    """The times of one request in seconds, as the module defines them."""

    num_tokens: int
    queue_wait: float
    prefill: float
    ttft: float
    tpot: float | None
    itls: tuple[float, ...]
    latency: float

    @classmethod
    def of(cls, timing: Timing) -> "RequestTimes":
        """Of a request that has ended with at least one token."""
        admitted, first, finished = timing.admitted, timing.first_token, timing.finished
        assert admitted is not None
        assert first is not None
        assert finished is not None
        tokens = len(timing.tokens)
        return cls(
            num_tokens=tokens,
            queue_wait=admitted - timing.arrived,
            prefill=first - admitted,
            ttft=first - timing.arrived,
            tpot=(finished - first) / (tokens - 1) if tokens > 1 else None,
            itls=tuple(after - before for before, after in pairwise(timing.tokens)),
            latency=finished - timing.arrived,
        )
