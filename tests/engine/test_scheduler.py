"""Which sequences do what in each step, as tables: `a:0-4 b:0-2 | c d` prefills a's first four tokens and b's first
two, then decodes c and d.
"""

import itertools
import random
from collections import Counter

import pytest

from engine import SamplingParams
from engine.block_manager import BlockManager
from engine.scheduler import Limits, Plan, Scheduler
from engine.sequence import Sequence
from engine.timing import Timing

UNLIMITED = Limits(
    mode="online",
    max_active=100,
    max_num_seqs=100,
    max_num_batched_tokens=100,
    prefill_max_batch_size=100,
    prefill_max_tokens=100,
    chunked_prefill=True,
    decode_first=False,
)


class Engine:
    """A scheduler, and sequences whose every token is a new number, so that no two begin alike."""

    def __init__(self, *, num_blocks=100, block_size=2, prefix_cache=False, **limits):
        self.blocks = BlockManager(num_blocks, block_size, prefix_cache=prefix_cache)
        self.scheduler = Scheduler(self.blocks, Limits(**(vars(UNLIMITED) | limits)))
        self.seqs = {}
        self._tokens = itertools.count()

    def add(self, names, prompt, max_tokens=100):
        """A request for each letter."""
        for name in names:
            tokens = [next(self._tokens) for _ in range(prompt)]
            params = SamplingParams(max_tokens=max_tokens)
            self.seqs[name] = Sequence(name, tokens, prompt, params, 0, Timing(0.0))
            self.scheduler.add(self.seqs[name])
        return self

    def step(self):
        plan = self.scheduler.schedule()
        self.blocks.take_copies()
        for chunk in plan.prefill:
            chunk.seq.computed = chunk.end
            self.blocks.publish(chunk.seq)
        for seq in plan.decode:
            seq.computed += 1
            self.blocks.publish(seq)
        for seq in [*plan.decode, *(chunk.seq for chunk in plan.prefill if chunk.last)]:
            seq.prefilled = True
            seq.tokens.append(next(self._tokens))
            if seq.num_output == seq.params.max_tokens:
                self.scheduler.remove(seq)
                self.blocks.release(seq)
                del self.seqs[seq.request_id]
        self.blocks.check_integrity(self.seqs.values())
        prefill = [f"{chunk.seq.request_id}:{chunk.start}-{chunk.end} " for chunk in plan.prefill]
        return f"{''.join(prefill)}| {' '.join(seq.request_id for seq in plan.decode)}".strip()

    def steps(self, count):
        return [self.step() for _ in range(count)]

    def run(self):
        """All steps until nothing is left to do."""
        steps = []
        while self.scheduler.has_work:
            steps.append(self.step())
        assert self.blocks.num_free == self.blocks.num_blocks
        return steps

    @property
    def waiting(self):
        return "".join(self.scheduler.waiting)

    @property
    def running(self):
        return "".join(self.scheduler.running)


def test_with_nothing_to_do_nothing_is_planned():
    assert Engine().scheduler.schedule() == Plan()


def test_a_request_is_prefilled_then_decodes():
    assert Engine().add("a", 3, max_tokens=3).run() == ["a:0-3 |", "| a", "| a"]


def test_requests_join_those_under_way():
    engine = Engine().add("a", 3, max_tokens=4)
    steps = engine.steps(2)
    engine.add("b", 2, max_tokens=2)
    assert steps + engine.run() == ["a:0-3 |", "| a", "b:0-2 | a", "| a b"]


# Limits


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        ({}, ["a:0-3 b:0-3 c:0-3 |", "| a b c"]),
        ({"max_num_batched_tokens": 5}, ["a:0-3 b:0-2 |", "b:2-3 c:0-3 | a", "| a b c", "| b c"]),
        ({"max_num_batched_tokens": 2}, ["a:0-2 |", "a:2-3 b:0-1 |", "b:1-3 |", "c:0-2 |", "c:2-3 | a", "| a b"]),
        ({"prefill_max_tokens": 4}, ["a:0-3 b:0-1 |", "b:1-3 c:0-2 | a", "c:2-3 | a b", "| b c"]),
        ({"prefill_max_batch_size": 2}, ["a:0-3 b:0-3 |", "c:0-3 | a b", "| a b c"]),
        ({"max_num_seqs": 2}, ["a:0-3 b:0-3 c:0-3 |", "| a b", "| a b", "| c"]),
        ({"max_active": 2}, ["a:0-3 b:0-3 |", "| a b", "| a b", "c:0-3 |"]),
        ({"mode": "naive"}, ["a:0-3 |", "| a", "| a", "b:0-3 |"]),
    ],
    ids=str,
)
def test_limits(limits, steps):
    engine = Engine(**limits).add("abc", 3, max_tokens=3)
    assert engine.run()[: len(steps)] == steps


@pytest.mark.parametrize(
    ("first", "steps"), [(False, ["c:0-4 |", "c:4-7 | a", "| a b c"]), (True, ["c:0-2 | a b", "c:2-4 | a b"])]
)
def test_decode_first_takes_its_tokens_before_prefill_does(first, steps):
    engine = Engine(max_num_batched_tokens=4, decode_first=first).add("ab", 1)
    engine.step()
    engine.add("c", 7)
    assert engine.steps(len(steps)) == steps


def test_decode_first_may_leave_prefill_nothing():
    engine = Engine(max_num_batched_tokens=2, decode_first=True).add("ab", 1, max_tokens=3).add("c", 1, max_tokens=1)
    assert engine.run() == ["a:0-1 b:0-1 |", "| a b", "| a b", "c:0-1 |"]


def test_forks_do_not_make_a_step_larger():
    engine = Engine(max_num_batched_tokens=1, decode_first=True).add("a", 1, max_tokens=2)
    engine.step()
    fork(engine, "a", "b")
    assert engine.run() == ["| a", "| b"]


def test_who_is_not_prefilled_in_a_step_is_not_admitted_in_it():
    engine = Engine(prefill_max_batch_size=2).add("abc", 2)
    engine.step()
    assert (engine.running, engine.waiting) == ("ab", "c")


# Prompts that may not be cut


def test_uncut_prompts_share_a_step_while_they_fit():
    engine = Engine(chunked_prefill=False, max_num_batched_tokens=5)
    assert engine.add("ab", 2).add("c", 3).steps(2) == ["a:0-2 b:0-2 |", "c:0-3 | a b"]


def test_an_uncut_prompt_that_is_longer_than_a_step_goes_alone():
    engine = Engine(chunked_prefill=False, max_num_batched_tokens=5).add("a", 1).add("b", 9).add("c", 1)
    assert engine.steps(4) == ["a:0-1 |", "b:0-9 |", "c:0-1 | a b", "| a b c"]


def test_nobody_decodes_beside_an_uncut_prompt_that_takes_more_than_a_step():
    engine = Engine(chunked_prefill=False, max_num_batched_tokens=5).add("abc", 1)
    engine.step()
    assert engine.add("d", 7).steps(2) == ["d:0-7 |", "| a b c d"]


def test_what_is_cached_of_an_uncut_prompt_does_not_count():
    engine = Engine(chunked_prefill=False, max_num_batched_tokens=4, prefix_cache=True).add("a", 4, max_tokens=1)
    head = engine.seqs["a"].tokens[:4]
    engine.step()
    engine.add("b", 1).add("c", 6)
    engine.seqs["c"].tokens[:4] = head
    assert engine.steps(1) == ["b:0-1 c:4-6 |"]


# Order


def test_nobody_overtakes_a_request_that_does_not_fit_yet():
    engine = Engine(num_blocks=4).add("a", 5, max_tokens=2).add("b", 4, max_tokens=1).add("c", 1, max_tokens=1)
    assert engine.run() == ["a:0-5 |", "| a", "b:0-4 c:0-1 |"]


def test_each_that_runs_keeps_a_block_to_grow_into():
    engine = Engine(num_blocks=5).add("a", 4).add("b", 4).add("c", 1)
    # Two blocks, two blocks and one to spare: no room for c beside a and b.
    assert engine.steps(2) == ["a:0-4 b:0-4 |", "| a"]
    assert engine.waiting == "bc"


def test_the_oldest_decode_where_not_all_can():
    engine = Engine(max_num_batched_tokens=2).add("abc", 1, max_tokens=3)
    assert engine.run() == ["a:0-1 b:0-1 |", "c:0-1 | a", "| a b", "| b c", "| c"]


# Offline


def test_offline_admits_nothing_until_the_batch_has_ended():
    engine = Engine(mode="offline", max_active=2).add("a", 1, max_tokens=2).add("b", 1, max_tokens=4)
    engine.add("cd", 1, max_tokens=2)
    assert engine.run() == ["a:0-1 b:0-1 |", "| a b", "| b", "| b", "c:0-1 d:0-1 |", "| c d"]


def test_offline_prefills_all_of_a_batch_before_it_decodes():
    engine = Engine(mode="offline", max_num_batched_tokens=3).add("abc", 2, max_tokens=2)
    assert engine.run() == ["a:0-2 b:0-1 |", "b:1-2 c:0-2 |", "| a b c"]


def test_offline_takes_what_came_before_decoding_began():
    engine = Engine(mode="offline").add("a", 1, max_tokens=3)
    engine.step()
    engine.add("b", 1, max_tokens=2)
    steps = engine.steps(2)
    engine.add("c", 1, max_tokens=1)
    assert steps + engine.run() == ["b:0-1 |", "| a b", "| a", "c:0-1 |"]


def test_offline_does_not_take_back_what_it_preempted_before_the_batch_has_ended():
    engine = Engine(mode="offline", num_blocks=3).add("a", 2, max_tokens=4).add("b", 2, max_tokens=2)
    assert engine.run() == ["a:0-2 b:0-2 |", "| a", "| a", "| a", "b:0-3 |"]


# Preemption


def test_the_last_admitted_gives_up_its_blocks_and_is_computed_anew():
    engine = Engine(num_blocks=4).add("a", 2, max_tokens=6).add("b", 2, max_tokens=4)
    # Each needs a third block at the fourth step; there is none.
    assert engine.run() == ["a:0-2 b:0-2 |", "| a b", "| a b", "| a", "| a", "| a", "b:0-5 |"]


def test_who_was_preempted_is_first_in_line():
    engine = Engine(num_blocks=6, max_active=3).add("abc", 2).add("d", 1)
    engine.steps(4)
    assert (engine.running, engine.waiting) == ("ab", "cd")
    engine.steps(2)
    assert (engine.running, engine.waiting) == ("a", "bcd")
    assert engine.seqs["b"].num_preemptions == engine.seqs["c"].num_preemptions == 1


def test_only_as_many_are_preempted_as_is_needed():
    engine = Engine(num_blocks=6).add("abc", 2)
    engine.steps(3)
    assert engine.step() == "| a b"


def test_the_oldest_is_never_preempted():
    engine = Engine(num_blocks=5, prefix_cache=True).add("abcdef", 3, max_tokens=6)
    preempted = set()
    while engine.scheduler.has_work:
        oldest = engine.running[:1]
        engine.step()
        assert not oldest or oldest not in engine.waiting
        preempted |= {name for name, seq in engine.seqs.items() if seq.num_preemptions}
    assert preempted


def test_who_is_not_prefilled_yet_can_be_preempted():
    engine = Engine(num_blocks=6, max_num_batched_tokens=2, decode_first=True).add("a", 2)
    engine.step()
    engine.add("b", 6)
    assert engine.steps(5) == ["b:0-1 | a", "b:1-2 | a", "b:2-3 | a", "b:3-4 | a", "| a"]
    assert (engine.running, engine.waiting) == ("a", "b")
    assert engine.seqs["b"].num_computed == 0


def test_what_is_still_cached_is_not_computed_anew():
    engine = Engine(num_blocks=4, prefix_cache=True).add("a", 2, max_tokens=4).add("b", 2, max_tokens=4)
    assert engine.run() == ["a:0-2 b:0-2 |", "| a b", "| a b", "| a", "b:2-5 |"]


def test_all_can_be_preempted_and_keep_their_order():
    engine = Engine(max_active=3).add("abcde", 2)
    engine.step()
    engine.scheduler.restart(engine.seqs.values())
    assert (engine.running, engine.waiting) == ("", "abcde")
    assert engine.blocks.num_free == engine.blocks.num_blocks
    assert engine.step() == "a:0-3 b:0-3 c:0-3 |"


# Forks


def fork(engine, name, child):
    parent = engine.seqs[name]
    seq = Sequence(child, list(parent.tokens), parent.num_prompt, parent.params, 0, Timing(0.0))
    seq.prefilled = True
    engine.blocks.fork(parent, seq)
    engine.seqs[child] = seq
    engine.scheduler.join(seq)


def test_a_fork_decodes_at_once_and_is_the_youngest():
    engine = Engine(max_active=1).add("a", 2)
    engine.step()
    fork(engine, "a", "b")
    assert engine.step() == "| a b"


def test_a_fork_is_preempted_where_there_is_no_room_to_copy_what_it_shares():
    engine = Engine(num_blocks=2).add("a", 3, max_tokens=2)
    engine.step()
    fork(engine, "a", "b")
    assert engine.run() == ["| a", "b:0-4 |"]


# Removal, progress


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_request_can_be_removed_wherever_it_is(name):
    engine = Engine(max_num_batched_tokens=3, max_active=2).add("a", 2).add("bc", 3)
    engine.step()
    assert (engine.seqs["a"].prefilled, engine.seqs["b"].prefilled, engine.waiting) == (True, False, "c")
    seq = engine.seqs.pop(name)
    engine.scheduler.remove(seq)
    engine.blocks.release(seq)
    engine.blocks.check_integrity(engine.seqs.values())
    assert name not in engine.running + engine.waiting
    assert all(name not in step for step in engine.steps(3))


@pytest.mark.parametrize("decode_first", [False, True])
@pytest.mark.parametrize("chunked_prefill", [False, True])
def test_small_requests_that_keep_coming_starve_neither_a_large_one_nor_the_oldest(chunked_prefill, decode_first):
    engine = Engine(num_blocks=12, max_num_batched_tokens=4, chunked_prefill=chunked_prefill, decode_first=decode_first)
    engine.add("a", 2, max_tokens=9).add("L", 16, max_tokens=4)
    for number in range(60):
        engine.add([f"small{number}"], 2, max_tokens=2)
        engine.step()
    assert not {"a", "L"} & engine.seqs.keys()
    engine.run()


# Packing


def lengths(engine, **prompts):
    for name, prompt in prompts.items():
        engine.add(name, prompt, max_tokens=1)
    return engine


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        # First come, first served cuts what does not fit.
        ({}, ["a:0-5 b:0-3 |", "b:3-6 c:0-3 d:0-2 |"]),
        # The longest that fits what is left; those that are left over fit the next step whole.
        ({"lookahead": 4, "force_fifo": 9}, ["b:0-6 d:0-2 |", "a:0-5 c:0-3 |"]),
        # It looks no further than it may.
        ({"lookahead": 2, "force_fifo": 9}, ["b:0-6 a:0-2 |", "a:2-5 c:0-3 d:0-2 |"]),
        # Nobody passes the oldest.
        ({"lookahead": 4, "force_fifo": 0}, ["a:0-5 b:0-3 |", "b:3-6 c:0-3 d:0-2 |"]),
        ({"lookahead": 4, "force_fifo": 9, "chunked_prefill": False}, ["b:0-6 d:0-2 |", "a:0-5 c:0-3 |"]),
    ],
    ids=str,
)
def test_packing(limits, steps):
    assert lengths(Engine(max_num_batched_tokens=8, **limits), a=5, b=6, c=3, d=2).run() == steps


def test_whoever_does_not_fit_is_passed_until_it_must_come():
    """Seven tokens wait behind eights that fill a step and keep coming; what is left of a step is never empty."""
    engine = lengths(Engine(max_num_batched_tokens=8, lookahead=9, force_fifo=3), L=7)
    pairs = itertools.pairwise("abcdefghijklm")
    steps = [lengths(engine, **{one: 8, other: 8}).step() for one, other in itertools.islice(pairs, 0, 12, 2)]
    assert steps == ["a:0-8 |", "b:0-8 |", "c:0-8 |", "L:0-7 d:0-1 |", "d:1-8 e:0-1 |", "e:1-8 f:0-1 |"]


def test_while_the_oldest_must_come_next_nobody_else_is_admitted():
    engine = Engine(num_blocks=10, lookahead=9, force_fifo=2, max_num_batched_tokens=30)
    engine.add("r", 4, max_tokens=8).step()
    engine.add("L", 18, max_tokens=2)
    for number in range(12):
        engine.add([f"small{number}"], 2, max_tokens=2)
        engine.step()
        if "L" in engine.running or "L" not in engine.seqs:
            break
    # Passed twice, then waited for.
    assert number < 12
    assert sum(name.startswith("small") for name in engine.seqs) >= number - 4
    engine.run()


@pytest.mark.parametrize("force_fifo", [0, 1, 8])
@pytest.mark.parametrize("chunked_prefill", [False, True])
def test_packing_starves_nobody(chunked_prefill, force_fifo):
    limits = {"lookahead": 16, "force_fifo": force_fifo, "chunked_prefill": chunked_prefill}
    engine = Engine(num_blocks=12, max_num_batched_tokens=6, **limits)
    engine.add("a", 2, max_tokens=9).add("L", 16, max_tokens=4)
    for number in range(80):
        engine.add([f"small{number}"], 3, max_tokens=2).add([f"other{number}"], 2, max_tokens=1)
        engine.step()
    assert not {"a", "L"} & engine.seqs.keys()
    assert not {f"{name}{number}" for name in ("small", "other") for number in range(20)} & engine.seqs.keys()
    engine.run()


def test_how_long_anybody_waits_is_bounded():
    """Of 40 requests none is passed over, while it is the oldest that waits, in more steps than is allowed."""
    rng = random.Random(3)
    engine = Engine(num_blocks=60, max_num_batched_tokens=16, lookahead=8, force_fifo=4, max_active=6)
    for number in range(40):
        engine.add([f"{number}"], rng.randint(1, 15), max_tokens=rng.randint(1, 4))
    passed = Counter()
    while engine.scheduler.has_work:
        waiting = list(engine.scheduler.waiting)
        engine.step()
        if waiting and waiting[0] in engine.scheduler.waiting and len(engine.scheduler.waiting) < len(waiting):
            passed[waiting[0]] += 1
    assert max(passed.values()) == 4


def test_a_request_that_can_never_run_is_a_loud_error():
    engine = Engine(num_blocks=2).add("a", 5)
    with pytest.raises(RuntimeError, match="nothing to do for 1 waiting and 0 running requests"):
        engine.step()


# Many at once


def test_a_crowd_gets_its_blocks_over_several_steps():
    names = [str(i) for i in range(90)]
    engine = Engine(num_blocks=2000, block_size=16).add(names, 1, max_tokens=60)
    engine.step()
    taken, free = [], engine.blocks.num_free
    for _ in range(50):
        engine.step()
        taken.append(free - engine.blocks.num_free)
        free = engine.blocks.num_free
    # The first block is full after 15 more tokens; the turns before share what is to be done, until it is little.
    assert taken[:16] == [0] * 7 + [10] * 6 + [0, 0, 30]
    assert sum(taken) == 3 * 90
    engine.run()


def test_a_crowd_waits_for_its_blocks_where_there_are_few():
    names = [str(i) for i in range(90)]
    engine = Engine(num_blocks=400, block_size=16).add(names, 1, max_tokens=40)
    engine.step()
    free = engine.blocks.num_free
    engine.steps(15)
    assert engine.blocks.num_free == free
    engine.step()
    assert engine.blocks.num_free == free - 90
