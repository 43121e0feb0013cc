"""Tokens that the steps of an unchanging batch have brought, and that nobody has looked at yet.

A step of many sequences takes the host longer to follow up than the device to compute, if each is given its token, its
time and its place one by one. While it is the same batch, no one ends and no one asks, a step's tokens are kept as the
array that came from the device; sequences get all of theirs at once, as soon as somebody looks at `Sequence.tokens`.
"""

import numpy as np

from engine.sequence import Sequence


class Backlog:
    """Steps of one batch.

    Args:
        seqs: The batch, none of whose sequences is in another backlog.

    Attributes:
        num_steps: Steps whose tokens have not been given out.
    """

    def __init__(self, seqs: list[Sequence]) -> None:
        self.seqs = seqs
        self._starts = [(len(seq.given), len(seq.timing.tokens), seq.computed) for seq in seqs]
        # Steps that end nobody by its length.
        self._room = min(seq.max_len - len(seq.given) for seq in seqs) - 1
        self._stops = sorted({stop for seq in seqs for stop in seq.stops})
        # How many steps have been given out, and those that have not. One value, so that an interruption anywhere
        # leaves nothing half done: what is given out again is the same.
        self._state: tuple[int, list[tuple[np.ndarray, float]]] = (0, [])
        self.num_steps = 0
        for seq in seqs:
            seq.backlog = self

    def take(self, tokens: np.ndarray, now: float) -> bool:
        """Keep a step's tokens, if that is all there is to do for them.

        Args:
            tokens: One a sequence, in the order of the batch; an array of its own.
            now: When they came.

        Returns:
            Whether they have been kept. If not, somebody ends or may end with this step.
        """
        given, steps = self._state
        if given + len(steps) >= self._room or tokens.min() < 0 or any((tokens == stop).any() for stop in self._stops):
            return False
        steps.append((tokens, now))
        self.num_steps += 1
        return True

    def give_out(self) -> None:
        """Give each sequence its tokens, with their times."""
        given, steps = self._state
        if not steps:
            return
        times = [now for _, now in steps]
        rows = np.stack([tokens for tokens, _ in steps], axis=1).tolist()
        for seq, new, (tokens, told, computed) in zip(self.seqs, rows, self._starts, strict=True):
            seq.given[tokens + given :] = new
            seq.timing.tokens[told + given :] = times
            seq.computed = computed + given + len(new)
        self._state = (given + len(steps), [])
        self.num_steps = 0

    def close(self) -> None:
        """Give out what there is, and let the sequences go."""
        self.give_out()
        for seq in self.seqs:
            seq.backlog = None
