"""Which sequences do what in the next step.

Requests wait in the order in which they came. They are admitted in that order, or (`pack`) so that prompts fill a step,
where the oldest is passed over only so often. A sequence is admitted when there are blocks for all of its tokens, is
prefilled (in chunks, where a step's budget is smaller), then decodes one token a step. Where decoding needs a block and
none is left, the sequence admitted last gives up its blocks and waits again, first in line; its tokens are computed
anew when it comes back. The oldest sequence is never made to wait by others for long, and every request alone fits into
the cache, so every request ends.
"""

import itertools
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.block_manager import BlockManager
from engine.sequence import Sequence

# More sequences than this in need of a block in one turn are a crowd, which is served over so many turns before it.
_CROWD = 32
_AHEAD = 8
# Free blocks for each running sequence.
_PLENTY = 4


@dataclass(frozen=True)
class Chunk:
    """Tokens `start` to `end` of a sequence, to be computed in one prefill.

    Attributes:
        last: Whether nothing of the sequence is left to compute, so that its next token can be sampled.
    """

    seq: Sequence
    start: int
    end: int
    last: bool


def sampled_by(chunks: list[Chunk]) -> list[Sequence]:
    """The sequences for which a prefill of these chunks samples a token, in its order."""
    return [seq for chunk in chunks if chunk.last for seq in (chunk.seq, *chunk.seq.siblings)]


@dataclass
class Plan:
    """What a step does."""

    prefill: list[Chunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """What bounds a step.

    Attributes:
        mode: `online` admits whenever there is room; `offline` fills a batch, prefills it, and admits nothing until it
            has ended; `naive` has one request at a time.
        max_active: Sequences that hold blocks.
        max_num_seqs: Sequences that decode in a step.
        max_num_batched_tokens: Tokens of a step.
        prefill_max_batch_size: Sequences that are prefilled in a step.
        prefill_max_tokens: Tokens that are prefilled in a step.
        chunked_prefill: Whether a prompt may be cut to fit. If not, a step's first prompt is taken whole, however
            long it is.
        decode_first: Whether decoding takes its tokens from the budget first, or prefill.
        lookahead: Waiting requests among which the next is chosen; 1 is first come, first served.
        force_fifo: Steps in which the oldest waiting request may be passed over before it must come next.
    """

    mode: str
    max_active: int
    max_num_seqs: int
    max_num_batched_tokens: int
    prefill_max_batch_size: int
    prefill_max_tokens: int
    chunked_prefill: bool
    decode_first: bool
    lookahead: int = 1
    force_fifo: int = 0


class Scheduler:
    """Queues, and the plan of the next step."""

    def __init__(self, blocks: BlockManager, limits: Limits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.waiting: OrderedDict[str, Sequence] = OrderedDict()
        # In the order of admission, which is the order of service.
        self.running: dict[str, Sequence] = {}
        self.num_preemptions = 0
        self._filling = True
        # Who decodes, as long as that is known; and in which turn somebody needs a block or ends.
        self._ready: list[Sequence] | None = None
        self._due: dict[int, list[Sequence]] = {}
        self._turn = 0
        # Whose prompt was cut where the last prefill ended.
        self._cut: Sequence | None = None
        # The oldest that waits, and in how many steps others were admitted before it.
        self._oldest: Sequence | None = None
        self._passed = 0
        self._max_active = 1 if limits.mode == "naive" else limits.max_active
        self.max_active = limits.max_active

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended."""
        return bool(self.waiting or self.running)

    def add(self, seq: Sequence) -> None:
        """Put a request at the end of the line."""
        self.waiting[seq.request_id] = seq

    def join(self, seq: Sequence) -> None:
        """Let a sequence that has blocks already (a fork) run."""
        self.running[seq.request_id] = seq
        self._changed()

    def remove(self, seq: Sequence) -> None:
        """Forget a sequence that has ended; its blocks are the caller's to free."""
        if self.running.pop(seq.request_id, None) is None:
            del self.waiting[seq.request_id]
        self._changed()

    def schedule(self) -> Plan:
        """Plan a step: choose sequences, and give them the blocks that they write to.

        Raises:
            RuntimeError: Nothing can be done though there is work: a bug, made loud.
        """
        limits = self.limits
        if not self.running:
            self._filling = True
        plan = Plan()
        if limits.mode == "offline" and self._filling:
            plan.prefill = self._prefill(limits.max_num_batched_tokens)
            self._filling = bool(plan.prefill)
        if not plan.prefill:
            ready = self._grow_decoding()
            budget = limits.max_num_batched_tokens - (len(ready) if limits.decode_first else 0)
            plan.prefill = self._prefill(budget)
            left = limits.max_num_batched_tokens - sum(chunk.end - chunk.start for chunk in plan.prefill)
            # The same list for the same batch, by which others know that it is.
            plan.decode = ready if limits.decode_first or left >= len(ready) else ready[: max(0, left)]
        idle = self.has_work and not (plan.prefill or plan.decode)
        if idle and not any(seq.num_pending for seq in self.running.values()):
            raise RuntimeError(
                f"nothing to do for {len(self.waiting)} waiting and {len(self.running)} running requests"
            )
        return plan

    def _grow_decoding(self) -> list[Sequence]:
        """The sequences that decode, each with a block for its next token; preempts until there are enough.

        A step moves each on by a token, so what it will need, and when, is known: a step looks at those whose turn it
        is, and at all only when it is not the same sequences any more.
        """
        self._turn += 1
        changing = self._due.pop(self._turn, [])
        if self._ready is None or any(seq.next_length >= seq.max_len for seq in changing):
            most = min(self.limits.max_num_seqs, self.limits.max_num_batched_tokens)
            # Whoever ends with the token that is being sampled has nothing left to compute.
            changing = [seq for seq in self.running.values() if seq.prefilled and seq.next_length < seq.max_len][:most]
            self._ready, self._due = changing, {}
        ready, preempted = self._ready, self.num_preemptions
        for seq in self.blocks.cramped(changing):
            while seq.request_id in self.running and not self.blocks.grow(seq, seq.next_length):
                self._preempt(next(reversed(self.running.values())))
        if self.num_preemptions > preempted:
            return [seq for seq in ready if seq.request_id in self.running]
        self._note_turns([*changing, *self._grow_ahead()])
        return ready

    def _note_turns(self, seqs: list[Sequence]) -> None:
        """Note when each of these needs a block or ends."""
        size, turn, due = self.blocks.block_size, self._turn, self._due
        for seq in seqs:
            steps = min(len(seq.block_table) * size, seq.max_len - 1) - seq.next_length
            due.setdefault(turn + steps + 1, []).append(seq)

    def _grow_ahead(self) -> list[Sequence]:
        """Where a crowd needs blocks in the same turn soon, give some of it theirs now; who got one.

        Otherwise the device would wait for the host in that turn.
        """
        for ahead in range(1, _AHEAD + 1):
            crowd = self._due.get(self._turn + ahead, [])
            if len(crowd) <= _CROWD:
                continue
            early = [seq for seq in crowd[: -(-len(crowd) // (ahead + 1))] if seq.next_length + ahead < seq.max_len]
            # Blocks that nobody needs yet are taken only where there are plenty.
            if not early or self.blocks.num_free < _PLENTY * len(self.running):
                break
            for seq in early:
                self.blocks.grow(seq, seq.next_length + ahead)
            taken = set(early)
            self._due[self._turn + ahead] = [seq for seq in crowd if seq not in taken]
            return early
        return []

    def _changed(self) -> None:
        """It is not the same sequences any more that decode, or not with the same blocks."""
        self._ready = None

    def restart(self, seqs: Iterable[Sequence]) -> None:
        """Let these sequences wait, in their order, without blocks, whatever state an interruption has left behind."""
        known = {seq.request_id: seq for seq in seqs}
        self.blocks.clear()
        order = [i for i in dict.fromkeys([*self.running, *self.waiting, *known]) if i in known]
        self._changed()
        self.running = {}
        self.waiting = OrderedDict((i, known[i]) for i in order)
        for seq in self.waiting.values():
            if seq.block_table:
                seq.num_preemptions += 1
                self.num_preemptions += 1
            seq.block_table = []
            seq.computed = seq.num_pending = 0
            seq.prefilled = False

    def _preempt(self, seq: Sequence) -> None:
        self._changed()
        del self.running[seq.request_id]
        self.blocks.release(seq)
        seq.prefilled = False
        seq.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting[seq.request_id] = seq
        self.waiting.move_to_end(seq.request_id, last=False)

    def _prefill(self, budget: int) -> list[Chunk]:
        """Chunks of the sequences under way, then of those that can be admitted."""
        limits = self.limits
        left = min(budget, limits.prefill_max_tokens)
        chunks: list[Chunk] = []

        def take(seq: Sequence) -> None:
            """Add a chunk of the sequence: what is left of it, or of the step."""
            nonlocal left
            self._changed()
            wanted = len(seq.tokens) - seq.num_computed
            tokens = min(wanted, left) if limits.chunked_prefill else wanted
            self._cut = seq if tokens < wanted else None
            chunks.append(Chunk(seq, seq.num_computed, seq.num_computed + tokens, last=tokens == wanted))
            left -= tokens

        # At most one is under way, since a prompt is cut only where a step ends.
        cut = self._cut
        if cut is not None and self.running.get(cut.request_id) is cut and left > 0:
            take(cut)
        if not self.waiting:
            self._oldest = None
            return chunks
        oldest = next(iter(self.waiting.values()))
        if oldest is not self._oldest:
            self._oldest, self._passed = oldest, 0
        running, room = len(self.running), self._room()
        while self._may_admit(len(chunks), room) and left > 0:
            new = self._admit_one(left, room, alone=not chunks)
            if new is None:
                break
            take(new)
            self.running[new.request_id] = self.waiting.pop(new.request_id)
            room -= 1 + len(new.siblings)
        self._passed += len(self.running) > running and oldest.request_id in self.waiting
        return chunks

    def _admit_one(self, left: int, room: int, *, alone: bool) -> Sequence | None:
        """The waiting sequence that is admitted next, with its blocks; None where there is none.

        Args:
            left: Tokens that the step has room for.
            room: See `_room`.
            alone: Whether it has no others yet.
        """
        limits = self.limits
        forced = limits.lookahead == 1 or self._passed >= limits.force_fifo
        if not forced:
            ahead = list(itertools.islice(self.waiting.values(), limits.lookahead))
            # The longest first, the older first among equals.
            for seq in sorted(ahead, key=lambda seq: -len(seq.tokens)):
                if self._admit(seq, left, room):
                    return seq
        seq = next(iter(self.waiting.values()))
        whole = not limits.chunked_prefill and not alone
        return seq if self._admit(seq, left if whole else seq.num_tokens, room) else None

    def _admit(self, seq: Sequence, at_most: int, room: int) -> bool:
        """Give it blocks, if there are enough, and no more than so many of its tokens are left to compute."""
        if self.running and 1 + len(seq.siblings) > room:
            return False
        # Each running sequence keeps a block to grow into; otherwise what is admitted now is preempted next.
        return self.blocks.admit(seq, reserve=len(self.running), at_most=at_most)

    def may_admit(self) -> bool:
        """Whether the mode and the limits on numbers let a waiting sequence in."""
        return bool(self.waiting) and self._may_admit(0, self._room())

    def _may_admit(self, num_chunks: int, room: int) -> bool:
        closed = self.limits.mode == "offline" and not self._filling
        if not self.waiting or closed or num_chunks >= self.limits.prefill_max_batch_size:
            return False
        return not self.running or room > 0

    def _room(self) -> int:
        """Sequences that may come to hold blocks; siblings count before the prompt that they share is computed."""
        running = self.running.values()
        return self._max_active - len(running) - sum(len(seq.siblings) for seq in running if seq.siblings)
