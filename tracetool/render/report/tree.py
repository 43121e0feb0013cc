"""The tree of ranges as plain values, for the page to sort and filter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracetool.differ import Status, TraceDiff
from tracetool.metrics import METRICS
from tracetool.render import words
from tracetool.render.tables import SHORT, SUMMARY_METRICS

if TYPE_CHECKING:
    from tracetool.differ import Cell, Comparison, DiffRow

MOST_ROWS = 1500
"""Ranges in a page; where there are more, those that changed come first."""


def tree(found: TraceDiff) -> dict[str, Any]:
    """All ranges and metrics of a diff (of one side or more), totals and self.

    A cell is a number, `[least, median, most]` where an exact metric's samples differ, or null where a side lacks the
    range or cannot hold the metric. Times are medians, in ns.
    """
    kept, left = _kept(found)
    other = TraceDiff(found.sides, scope="self" if found.scope == "total" else "total", per=found.per)
    others = {row.path: row for row in other.rows}
    names = [name for name in METRICS if any(name in row.metrics for row in kept)]
    same_kernels = all(
        side.summary.totals.get("kernels") == side.summary.totals.get("kernel_launches") for side in found.sides
    )
    return {
        "sides": [words.clean(side.label) for side in found.sides],
        "scope": found.scope,
        "metrics": [
            {
                "name": name,
                "short": SHORT.get(name, name).replace("_", " "),
                "unit": METRICS[name].unit.value,
                "exact": METRICS[name].exact,
                "meaning": METRICS[name].meaning,
                "shown": name == "calls" or (name in SUMMARY_METRICS and not (name == "kernels" and same_kernels)),
            }
            for name in names
        ],
        "rows": [_row(found, row, others.get(row.path), other.scope) for row in kept],
        "left": left,
    }


def _kept(found: TraceDiff) -> tuple[list[DiffRow], int]:
    rows = [row for row in found.rows if row.metrics]
    if len(rows) <= MOST_ROWS:
        return rows, 0
    changed = [row for row in rows if row.status is not Status.SAME][:MOST_ROWS]
    paths = {row.path for row in changed}
    same = [row for row in rows if row.path not in paths]
    paths |= {row.path for row in same[: MOST_ROWS - len(changed)]}
    return [row for row in rows if row.path in paths], len(rows) - len(paths)


def _row(found: TraceDiff, row: DiffRow, other: DiffRow | None, other_scope: str) -> dict[str, Any]:
    notes = [f"lined up by name with {words.path_text(path)}" for path in row.elsewhere if path]
    notes += [
        f"via graph in {side.label}"
        for side, replayed in zip(found.sides, words.replayed(found, row), strict=True)
        if replayed
    ]
    return {
        "name": words.clean(row.path[-1]),
        "path": words.clean(words.path_text(row.path)),
        "depth": len(row.path) - 1,
        "fates": [str(row.fate(number)) for number in range(len(found.variants))],
        "note": words.clean("; ".join(dict.fromkeys(notes))),
        found.scope: _metrics(row),
        other_scope: _metrics(other) if other is not None else {},
    }


def _metrics(row: DiffRow) -> dict[str, Any]:
    return {
        name: {
            "per": str(comparison.per),
            "cells": _cells(name, comparison),
            "verdicts": [str(verdict) for verdict in comparison.verdicts],
        }
        for name, comparison in row.metrics.items()
        if name in METRICS
    }


def _cells(name: str, comparison: Comparison) -> list[Any]:
    return [_cell(cell, exact=METRICS[name].exact) for cell in (comparison.baseline, *comparison.variants)]


def _cell(cell: Cell | None, *, exact: bool) -> Any:
    if cell is None or not cell.count:
        return None
    if not exact:
        return _plain(cell.median)
    if cell.least == cell.most:
        return cell.least
    return [cell.least, _plain(cell.median), cell.most, round(float(cell.mean), 3)]


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value
