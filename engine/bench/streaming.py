"""Requests that come by a schedule, whose text is handed out as it comes (seed 002).

One loop submits what is due, steps, and hands out text. A request is due at the start of the run plus its number
times the interval (`absolute`, whatever happened before), or the interval after the request before it was taken up
(`relative`). A step, or tokenising, can make the loop late, and so can `max_inflight`, for which requests are held
back: the submit lag is from when a request was due until the engine has its token ids.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

from engine.bench import report
from engine.bench.measure import Ended
from engine.bench.options import StreamingOptions
from engine.bench.session import Benchmark, Serve
from engine.bench.workload import Prompts
from engine.llm import LLM
from engine.sequence import Sequence
from engine.tokenizer import Detokenizer, Tokenizer

Tokens = list[int]


class Arrivals:
    """Prompts as they come, tokenised in this thread or in others.

    Args:
        prompts: Texts or token ids, in the order in which they come.
        interval: Seconds from one to the next.
        relative: Whether that is from when the one before was taken up, or from when it was due.
        tokenizer: For texts.
        pool: Threads that tokenise, if any.
    """

    def __init__(
        self,
        prompts: Prompts,
        interval: float,
        *,
        relative: bool,
        tokenizer: Tokenizer,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        self._waiting: deque[str | Tokens] = deque(prompts)
        self._interval = interval
        self._relative = relative
        self._tokenizer = tokenizer
        self._pool = pool
        self._tokenising: deque[tuple[float, Future[Tokens]]] = deque()
        self._due = time.perf_counter()

    @property
    def left(self) -> bool:
        """Whether more will come."""
        return bool(self._waiting or self._tokenising)

    def come(self, has_room: Callable[[], bool] = lambda: True) -> Iterator[tuple[float, Tokens]]:
        """Those that have come since the last call, while there is room: when each was due, and its token ids."""
        while self._waiting and has_room() and (now := time.perf_counter()) >= self._due:
            due, prompt = self._due, self._waiting.popleft()
            self._due = (now if self._relative else due) + self._interval
            if self._pool is not None and isinstance(prompt, str):
                self._tokenising.append((due, self._pool.submit(self._tokenizer.encode, prompt)))
            else:
                yield due, self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        # In their order, so that who came first is served first.
        while self._tokenising and has_room() and self._tokenising[0][1].done():
            due, future = self._tokenising.popleft()
            yield due, future.result()

    def wait(self) -> None:
        """Sleep until the next one may have come."""
        seconds = max(0.0, self._due - time.perf_counter()) if self._waiting else None
        if self._tokenising:
            wait([self._tokenising[0][1]], timeout=seconds)
        elif seconds is not None:
            time.sleep(seconds)


@dataclass
class Reader:
    """Whoever reads a request's text: the first token at once, then every `interval`, and the rest at the end."""

    seq: Sequence
    detokenizer: Detokenizer
    interval: int
    texts: list[str] = field(default_factory=list)
    _read: int = 0

    def look(self) -> None:
        """Take the text of tokens that have come, if it is time."""
        output = self.seq.num_output
        ended = self.seq.finish_reason is not None
        if self._read and output - self._read < self.interval and not ended:
            return
        new = self.seq.tokens[self.seq.num_prompt + self._read :]
        self._read = output
        text = "".join(map(self.detokenizer.push, new))
        self.texts.append(text + self.detokenizer.flush() if ended else text)


def _serve(llm: LLM, prompts: Prompts, options: StreamingOptions) -> Serve:
    core, params = llm.core, options.params

    def serve() -> tuple[list[Ended], list[float]]:
        workers = options.tokenize_workers
        pool = ThreadPoolExecutor(workers) if workers else None
        readers: dict[str, Reader] = {}
        lags: list[float] = []
        try:
            arrivals = Arrivals(
                prompts,
                options.submit_interval_ms / 1e3,
                relative=options.submit_schedule == "relative",
                tokenizer=llm.tokenizer,
                pool=pool,
            )
            while arrivals.left or core.has_work:
                for due, tokens in arrivals.come(core.has_room):
                    seq = core.add(tokens, params)
                    lags.append(seq.timing.arrived - due)
                    readers[seq.request_id] = Reader(seq, Detokenizer(llm.tokenizer), options.stream_interval)
                if core.has_work:
                    for seq in core.step():
                        readers[seq.request_id].look()
                else:
                    arrivals.wait()
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        return [
            Ended(seq.timing, seq.finish_reason, seq.error) for seq in (reader.seq for reader in readers.values())
        ], lags

    return serve


BENCHMARK = Benchmark("streaming", _serve, report.streaming_run, report.streaming_summary)
