"""What a run of a benchmark is in numbers; each is defined here, once.

Of a request, in seconds, from the times that the engine notes (`engine.sequence.Timing`):

    queue wait          from its arrival in the engine to the start of the first step that computes some of its prompt
    prefill             from there to its first token, which is on the host then
    TTFT                from arrival to first token: the two above
    TPOT                (finished - first token) / (tokens - 1); requests of one token have none
    ITL                 from each token to the next: tokens - 1 of them
    latency             from arrival to its last token

Arrival is when the engine is handed token ids, so it comes after tokenising. Of a run:

    total time          from the first prompt (before it is tokenised, unless that is done beforehand) to the last token
    decode time         seconds inside decode steps; with chunked prefill some of a prefill that samples nothing may
                        still run on the GPU when the next decode step begins, and is then counted here
    completion tokens   all generated tokens, each request's first included
    host time a step    decode time less the waiting for tokens, by the number of decode steps; launching and
                        bookkeeping, which a GPU that is busy meanwhile hides
    throughput          completion tokens / total time; (completion,decode) divides by decode time, as the seeds do

Over runs: a run gives one time and one throughput, and p50 and mean are taken over the measured runs. Requests give
one TTFT, TPOT and latency each, and p50, p95, p99 and mean are taken over the requests of all measured runs together.
Percentiles are linear between the two nearest values.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import RequestError
from engine.sequence import FinishReason
from engine.timing import RequestTimes, Timing

if TYPE_CHECKING:
    from engine.core import EngineCore


def percentile(values: Iterable[float], percent: float) -> float:
    """The value below which so many percent lie, linear between neighbours; NaN of nothing."""
    ordered = sorted(values)
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


@dataclass(frozen=True)
class Counts:
    """What an engine has counted up to a moment; a difference of two is what it did between them.

    Attributes:
        decodes: Decode steps; `decode_seconds` is the time inside them.
        wait_seconds: Of those, waiting for tokens.
        queried_tokens: Tokens of admitted sequences; `hit_tokens` are those of them that were in the prefix cache.
        notes: Steps that did something else than `kv_append` says, by what they did.
    """

    decodes: int
    decode_seconds: float
    wait_seconds: float
    preemptions: int
    queried_tokens: int
    hit_tokens: int
    notes: dict[str, int]

    @classmethod
    def now(cls, core: "EngineCore") -> "Counts":
        """Of this engine."""
        stats, cache = core.stats, core.prefix_cache_stats
        return cls(
            decodes=stats.decodes,
            decode_seconds=stats.decode_seconds,
            wait_seconds=stats.wait_seconds,
            preemptions=stats.preemptions,
            queried_tokens=cache.queried_tokens,
            hit_tokens=cache.hit_tokens,
            notes=dict(core.runner.notes),
        )

    @property
    def host_seconds_a_step(self) -> float:
        """Seconds of a decode step in which the host works and does not wait for tokens; NaN where there was none."""
        return (self.decode_seconds - self.wait_seconds) / self.decodes if self.decodes else math.nan

    def since(self, before: "Counts") -> "Counts":
        """What was added."""
        return Counts(
            self.decodes - before.decodes,
            self.decode_seconds - before.decode_seconds,
            self.wait_seconds - before.wait_seconds,
            self.preemptions - before.preemptions,
            self.queried_tokens - before.queried_tokens,
            self.hit_tokens - before.hit_tokens,
            dict(Counter(self.notes) - Counter(before.notes)),
        )


class Ended(NamedTuple):
    """A request that has been served."""

    timing: Timing
    finish_reason: FinishReason | None
    error: str | None = None


@dataclass(frozen=True)
class Run:
    """One run: all requests, from the first prompt to the last token.

    Attributes:
        cut_short: Requests that the model's context ended, before they had all their tokens.
        submit_lags: From when each request was due to its arrival, where there is a schedule.
    """

    total_seconds: float
    requests: tuple[RequestTimes, ...]
    counts: Counts
    cut_short: int = 0
    submit_lags: tuple[float, ...] = field(default=())

    @property
    def completion_tokens(self) -> int:
        """All generated tokens."""
        return sum(request.num_tokens for request in self.requests)

    @property
    def throughput(self) -> float:
        """Completion tokens a second of the whole run."""
        return self.completion_tokens / self.total_seconds

    @property
    def decode_throughput(self) -> float:
        """Completion tokens a second of decode steps; NaN where there were none."""
        return self.completion_tokens / self.counts.decode_seconds if self.counts.decode_seconds else math.nan


def measure(core: "EngineCore", max_tokens: int, serve: Callable[[], tuple[list[Ended], list[float]]]) -> Run:
    """Time one run.

    Args:
        core: The engine that serves.
        max_tokens: What each request asks for.
        serve: Serves all requests; gives them, and their submit lags where there is a schedule.

    Raises:
        RequestError: A request could not go on, so that nothing of the run is what was asked for.
    """
    before = Counts.now(core)
    start = time.perf_counter()
    ended, lags = serve()
    seconds = time.perf_counter() - start
    failed = [one.error for one in ended if one.error is not None]
    if failed:
        raise RequestError(f"{len(failed)} of {len(ended)} requests ended with an error, the first: {failed[0]}")
    return Run(
        total_seconds=seconds,
        requests=tuple(RequestTimes.of(one.timing) for one in ended),
        counts=Counts.now(core).since(before),
        cut_short=sum(
            one.finish_reason == FinishReason.LENGTH and len(one.timing.tokens) < max_tokens for one in ended
        ),
        submit_lags=tuple(lags),
    )


def tpots(requests: Iterable[RequestTimes]) -> list[float]:
    """Of the requests that have one."""
    return [request.tpot for request in requests if request.tpot is not None]
