"""TT12: one rank does what the others do not."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Cost, Culprit, Finding, Mend, Rule
from tracetool.findings.wording import amount
from tracetool.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.findings.subject import Subject
    from tracetool.summary import Path

_COMPARED = ("syncs", "h2d_copies", "d2h_copies", "d2d_copies", "kernel_launches", "graph_launches", "collectives")

_MEND = Mend(
    "Do the work on every rank or on none, or leave it out of the step: the others wait in the next collective for the one "
    "that does more. Logging and checks on one rank can read values that were copied without a wait.",
    "if rank == 0 and step % 100 == 0:  # not in each step\n    log(loss.item())",
)


def _find(subjects: list[Subject]) -> Iterator[Finding] | str:
    ranks = {rank: one for one in subjects if (rank := _rank(one)) is not None}
    if len(ranks) < 2:
        return "it compares ranks: give the traces of two or more, which name them (distributedInfo)"
    return _found(ranks)


def _rank(subject: Subject) -> int | None:
    told = subject.summary.metadata.get("distributedInfo")
    rank = told.get("rank") if isinstance(told, dict) else None
    return rank if isinstance(rank, int) else None


def _found(ranks: dict[int, Subject]) -> Iterator[Finding]:
    tables = {rank: _counts(one) for rank, one in ranks.items()}
    paths = dict.fromkeys(path for table in tables.values() for path, _ in table)
    for path in paths:
        for metric in _COMPARED:
            values = {rank: table.get((path, metric), 0.0) for rank, table in tables.items()}
            usual, agree = Counter(values.values()).most_common(1)[0]
            others = {rank: value for rank, value in values.items() if value != usual}
            # Of two that differ neither is the usual one: the lesser number is.
            if len(values) == 2 and others:
                usual = min(values.values())
                others = {rank: value for rank, value in values.items() if value != usual}
            elif agree * 2 <= len(values):
                continue
            for rank, value in others.items():
                yield _finding(ranks[rank], rank, path, metric, value, usual)


def _counts(subject: Subject) -> dict[tuple[Path, str], float]:
    """What each range does itself, a step: the median."""
    summary = subject.summary
    found: dict[tuple[Path, str], float] = {}
    for metric in _COMPARED:
        own = summary.value(metric, "self")
        for row in np.flatnonzero(own[: summary.outside_row]).tolist():
            samples = summary.step_samples(metric, row, "self") if summary.step_count else own[row : row + 1]
            found[summary.paths[row], metric] = float(np.median(samples))
    return found


def _finding(subject: Subject, rank: int, path: Path, metric: str, value: float, usual: float) -> Finding:
    summary = subject.summary
    row = summary.paths.index(path) if path in summary.paths else -1
    rows = summary.pieces(metric, row, "self").rows if row >= 0 else np.empty(0, dtype=np.int64)
    culprits: tuple[Culprit, ...] = subject.culprits(rows) if value > usual else ()
    return Finding(
        RULE,
        path,
        f"rank {rank} has {amount(value, metric)} {metric} a {subject.unit}, "
        f"{'the other' if usual is not None else ''} ranks {amount(usual, metric)}",
        {metric: value},
        subject.calls(row) if row >= 0 else 0.0,
        culprits,
        Cost(None, "what the other ranks wait for this one is not in its trace: compare their steps"),
        _MEND,
        rows,
        subject.summary.source,
    )


assert set(_COMPARED) <= set(METRICS)

RULE = Rule(
    "TT12",
    "ranks-differ",
    "A range in which one rank's launches, copies, syncs or collectives a step are not those of most ranks, where traces of "
    "several are given.",
    "All ranks wait in the next collective for the slowest, so what one does more costs every one of them.",
    _MEND,
    find_among=_find,
)
