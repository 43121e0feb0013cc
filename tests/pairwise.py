"""Few cases that hold much."""

import itertools
import random


def pairwise(axes, seed=0):
    """Cases that hold every pair of values of two axes at least once, greedily and reproducibly."""
    rng = random.Random(seed)
    names = list(axes)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in axes[a] for y in axes[b]}
    cases = []
    while missing:
        fixed = dict(min(missing, key=repr))
        tries = [{n: fixed.get(n, rng.choice(axes[n])) for n in names} for _ in range(30)]
        covered = [missing & set(itertools.combinations(case.items(), 2)) for case in tries]
        best = max(range(len(tries)), key=lambda i: len(covered[i]))
        missing -= covered[best]
        cases.append(tries[best])
    return cases
