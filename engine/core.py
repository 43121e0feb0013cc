"""The engine without text: requests of token ids in, tokens out, a step at a time."""

import dataclasses
import time
from dataclasses import dataclass

from engine import ranges
from engine.backlog import Backlog
from engine.block_manager import BlockManager, PrefixCacheStats
from engine.config import PACK_FORCE_FIFO, PACK_LOOKAHEAD, EngineConfig
from engine.errors import RequestError
from engine.ranges import annotate
from engine.runner import Runner
from engine.sampling_params import SamplingParams
from engine.scheduler import Chunk, Limits, Scheduler, sampled_by
from engine.sequence import FinishReason, Sequence, TokenLogprob
from engine.timing import Timing
from engine.variants.sampler import Tokens

# 2**64 over the golden ratio: its multiples are far apart.
_GOLDEN = 0x9E3779B97F4A7C15
_NO_TOKEN = (
    "no token could be chosen: the model's logits are not numbers (NaN), or what was asked for rules every token out"
)


@dataclass
class StepStats:
    """Seconds and numbers of all steps so far."""

    steps: int = 0
    prefills: int = 0
    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    decodes: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0
    # Of the decode seconds: waiting for tokens. The rest is the host's.
    wait_seconds: float = 0.0
    preemptions: int = 0


@dataclass(frozen=True)
class _UnderWay:
    """A decode step that has been launched."""

    seqs: list[Sequence]
    tokens: Tokens


class EngineCore:
    """Requests, their blocks, and the steps that serve them.

    Args:
        runner: Runs steps; its cache's size is the number of blocks.
        config: Options.
    """

    def __init__(self, runner: Runner, config: EngineConfig) -> None:
        self.runner = runner
        self.config = config
        max_active = config.max_active or config.max_num_seqs
        limits = Limits(
            mode=config.mode,
            max_active=max_active,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            prefill_max_batch_size=config.prefill_max_batch_size or max_active,
            prefill_max_tokens=config.prefill_max_tokens or config.max_num_batched_tokens,
            chunked_prefill=config.chunked_prefill,
            decode_first=config.decode_first,
            lookahead=(config.admission_lookahead or PACK_LOOKAHEAD) if config.admission == "pack" else 1,
            force_fifo=PACK_FORCE_FIFO if config.admission_force_fifo is None else config.admission_force_fifo,
        )
        self.blocks = BlockManager(runner.num_blocks, config.block_size, prefix_cache=config.prefix_cache)
        self.scheduler = Scheduler(self.blocks, limits)
        self.stats = StepStats()
        self._seqs: dict[str, Sequence] = {}
        self._num_requests = 0
        self._overlap = runner.variants.overlap == "on"
        self._under_way: _UnderWay | None = None
        self._backlog: Backlog | None = None
        # Ended while a step that computes them is under way; they keep their blocks until it is done.
        self._leaving: list[Sequence] = []
        # Got a token outside of a step.
        self._early: list[Sequence] = []
        self._eos = frozenset(runner.spec.eos_token_ids)

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return self.scheduler.has_work

    @property
    def prefix_cache_stats(self) -> PrefixCacheStats:
        """What the prefix cache did so far."""
        return self.blocks.stats

    def check_request(self, tokens: list[int], params: SamplingParams) -> None:
        """Whether a request could be served.

        Raises:
            RequestError: It could not: the prompt is empty, holds an unknown id, or is too long for the model or the
                cache.
        """
        longest, vocab = self.runner.max_model_len, self.runner.spec.vocab_size
        most = self.scheduler.max_active
        if params.n > most:
            raise RequestError(f"n is {params.n}, but {most} sequences may be under way; lower n or raise max_active")
        if not tokens:
            raise RequestError("the prompt is empty; give at least one token")
        if min(tokens) < 0 or max(tokens) >= vocab:
            wrong = next(token for token in tokens if not 0 <= token < vocab)
            raise RequestError(f"the prompt holds the token id {wrong}, but the model's ids go from 0 to {vocab - 1}")
        if len(tokens) >= longest:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens, which leaves no room for a new one in a context of {longest}; "
                "shorten it or raise max_model_len"
            )
        biased = next((token for token, _ in params.biases if not 0 <= token < vocab), None)
        if biased is not None:
            raise RequestError(f"logit_bias names the token id {biased}, but the model's ids go from 0 to {vocab - 1}")
        # The last token is sampled and never computed.
        most = min(len(tokens) + params.max_tokens, longest) - 1
        if self.blocks.blocks_for(most) > self.blocks.num_blocks:
            raise RequestError(
                f"{len(tokens)} tokens of prompt and {params.max_tokens} new ones need {self.blocks.blocks_for(most)} "
                f"cache blocks, but there are {self.blocks.num_blocks}; lower max_tokens or raise num_blocks"
            )

    def add(self, tokens: list[int], params: SamplingParams, request_id: str | None = None) -> Sequence:
        """Queue a request.

        Raises:
            RequestError: It cannot be served (see `check_request`), its id is in use, or as many are under way as
                `max_inflight` allows.
        """
        self.check_request(tokens, params)
        return self.add_checked(tokens, params, request_id)

    def add_checked(self, tokens: list[int], params: SamplingParams, request_id: str | None = None) -> Sequence:
        """Queue a request that `check_request` has seen; errors as `add` has them."""
        self._check_room(params.n)
        seq = self._new_sequence(list(tokens), len(tokens), params, request_id)
        seq.siblings = [self._sibling(seq, number) for number in range(1, params.n)]
        self.scheduler.add(seq)
        return seq

    @property
    def num_inflight(self) -> int:
        """Sequences that wait or run."""
        return len(self._seqs) + sum(len(seq.siblings) for seq in self._seqs.values())

    def has_room(self, n: int = 1) -> bool:
        """Whether so many more may be under way."""
        most = self.config.max_inflight
        return most is None or self.num_inflight + n <= most

    def _check_room(self, n: int) -> None:
        if not self.has_room(n):
            raise RequestError(
                f"{self.num_inflight} sequences wait or run, and max_inflight={self.config.max_inflight} leaves no "
                f"room for {n} more; try again when some have ended, or raise it"
            )

    def _sibling(self, seq: Sequence, number: int) -> Sequence:
        """A sequence that draws another output for a prompt; it begins when the prompt has been computed."""
        return dataclasses.replace(
            seq,
            request_id=f"{seq.request_id}/{number}",
            given=list(seq.tokens),
            # Far from those of other requests, whose seeds may be neighbours.
            seed=(seq.seed + number * _GOLDEN) % 2**63,
            timing=Timing(seq.timing.arrived),
            block_table=[],
            logprobs=[],
            siblings=[],
        )

    def _new_sequence(
        self, tokens: list[int], num_prompt: int, params: SamplingParams, request_id: str | None
    ) -> Sequence:
        if request_id is None:
            # Callers may have taken a number for an id.
            while str(self._num_requests) in self._seqs:
                self._num_requests += 1
            request_id = str(self._num_requests)
        number = self._num_requests
        ids = [request_id, *(f"{request_id}/{number}" for number in range(1, params.n))]
        taken = next((one for one in ids if one in self._seqs), None)
        if taken is not None:
            raise RequestError(f"a request with the id {taken!r} is under way; choose another")
        self._num_requests += 1
        seed = (self.config.seed * 1_000_003 + number) % 2**63 if params.seed is None else params.seed
        seq = Sequence(
            request_id,
            tokens,
            num_prompt,
            params,
            seed,
            Timing(time.perf_counter()),
            max_len=min(num_prompt + params.max_tokens, self.runner.max_model_len),
            stops=frozenset() if params.ignore_eos else self._eos,
        )
        self._seqs[request_id] = seq
        return seq

    def fork(self, request_id: str, params: SamplingParams, new_id: str | None = None) -> Sequence:
        """A second continuation of a request, from where it stands; the two share blocks until one writes.

        Args:
            request_id: Of a request that has begun to decode.
            params: The new one's; its `max_tokens` counts from where the request began.
            new_id: The new one's id.

        Raises:
            RequestError: There is no such request, it has not begun to decode, or the new id is in use.
        """
        self.settle()
        parent = self._get(request_id)
        if not parent.prefilled:
            raise RequestError(f"request {request_id!r} has no token yet; fork it once it has")
        self.check_request(parent.tokens[: parent.num_prompt], params)
        self._check_room(1)
        if params.n > 1:
            raise RequestError("a fork is one continuation; n > 1 is for new requests")
        if parent.num_output >= params.max_tokens:
            raise RequestError(f"request {request_id!r} has {parent.num_output} tokens already; raise max_tokens")
        child = self._new_sequence(list(parent.tokens), parent.num_prompt, params, new_id)
        child.timing.admitted, child.timing.first_token = child.timing.arrived, child.timing.arrived
        child.prefilled = True
        if parent.params.logprobs is not None and params.logprobs is not None:
            child.logprobs = list(parent.logprobs)
        self.blocks.fork(parent, child)
        self.scheduler.join(child)
        return child

    def abort(self, request_id: str) -> Sequence:
        """End a request now.

        Raises:
            RequestError: There is no such request under way.
        """
        seq = self._get(request_id)
        self._finish(seq, FinishReason.ABORT, time.perf_counter())
        if not self.scheduler.running:
            self.settle()
        return seq

    def settle(self) -> None:
        """Wait for the step under way, if there is one, and follow it up."""
        if self._under_way is not None:
            self._early += self._collect()

    def _get(self, request_id: str) -> Sequence:
        if request_id not in self._seqs:
            raise RequestError(f"there is no request {request_id!r} under way")
        return self._seqs[request_id]

    def step(self) -> list[Sequence]:
        """Schedule, run and follow up one step; with nothing to do, nothing happens.

        Returns:
            The sequences that got a token.

        After a step that is interrupted (an error of the device, Ctrl-C) every running request is computed anew.
        """
        if not self.has_work:
            return []
        try:
            return self._step()
        except BaseException:
            # Wherever it was, even inside the bookkeeping: begin anew with what has not ended.
            self._seqs = {i: seq for i, seq in self._seqs.items() if seq.finish_reason is None}
            self._under_way, self._leaving, self._early = None, [], []
            if self._backlog is not None:
                self._backlog.close()
                self._backlog = None
            self.scheduler.restart(self._seqs.values())
            self.stats.preemptions = self.scheduler.num_preemptions
            self.runner.reset()
            raise

    def _step(self) -> list[Sequence]:
        advanced, self._early = self._early, []
        # Whoever gives up its blocks must know all its tokens. A step asks for three blocks a sequence at most.
        running = len(self.scheduler.running)
        scarce = not running or self.blocks.num_free < 3 * running
        if self._under_way is not None and scarce:
            advanced += self._collect()
        if scarce or (self.blocks.prefix_cache and self.scheduler.may_admit()):
            # Whoever is admitted, or admitted again, finds all full blocks.
            self._settle_backlog()
        with annotate(ranges.SCHEDULE):
            plan = self.scheduler.schedule()
        copies = self.blocks.take_copies()
        if copies:
            with annotate(ranges.COPY_BLOCKS):
                self.runner.copy_blocks(copies)
        stats = self.stats
        stats.steps += 1
        stats.preemptions = self.scheduler.num_preemptions

        if plan.decode and self.config.decode_first:
            advanced += self._decode(plan.decode)
        if plan.prefill:
            advanced += self._prefill(plan.prefill)
        if plan.decode and not self.config.decode_first:
            advanced += self._decode(plan.decode)
        if self._under_way is not None and not (plan.decode and self.scheduler.running):
            # Nothing has been launched after it, or nobody is left whom it serves.
            advanced += self._collect()
        return advanced

    def _prefill(self, chunks: list[Chunk]) -> list[Sequence]:
        """Compute chunks; who got a token."""
        start = time.perf_counter()
        with annotate(ranges.PREFILL):
            sampled = self.runner.prefill(chunks)
            tokens = sampled.wait()
            with annotate(ranges.POSTPROCESS):
                now = time.perf_counter()
                for chunk in chunks:
                    chunk.seq.timing.admitted = chunk.seq.timing.admitted or start
                    chunk.seq.computed = chunk.end
                    self.blocks.publish(chunk.seq)
                done = sampled_by(chunks)
                for chunk in chunks:
                    if chunk.last:
                        self._begin_siblings(chunk.seq)
                logprobs = sampled.logprobs()
                for place, (seq, token) in enumerate(zip(done, tokens.tolist(), strict=True)):
                    self._accept(seq, token, now, logprobs.get(place))
        stats = self.stats
        stats.prefills += 1
        stats.prefill_seconds += time.perf_counter() - start
        stats.prefill_tokens += sum(chunk.end - chunk.start for chunk in chunks)
        return done

    def _begin_siblings(self, seq: Sequence) -> None:
        """Let those that share a prompt share its blocks, from its last token on."""
        siblings, seq.siblings = seq.siblings, []
        for sibling in siblings:
            sibling.timing.admitted = seq.timing.admitted
            sibling.num_cached_prompt = seq.num_cached_prompt
            self._seqs[sibling.request_id] = sibling
            self.blocks.fork(seq, sibling)
            self.scheduler.join(sibling)

    def _decode(self, seqs: list[Sequence]) -> list[Sequence]:
        """Launch a step, and follow up the one before, or with no overlap this one; who got a token."""
        start = time.perf_counter()
        with annotate(ranges.DECODE_STEP):
            before = self._under_way
            step = _UnderWay(seqs, self.runner.decode(seqs))
            if self._overlap:
                again = before is not None and before.seqs is seqs
                if not again:
                    for seq in seqs:
                        seq.num_pending += 1
                self._under_way = step
                advanced = [] if before is None else self._follow_up(before, again=again)
            else:
                advanced = self._follow_up(step, again=True)
        stats = self.stats
        stats.decodes += 1
        stats.decode_seconds += time.perf_counter() - start
        stats.decode_tokens += len(seqs)
        return advanced

    def _collect(self) -> list[Sequence]:
        """Follow up the step under way; who got a token."""
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        start = time.perf_counter()
        advanced = self._follow_up(under_way, again=False)
        self.stats.decode_seconds += time.perf_counter() - start
        return advanced

    def _follow_up(self, step: _UnderWay, *, again: bool) -> list[Sequence]:
        """Wait for a step's tokens, and give them to its sequences; what has ended in the meantime is dropped.

        Args:
            step: Of which batch.
            again: Whether as many steps of this batch are under way as before it was launched.
        """
        start = time.perf_counter()
        tokens = step.tokens.wait()
        now = time.perf_counter()
        self.stats.wait_seconds += now - start
        with annotate(ranges.POSTPROCESS):
            logprobs = step.tokens.logprobs()
            backlog = self._backlog
            if (
                again
                and not logprobs
                and backlog is not None
                and backlog.seqs is step.seqs
                and backlog.take(tokens, now)
            ):
                return list(step.seqs)
            return self._give(step.seqs, tokens.tolist(), now, logprobs, again=again)

    def _give(
        self, seqs: list[Sequence], tokens: list[int], now: float, logprobs: dict[int, TokenLogprob], *, again: bool
    ) -> list[Sequence]:
        """Give a step's tokens to its sequences; who got one."""
        self._settle_backlog()
        leaving, self._leaving = self._leaving, []
        size = self.config.block_size
        advanced = []
        for place, (seq, token) in enumerate(zip(seqs, tokens, strict=True)):
            if seq.finish_reason is not None:
                continue
            if not again:
                seq.num_pending -= 1
            seq.computed += 1
            if not seq.computed % size:
                self.blocks.publish(seq)
            self._accept(seq, token, now, logprobs.get(place) if logprobs else None)
            advanced.append(seq)
        # Those that had ended before this step was done; it was the last that computes them.
        self._free(leaving)
        if (
            again
            and not leaving
            and not logprobs
            and all(seq.finish_reason is None and seq.watch is None for seq in seqs)
        ):
            self._backlog = Backlog(seqs)
        return advanced

    def _settle_backlog(self) -> None:
        """Let sequences have the tokens that nobody has looked at yet, and others their full blocks."""
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            backlog.close()
            for seq in backlog.seqs:
                self.blocks.publish(seq)

    def _free(self, seqs: list[Sequence]) -> None:
        for seq in seqs:
            self.blocks.release(seq)

    def _accept(self, seq: Sequence, token: int, now: float, logprob: TokenLogprob | None) -> None:
        if token < 0:
            self._fail(seq, _NO_TOKEN, now)
            return
        tokens, timing = seq.given, seq.timing
        tokens.append(token)
        if logprob is not None:
            seq.logprobs.append(logprob)
        timing.tokens.append(now)
        if not seq.prefilled:
            seq.prefilled = True
            timing.first_token = timing.first_token or now
        stops = token in seq.stops
        if seq.watch is not None:
            try:
                stops |= seq.watch()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's alone
                self._fail(seq, f"its text could not be made: {type(error).__name__}: {error}", now)
                return
        if stops or len(tokens) >= seq.max_len:
            self._finish(seq, FinishReason.STOP if stops else FinishReason.LENGTH, now)

    def fail(self, seq: Sequence, error: str) -> None:
        """End a request with an error, or let one that has just ended have ended with it."""
        if seq.finish_reason is None:
            self._fail(seq, error, time.perf_counter())
            if not self.scheduler.running:
                self.settle()
        else:
            seq.finish_reason, seq.error = FinishReason.ERROR, error

    def _fail(self, seq: Sequence, error: str, now: float) -> None:
        """End a request that cannot go on; what it has cached is not for others."""
        seq.error = error
        self.blocks.withdraw(seq)
        self._finish(seq, FinishReason.ERROR, now)

    def _finish(self, seq: Sequence, reason: FinishReason, now: float) -> None:
        self._settle_backlog()
        seq.finish_reason = reason
        seq.timing.finished = now
        self.scheduler.remove(seq)
        if seq.num_pending:
            self._leaving.append(seq)
        else:
            self.blocks.release(seq)
        del self._seqs[seq.request_id]
        # Those that have not begun end with it.
        for sibling in seq.siblings:
            sibling.finish_reason, sibling.error, sibling.timing.finished = reason, seq.error, now
        seq.siblings = []

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes."""
        self.blocks.reset_prefix_cache()

    def check_integrity(self) -> None:
        """Every request is in one queue, and every block accounted for (see `BlockManager.check_integrity`).

        Raises:
            AssertionError: One is not.
        """
        queued = [*self.scheduler.waiting, *self.scheduler.running]
        assert sorted(queued) == sorted(self._seqs), "a request is in two queues, or in none"
        self.blocks.check_integrity([*self._seqs.values(), *self._leaving])
