"""TT12: one rank does what the others do not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Cost, Culprit, Finding, Mend, Rule
from tracetool.findings.wording import amount
from tracetool.metrics import METRICS
from tracetool.rank_files import noted_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.findings.subject import Subject
    from tracetool.summary import Path

    Counts = dict[tuple[Path, str], float]

_COMPARED = ("syncs", "h2d_copies", "d2h_copies", "d2d_copies", "kernel_launches", "graph_launches", "collectives")
_MOST_DIFFERING = 0.5

_MEND = Mend(
    "",
    "Do the work on every rank or on none, or leave it out of the step: the others wait in the next collective for the "
    "one that does more. Logging and checks on one rank can read values that were copied without a wait.",
    "if rank == 0 and step % 100 == 0:  # not in each step\n    log(loss.item())",
)


def _find(subjects: list[Subject]) -> Iterator[Finding] | str:
    ranks = {rank: one for one in subjects if (rank := noted_rank(one.summary.metadata)) is not None}
    if len(ranks) < 2:
        return "it compares ranks: give the traces of two or more, which name them (distributedInfo)"
    tables = {rank: _counts(one) for rank, one in ranks.items()}
    keys = dict.fromkeys(key for table in tables.values() for key in table)
    differing = {
        path for path, metric in keys if len({table.get((path, metric), 0.0) for table in tables.values()}) > 1
    }
    if len(differing) > _MOST_DIFFERING * len({path for path, _ in keys}):
        return "the ranks do different work, as stages of a pipeline do: they differ in most of their ranges"
    return _found(ranks, tables, list(keys))


def _counts(subject: Subject) -> Counts:
    """What each range does itself, a step: the median."""
    summary = subject.summary
    found: Counts = {}
    for metric in _COMPARED:
        own = summary.value(metric, "self")
        for row in np.flatnonzero(own[: summary.outside_row]).tolist():
            samples = summary.step_samples(metric, row, "self") if summary.step_count else own[row : row + 1]
            found[summary.paths[row], metric] = float(np.median(samples))
    return found


def _found(ranks: dict[int, Subject], tables: dict[int, Counts], keys: list[tuple[Path, str]]) -> Iterator[Finding]:
    odd: dict[tuple[int, Path], dict[str, float]] = {}
    for path, metric in keys:
        values = {rank: table.get((path, metric), 0.0) for rank, table in tables.items()}
        usual, agree = Counter(values.values()).most_common(1)[0]
        if len(values) == 2:
            usual = min(values.values())  # of two that differ neither is the usual one: what is more is told
        elif agree * 2 <= len(values):
            continue
        for rank, value in values.items():
            if value != usual:
                odd.setdefault((rank, path), {})[metric] = usual
    for (rank, path), differs in odd.items():
        yield _finding(ranks, rank, path, differs, tables[rank])


def _finding(ranks: dict[int, Subject], rank: int, path: Path, usual: dict[str, float], counts: Counts) -> Finding:
    subject = ranks[rank]
    summary = subject.summary
    row = summary.paths.index(path) if path in summary.paths else -1
    values = {metric: counts.get((path, metric), 0.0) for metric in usual}
    more = [metric for metric, value in values.items() if value > usual[metric]]
    rows = [summary.pieces(metric, row, "self").rows for metric in more] if row >= 0 else []
    every = np.unique(np.concatenate(rows)) if rows else np.empty(0, dtype=np.int64)
    culprits: tuple[Culprit, ...] = subject.culprits(rows[0]) if rows else ()
    told = ", ".join(
        f"{amount(value, metric)} {metric} ({amount(usual[metric], metric)})" for metric, value in values.items()
    )
    others = "other rank" if len(ranks) == 2 else "other ranks"
    return Finding(
        RULE,
        path,
        f"rank {rank} has a {subject.unit}, with the numbers of the {others} in brackets: {told}",
        values,
        subject.calls(row) if row >= 0 else 0.0,
        culprits,
        Cost(None, "what the other ranks wait for this one is not in its trace: compare their steps"),
        _MEND,
        every,
        summary.source,
    )


assert set(_COMPARED) <= set(METRICS)

RULE = Rule(
    "TT12",
    "ranks-differ",
    "A range in which one rank's launches, copies, syncs or collectives a step are not those of most ranks, where "
    "traces of several are given that do the same in most of their ranges.",
    "All ranks wait in the next collective for the slowest, so what one does more costs every one of them.",
    "None: what the other ranks wait for one is not in its trace.",
    (_MEND,),
    find_among=_find,
    needs_device=False,
)
