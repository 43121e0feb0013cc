"""Who has which block, and which are kept for prompts that begin alike."""

import sys

import pytest

from engine import SamplingParams
from engine.block_manager import BlockManager, PrefixCacheStats
from engine.sequence import Sequence
from engine.timing import Timing


def sequence(*tokens):
    return Sequence("", list(tokens), len(tokens), SamplingParams(), 0, Timing(0.0))


def admitted(blocks, *tokens):
    """A sequence with blocks for its tokens."""
    seq = sequence(*tokens)
    assert blocks.admit(seq)
    return seq


def computed(blocks, *tokens):
    """A sequence whose tokens are all computed, as after its prefill."""
    seq = admitted(blocks, *tokens)
    blocks.take_copies()
    compute(blocks, seq)
    return seq


def compute(blocks, seq):
    seq.computed = len(seq.tokens)
    blocks.publish(seq)


def released(blocks, *tokens):
    """The table of a sequence that has come and gone."""
    seq = computed(blocks, *tokens)
    table = seq.block_table
    blocks.release(seq)
    return table


# One block space


def test_each_block_has_one_owner_and_comes_back():
    blocks = BlockManager(5, 2)
    one, two = admitted(blocks, 1, 2, 3), admitted(blocks, 4)
    assert len({*one.block_table, *two.block_table}) == 3
    assert blocks.num_free == 2
    blocks.check_integrity([one, two])
    blocks.release(one)
    blocks.release(two)
    assert blocks.num_free == 5
    blocks.check_integrity([one, two])


def test_an_admission_that_does_not_fit_changes_nothing():
    blocks = BlockManager(3, 2)
    other = computed(blocks, 1, 2)
    seq = sequence(1, 2, 3, 4, 5, 6, 7)
    assert not blocks.admit(seq)
    assert (seq.block_table, seq.num_computed, blocks.num_free, blocks.stats.queries) == ([], 0, 2, 1)
    blocks.check_integrity([other, seq])


def test_reserved_blocks_are_left():
    blocks = BlockManager(3, 2)
    assert not blocks.admit(sequence(1, 2, 3), reserve=2)
    assert blocks.admit(sequence(1, 2, 3), reserve=1)


def test_a_sequence_grows_a_block_when_it_needs_one():
    blocks = BlockManager(2, 2)
    seq = computed(blocks, 1, 2)
    table = seq.block_table
    assert blocks.grow(seq, 3)
    assert blocks.grow(seq, 4)
    # Whoever holds the list sees it grow.
    assert seq.block_table is table
    assert len(table) == 2
    assert not blocks.grow(seq, 5)
    assert len(table) == 2


def lines_run(work):
    count = 0

    def trace(_frame, event, _arg):
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_work_does_not_grow_with_the_pool():
    def come_and_go(blocks):
        seq = computed(blocks, 1, 2, 3)
        blocks.grow(seq, 5)
        blocks.release(seq)

    small, large = BlockManager(4, 2), BlockManager(10**6, 2)
    assert lines_run(lambda: come_and_go(small)) == lines_run(lambda: come_and_go(large))


# Prefix cache


def test_a_prompt_is_not_computed_where_another_began_alike():
    blocks = BlockManager(8, 2)
    table = released(blocks, 1, 2, 3, 4, 5)
    seq = admitted(blocks, 1, 2, 3, 4, 6, 7)
    assert seq.block_table[:2] == table[:2]
    assert (seq.num_computed, seq.num_cached_prompt) == (4, 4)


def test_blocks_are_shared_while_their_first_owner_runs():
    blocks = BlockManager(8, 2)
    one = computed(blocks, 1, 2, 3)
    two = admitted(blocks, 1, 2, 4)
    assert one.block_table[0] == two.block_table[0]
    blocks.check_integrity([one, two])
    blocks.release(one)
    blocks.check_integrity([two])
    assert blocks.num_free == 6


def test_nobody_finds_a_block_before_it_is_computed():
    blocks = BlockManager(8, 2)
    admitted(blocks, 1, 2, 3)
    assert admitted(blocks, 1, 2, 3).num_computed == 0


def test_a_block_that_is_not_full_is_not_found():
    blocks = BlockManager(8, 4)
    released(blocks, 1, 2, 3)
    assert admitted(blocks, 1, 2, 3, 4, 5).num_computed == 0


@pytest.mark.parametrize("hash_content", [hash, lambda content: hash(content[1])], ids=["good", "of_tokens"])
def test_the_same_tokens_after_another_beginning_are_not_found(hash_content):
    blocks = BlockManager(8, 2, hash_content=hash_content)
    released(blocks, 1, 2, 3, 4)
    released(blocks, 9, 9)
    assert admitted(blocks, 9, 9, 3, 4, 5).num_computed == 2


def test_what_follows_a_hit_is_found_after_it_alone():
    blocks = BlockManager(8, 2)
    released(blocks, 1, 2)
    released(blocks, 1, 2, 5, 6)
    assert len(blocks._match([1, 2, 5, 6])) == 2
    assert blocks._match([5, 6]) == []


def test_generated_tokens_are_found_too():
    blocks = BlockManager(8, 2)
    seq = computed(blocks, 1)
    for token in (2, 3, 4, 5):
        seq.tokens.append(token)
        blocks.grow(seq, len(seq.tokens))
        compute(blocks, seq)
    assert admitted(blocks, 1, 2, 3, 4, 7).num_computed == 4


def test_off_means_that_nothing_is_kept():
    blocks = BlockManager(8, 2, prefix_cache=False)
    released(blocks, 1, 2, 3, 4)
    assert admitted(blocks, 1, 2, 3, 4).num_computed == 0


def test_what_two_sequences_compute_at_once_is_kept_once():
    blocks = BlockManager(8, 2)
    one, two = admitted(blocks, 1, 2, 3), admitted(blocks, 1, 2, 4)
    compute(blocks, one)
    compute(blocks, two)
    blocks.check_integrity([one, two])
    assert one.block_table[0] != two.block_table[0]
    assert admitted(blocks, 1, 2, 5).block_table[0] == one.block_table[0]


def test_a_collision_costs_a_hit_and_is_never_taken_for_one():
    blocks = BlockManager(8, 2, hash_content=lambda _: 0)
    first = released(blocks, 1, 2, 3, 4)
    released(blocks, 5, 6, 7)
    assert admitted(blocks, 5, 6, 7).num_computed == 0
    again = admitted(blocks, 1, 2, 3, 4)
    assert (again.num_computed, again.block_table[0]) == (2, first[0])


def test_what_follows_a_collision_is_not_found_after_the_other():
    blocks = BlockManager(8, 2, hash_content=lambda content: content[0] and hash(content))
    released(blocks, 1, 2)
    released(blocks, 5, 6, 7, 8)
    assert len(blocks._match([1, 2, 7, 8])) == 1
    assert blocks._match([5, 6, 7, 8]) == []


def test_a_hash_is_free_again_when_its_block_is_evicted():
    blocks = BlockManager(2, 2, hash_content=lambda _: 0)
    released(blocks, 1, 2)
    released(blocks, 5, 6, 7)
    assert blocks.stats.evicted_blocks == 1
    released(blocks, 5, 6)
    assert admitted(blocks, 5, 6, 7).num_computed == 2


# The whole prompt is cached: its last token is computed again, in a block that may be another's


def test_a_whole_prompt_that_nobody_uses_is_written_in_place():
    blocks = BlockManager(8, 2)
    table = released(blocks, 1, 2, 3, 4)
    seq = admitted(blocks, 1, 2, 3, 4)
    assert (seq.block_table, seq.num_computed) == (table, 3)
    assert blocks.take_copies() == []


def test_of_a_whole_prompt_that_another_uses_the_last_block_is_copied():
    blocks = BlockManager(8, 2)
    other = computed(blocks, 1, 2, 3, 4)
    seq = admitted(blocks, 1, 2, 3, 4)
    (head, tail), (other_head, other_tail) = seq.block_table, other.block_table
    assert (head, seq.num_computed) == (other_head, 3)
    assert tail != other_tail
    blocks.check_integrity([other, seq])
    assert blocks.take_copies() == [(other_tail, tail)]
    blocks.check_integrity([other, seq])


def test_a_copy_needs_a_block_too():
    blocks = BlockManager(2, 2)
    other = computed(blocks, 1, 2, 3, 4)
    seq = sequence(1, 2, 3, 4)
    assert not blocks.admit(seq)
    blocks.check_integrity([other, seq])
    blocks.release(other)
    assert blocks.admit(seq)


def test_blocks_that_come_back_to_life_are_not_counted_as_free():
    blocks = BlockManager(3, 2)
    released(blocks, 1, 2, 3, 4)
    assert blocks.num_free == 3
    assert not blocks.admit(sequence(1, 2, 3, 4, 5, 6, 7))
    assert not blocks.admit(sequence(1, 2, 3, 4, 5), reserve=1)
    assert blocks.admit(sequence(1, 2, 3, 4, 5))


@pytest.mark.parametrize(("at_most", "admits"), [(3, False), (4, True)])
def test_what_must_be_computed_counts_without_what_is_cached(at_most, admits):
    blocks = BlockManager(8, 2)
    released(blocks, 1, 2, 3)
    assert blocks.admit(sequence(1, 2, 3, 4, 5, 6), at_most=at_most) is admits


# Eviction


def test_blocks_with_nothing_in_them_are_given_away_before_cached_ones():
    blocks = BlockManager(4, 2)
    cached = released(blocks, 1, 2)
    seq = admitted(blocks, 9, 9, 9, 9, 9)
    assert not set(cached) & set(seq.block_table)
    assert blocks.stats.evicted_blocks == 0


def test_the_longest_unused_is_evicted_first_and_use_makes_it_young():
    blocks = BlockManager(3, 1)
    for token in (1, 2, 3, 1):
        released(blocks, token)
    admitted(blocks, 9)
    assert [len(blocks._match([token])) for token in (1, 2, 3)] == [1, 0, 1]
    admitted(blocks, 9)
    assert [len(blocks._match([token])) for token in (1, 2, 3)] == [1, 0, 0]


def test_the_end_of_a_prompt_is_evicted_before_its_beginning():
    blocks = BlockManager(3, 2)
    released(blocks, 1, 2, 3, 4, 5, 6)
    other = admitted(blocks, 9)
    assert blocks.stats.evicted_blocks == 1
    blocks.release(other)
    assert admitted(blocks, 1, 2, 3, 4, 5).num_computed == 4


def test_what_a_sequence_uses_is_not_evicted():
    blocks = BlockManager(2, 2)
    seq = computed(blocks, 1, 2, 3)
    assert not blocks.admit(sequence(9))
    blocks.check_integrity([seq])


# Forks and copies


def fork(blocks, parent):
    child = sequence(*parent.tokens)
    blocks.fork(parent, child)
    return child


def test_a_fork_takes_no_blocks_and_the_first_to_write_makes_a_copy():
    blocks = BlockManager(4, 2)
    parent = computed(blocks, 1, 2, 3)
    child = fork(blocks, parent)
    assert blocks.num_free == 2
    assert child.block_table == parent.block_table
    head, tail = parent.block_table
    assert blocks.grow(parent, 4)
    assert parent.block_table[0] == head
    assert blocks.take_copies() == [(tail, parent.block_table[1])]
    # Now it is the child's alone.
    assert blocks.grow(child, 4)
    assert child.block_table == [head, tail]
    assert blocks.take_copies() == []
    blocks.check_integrity([parent, child])


def test_a_fork_at_the_edge_of_a_block_copies_nothing():
    blocks = BlockManager(4, 2)
    parent = computed(blocks, 1, 2)
    child = fork(blocks, parent)
    assert blocks.grow(parent, 3)
    assert blocks.grow(child, 3)
    assert blocks.take_copies() == []
    assert parent.block_table[1] != child.block_table[1]


def test_a_table_in_which_a_block_is_replaced_is_a_new_list():
    blocks = BlockManager(4, 2)
    parent = computed(blocks, 1)
    child = fork(blocks, parent)
    before = parent.block_table
    blocks.grow(parent, 2)
    assert parent.block_table is not before
    assert before == child.block_table


def test_without_room_for_a_copy_nothing_changes():
    blocks = BlockManager(1, 2)
    parent = computed(blocks, 1)
    child = fork(blocks, parent)
    assert not blocks.grow(parent, 2)
    blocks.check_integrity([parent, child])
    blocks.release(child)
    assert blocks.grow(parent, 2)


def test_the_source_of_a_copy_stays_until_the_copy_is_taken():
    blocks = BlockManager(2, 2)
    parent = computed(blocks, 1)
    child = fork(blocks, parent)
    assert blocks.grow(parent, 2)
    blocks.release(child)
    assert blocks.num_free == 0
    blocks.check_integrity([parent])
    blocks.take_copies()
    assert blocks.num_free == 1
    blocks.check_integrity([parent])


def test_a_copy_is_not_made_for_who_is_gone():
    blocks = BlockManager(2, 2)
    parent = computed(blocks, 1)
    child = fork(blocks, parent)
    assert blocks.grow(parent, 2)
    blocks.release(parent)
    blocks.check_integrity([child])
    assert blocks.take_copies() == []
    blocks.release(child)
    assert blocks.num_free == 2


# Statistics and reset


def test_statistics_count_tokens_of_admissions():
    blocks = BlockManager(3, 2)
    released(blocks, 1, 2, 3, 4)
    released(blocks, 1, 2, 3, 4)
    released(blocks, 1, 2, 9)
    released(blocks, 5, 5, 5, 5, 5)
    assert blocks.stats == PrefixCacheStats(queries=4, queried_tokens=16, hits=2, hit_tokens=5, evicted_blocks=2)


def test_after_a_reset_nothing_is_found_and_nothing_is_lost():
    blocks = BlockManager(8, 2)
    released(blocks, 1, 2, 3, 4)
    running = computed(blocks, 1, 2, 5, 6)
    blocks.reset_prefix_cache()
    blocks.check_integrity([running])
    assert blocks._match([1, 2, 5, 6]) == []
    blocks.release(running)
    assert blocks.num_free == 8
    blocks.check_integrity([])


def test_what_continues_forgotten_blocks_is_not_found():
    blocks = BlockManager(8, 2)
    running = computed(blocks, 1, 2, 5, 6)
    blocks.reset_prefix_cache()
    running.given += [7, 8]
    assert blocks.grow(running, 6)
    compute(blocks, running)
    assert blocks._match([1, 2, 5, 6, 7, 8]) == []
    blocks.check_integrity([running])


# The check that tests call after every step


def leak(blocks, _):
    blocks._free.popleft()


def two_owners(_, seqs):
    seqs[1].block_table[0] = seqs[0].block_table[1]


def twice_in_a_table(_, seqs):
    seqs[0].block_table[1] = seqs[0].block_table[0]


def free_and_used(blocks, seqs):
    blocks._free.append(seqs[0].block_table[0])


def free_and_found(blocks, _):
    blocks._free.append(blocks._unused.popitem()[0])


def unused_and_forgotten(blocks, _):
    block = next(iter(blocks._unused))
    del blocks._by_key[blocks._content.pop(block).key]


def a_hash_of_another(blocks, _):
    blocks._by_key[12345] = next(iter(blocks._unused))


def one_reference_too_many(blocks, seqs):
    blocks._references[seqs[0].block_table[0]] += 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (leak, "in two states, or in none"),
        (two_owners, "references are wrong"),
        (twice_in_a_table, "twice in one table"),
        (free_and_used, "in two states, or in none"),
        (free_and_found, "a free block that can be found"),
        (unused_and_forgotten, "nobody can find"),
        (a_hash_of_another, "blocks and hashes differ"),
        (one_reference_too_many, "references are wrong"),
    ],
)
def test_the_integrity_check_sees(damage, said):
    blocks = BlockManager(8, 2)
    seqs = [computed(blocks, 1, 2, 3), computed(blocks, 4)]
    released(blocks, 5, 6)
    blocks.check_integrity(seqs)
    damage(blocks, seqs)
    with pytest.raises(AssertionError, match=said):
        blocks.check_integrity(seqs)
