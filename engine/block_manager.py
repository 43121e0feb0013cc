"""Which sequence owns which block of the KV cache, and which blocks hold a prefix that may come again.

A block is a number; it stands for `block_size` positions in every layer's cache. A block is at any moment

    free      nobody's, and nothing worth keeping in it
    used      of one sequence or several: as many references as block tables that hold it
    cached    nobody's, but full of tokens that may come again: given away last, the longest unused first

Only full blocks are cached. Each is known by a hash of its tokens and of the block before it; a hit is confirmed by
comparing both, so a collision of hashes costs a hit and never a wrong token.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Many
from dataclasses import dataclass

from engine.sequence import Sequence

# The chain before the first block.
ROOT = 0


@dataclass
class PrefixCacheStats:
    """What the prefix cache did, in tokens of admitted sequences (those admitted again after a preemption too)."""

    queries: int = 0
    queried_tokens: int = 0
    hits: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0


@dataclass(frozen=True)
class _Content:
    """What a cached block holds: its tokens, after the block called `before`; `name` is its own, never used again."""

    key: int
    before: int
    tokens: tuple[int, ...]
    name: int


class BlockManager:
    """Hands out blocks, in constant time each.

    Args:
        num_blocks: Blocks in the cache.
        block_size: Positions a block.
        prefix_cache: Whether full blocks are kept for prompts that begin alike.
        hash_content: Replaces `hash`, for tests of collisions.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_cache: bool = True,
        hash_content: Callable[[tuple[int, tuple[int, ...]]], int] = hash,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_cache = prefix_cache
        self.stats = PrefixCacheStats()
        self._hash = hash_content
        self._last_name = ROOT
        self.clear()

    def clear(self) -> None:
        """Take all blocks back, and forget what they hold; those who had some must forget them too."""
        self._free = deque(range(self.num_blocks))
        self._unused: OrderedDict[int, None] = OrderedDict()
        self._references = [0] * self.num_blocks
        self._content: dict[int, _Content] = {}
        self._by_key: dict[int, int] = {}
        # Copies not made yet, target to source; each keeps a reference to its source.
        self._copies: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be had, cached ones included."""
        return len(self._free) + len(self._unused)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks so many tokens need."""
        return -(-num_tokens // self.block_size)

    def admit(self, seq: Sequence, *, reserve: int = 0, at_most: int | None = None) -> bool:
        """Give a sequence without blocks what its tokens need, cached blocks where its tokens begin with them.

        At least the last token is left to be computed. When that makes it necessary to write to a cached block
        that others use, a copy of it is written to.

        Args:
            seq: `block_table`, `computed` and `num_cached_prompt` are set.
            reserve: Blocks that must remain free for others.
            at_most: Tokens that may be left to compute; any number when not given.

        Returns:
            Whether the sequence has been admitted; if not, nothing has changed.
        """
        # At least one block is needed, be it a cached one; looking for hits costs more than this.
        if self.num_free < 1 + reserve:
            return False
        num_tokens = len(seq.tokens)
        hits = self._match(seq.tokens)
        computed = min(len(hits) * self.block_size, num_tokens - 1)
        if at_most is not None and num_tokens - computed > at_most:
            return False
        # The block of the last token is written to, cached or not.
        shared = len(hits) * self.block_size > computed and self._references[hits[-1]] > 0
        new = self.blocks_for(num_tokens) - len(hits)
        revived = sum(not self._references[block] for block in hits)
        if self.num_free - revived < new + shared + reserve:
            return False
        for block in hits:
            self._acquire(block)
        seq.num_published = len(hits)
        seq.chain = self._content[hits[-1]].name if hits else ROOT
        seq.block_table = hits + [self._take() for _ in range(new)]
        seq.computed = computed
        if not seq.num_preemptions:
            seq.num_cached_prompt = computed
        if shared:
            self._unshare(seq, len(hits) - 1)
        self.stats.queries += 1
        self.stats.queried_tokens += num_tokens
        self.stats.hits += bool(hits)
        self.stats.hit_tokens += computed
        return True

    def cramped(self, seqs: Iterable[Sequence]) -> list[Sequence]:
        """Of sequences that decode, those for which `grow` has something to do before their next step."""
        size, references = self.block_size, self._references
        found = []
        for seq in seqs:
            table = seq.block_table
            # The step writes to the last block, or with one under way to that and the one before.
            if (
                len(table) * size < seq.next_length
                or references[table[-1]] > 1
                or references[table[seq.num_computed // size]] > 1
            ):
                found.append(seq)
        return found

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for a sequence's first `num_tokens` tokens, and make what will be written its own.

        Returns:
            Whether there was enough; if not, nothing has changed.
        """
        table = seq.block_table
        first = seq.num_computed // self.block_size
        shared = [i for i in range(first, len(table)) if self._references[table[i]] > 1]
        new = self.blocks_for(num_tokens) - len(table)
        if self.num_free < new + len(shared):
            return False
        for i in shared:
            self._unshare(seq, i)
        seq.block_table.extend(self._take() for _ in range(new))
        return True

    def publish(self, seq: Sequence) -> None:
        """Offer a sequence's blocks that are full of computed tokens to others."""
        if not self.prefix_cache:
            return
        size = self.block_size
        while (seq.num_published + 1) * size <= seq.num_computed:
            i = seq.num_published
            tokens = tuple(seq.tokens[i * size : (i + 1) * size])
            key = self._hash((seq.chain, tokens))
            block = self._by_key.get(key)
            if block is None:
                block = seq.block_table[i]
                self._last_name += 1
                self._content[block] = _Content(key, seq.chain, tokens, self._last_name)
                self._by_key[key] = block
            elif not self._holds(block, seq.chain, tokens):
                # Another content with this hash came first; what follows here cannot be found either.
                return
            seq.chain = self._content[block].name
            seq.num_published += 1

    def release(self, seq: Sequence) -> None:
        """Take all blocks from a sequence; its first blocks, which more prompts share, are evicted last."""
        for block in reversed(seq.block_table):
            self._release(block)
        seq.block_table = []
        seq.computed = seq.num_published = 0
        seq.chain = ROOT

    def withdraw(self, seq: Sequence) -> None:
        """Let nobody find the blocks of a sequence any more that no other sequence holds."""
        for block in seq.block_table:
            if self._references[block] == 1 and block in self._content:
                del self._by_key[self._content.pop(block).key]
        seq.num_published = 0
        seq.chain = ROOT

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let a child without blocks share all of its parent's; whoever writes to a shared one first copies it."""
        for block in parent.block_table:
            self._acquire(block)
        child.block_table = list(parent.block_table)
        child.computed, child.num_published, child.chain = (
            parent.num_computed,
            parent.num_published,
            parent.chain,
        )

    def take_copies(self) -> list[tuple[int, int]]:
        """Copies (source, target) to be made before anything else is written; they are the caller's from here."""
        copies = [(source, target) for target, source in self._copies.items()]
        self._copies.clear()
        for source, _ in copies:
            self._release(source)
        return copies

    def reset_prefix_cache(self) -> None:
        """Forget what blocks hold, those of running sequences as well."""
        self._free.extend(self._unused)
        self._unused.clear()
        self._content.clear()
        self._by_key.clear()

    def check_integrity(self, seqs: Iterable[Sequence]) -> None:
        """Every block is in one state, and references are those of these sequences (all that have blocks).

        Raises:
            AssertionError: They are not.
        """
        tables: list[Many[int]] = [seq.block_table for seq in seqs]
        held = Counter(block for table in tables for block in table) + Counter(self._copies.values())
        assert all(len(set(table)) == len(table) for table in tables), "a block stands twice in one table"
        assert [held[block] for block in range(self.num_blocks)] == self._references, "references are wrong"
        states = [*self._free, *self._unused, *held]
        assert sorted(states) == list(range(self.num_blocks)), "a block is in two states, or in none"
        assert self._unused.keys() <= self._content.keys(), "an unused block that nobody can find"
        assert not self._content.keys() & set(self._free), "a free block that can be found"
        assert {c.key: block for block, c in self._content.items()} == self._by_key, "blocks and hashes differ"

    def _match(self, tokens: Many[int]) -> list[int]:
        """The cached blocks that hold the beginning of these tokens."""
        hits: list[int] = []
        before = ROOT
        if not self._by_key:
            return hits
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            content = tuple(tokens[end - self.block_size : end])
            block = self._by_key.get(self._hash((before, content)))
            if block is None or not self._holds(block, before, content):
                break
            hits.append(block)
            before = self._content[block].name
        return hits

    def _holds(self, block: int, before: int, tokens: tuple[int, ...]) -> bool:
        content = self._content[block]
        return content.before == before and content.tokens == tokens

    def _take(self) -> int:
        if self._free:
            block = self._free.popleft()
        else:
            block, _ = self._unused.popitem(last=False)
            del self._by_key[self._content.pop(block).key]
            self.stats.evicted_blocks += 1
        self._references[block] = 1
        return block

    def _acquire(self, block: int) -> None:
        if not self._references[block]:
            del self._unused[block]
        self._references[block] += 1

    def _release(self, block: int) -> None:
        self._references[block] -= 1
        if self._references[block]:
            return
        if block in self._content:
            self._unused[block] = None
        else:
            self._free.append(block)
        source = self._copies.pop(block, None)
        if source is not None:
            self._release(source)

    def _unshare(self, seq: Sequence, index: int) -> None:
        """Put a copy in the place of a block that others use; the copy's reference to it is the sequence's."""
        source, target = seq.block_table[index], self._take()
        self._copies[target] = source
        seq.block_table = [*seq.block_table[:index], target, *seq.block_table[index + 1 :]]
