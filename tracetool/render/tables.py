"""Results as tables of text, which terminal and Markdown then draw in their own way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from tracetool.differ import Cell, Per, Status, Verdict, outer_paths
from tracetool.metrics import METRICS, Metric, Unit, lookup
from tracetool.render import words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.differ import Comparison, Contribution, DiffRow, TraceDiff
    from tracetool.render.view import View
    from tracetool.summary import TraceSummary

SUMMARY_METRICS = (
    "kernel_launches",
    "graph_launches",
    "kernels",
    "h2d_copies",
    "h2d_bytes",
    "d2h_copies",
    "d2d_copies",
    "syncs",
    "collectives",
    "compiles",
    "autotunes",
    "allocs",
    "peak_bytes",
    "ops",
    "cpu_ns",
    "gpu_busy_ns",
)
"""Columns of a summary unless others are asked for, the telling ones first; those that are 0 are left out."""

MOST_RANGES = 400
"""More ranges than this are not read by anybody: the rest is counted, and shown when asked for."""

DETAILS = frozenset(
    {"copies", "copy_bytes", "gpu_ns", "launch_ns", "graph_kernels", "sync_wait_ns", "alloc_bytes", "collective_bytes"}
    | {name for name in METRICS if "pageable" in name or "pinned" in name}
)
"""Metrics that say again, or in parts, what another says: in a diff only where the change was made."""

SHORT = {
    "kernel_launches": "launches",
    "graph_launches": "graphs",
    "unlinked_launches": "unlinked",
    "h2d_copies": "HtoD",
    "h2d_bytes": "HtoD bytes",
    "d2h_copies": "DtoH",
    "d2h_bytes": "DtoH bytes",
    "d2d_copies": "DtoD",
    "cpu_ns": "cpu",
    "gpu_ns": "gpu",
    "peak_bytes": "peak",
    "gpu_busy_ns": "gpu busy",
    "launch_ns": "in launches",
    "sync_wait_ns": "in syncs",
    "compile_ns": "compiling",
    "autotune_ns": "tuning",
}


@dataclass(frozen=True, slots=True)
class RangeLine:
    """One range of a summary: its path, and a text a column."""

    path: tuple[str, ...]
    cells: tuple[str, ...]
    weight: float
    """Its part of the whole trace's wall time on the CPU, 0 to 1."""
    note: str = ""
    """`via graph` where the range did not run here, but was given back work of graph launches."""


@dataclass(frozen=True, slots=True)
class SummaryTable:
    """A summary as text."""

    per: Per
    metrics: tuple[str, ...]
    lines: tuple[RangeLine, ...]
    left: int
    """Ranges left out because there are too many of them to read."""


_VIA_GRAPH = "via graph"


def summary_table(found: TraceSummary, view: View) -> SummaryTable:
    """Rows and columns of a summary, per step where there are steps."""
    per = view.per or (Per.STEP if found.step_count else Per.TRACE)
    metrics = view.metrics or tuple(
        name for name in SUMMARY_METRICS if name in found.metrics and (name != "kernels" or _kernels_tell(found))
    )
    whole = max(found.value("cpu_ns", "total").tolist(), default=0) if "cpu_ns" in found.metrics else 0
    totals = {name: found.value(name, "total").tolist() for name in metrics}
    counted = np.any(
        [found.value(name, "total") != 0 for name in found.metrics] or [np.zeros(len(found.paths))], axis=0
    )
    cpu = found.value("cpu_ns", "total").tolist() if whole else []
    lines: list[RangeLine] = []
    left = 0
    for row, path in enumerate(found.paths):
        if not view.shows(path):
            continue
        if not view.everything and (
            not counted[row] or (not found.calls[row] and not any(values[row] for values in totals.values()))
        ):
            continue
        if len(lines) == MOST_RANGES and not view.everything:
            left += 1
            continue
        cells = tuple(_value(found, name, row, per) for name in metrics)
        calls = _value(found, "calls", row, per) if found.calls[row] else ""
        if not view.everything and not any((calls, *cells)):
            continue
        weight = cpu[row] / whole if whole else 0.0
        lines.append(RangeLine(path, (calls, *cells), weight, _VIA_GRAPH if found.replayed[row] else ""))
    return SummaryTable(per, metrics, tuple(lines), left)


def _kernels_tell(found: TraceSummary) -> bool:
    """Whether the number of kernels says more than that of launches."""
    return found.totals.get("kernels", 0) != found.totals.get("kernel_launches", 0)


def _value(found: TraceSummary, metric: str, row: int, per: Per) -> str:
    if not found.holds(metric):
        return "n/a"
    if row == found.before_row:
        per = Per.TRACE
    if per is Per.CALL and found.calls[row] and metric != "calls":
        cell = Cell(found.samples(metric, row))
    elif per is Per.TRACE or not found.step_count:
        cell = Cell(found.value(metric, "total")[row : row + 1])
    else:
        cell = Cell(found.step_samples(metric, row))
    return words.spread(cell, metric) if cell.sum else ""


@dataclass(frozen=True, slots=True)
class DiffLine:
    """One metric of one range of a diff."""

    metric: Metric
    per: Per
    baseline: str
    variants: tuple[str, ...]
    ratios: tuple[str, ...]
    """Beside each variant: `x0.12`, `new`, `gone`, or for a time its verdict."""
    good: tuple[bool | None, ...]
    """Of each variant: less work (True), more (False), or neither."""
    causes: str


@dataclass(frozen=True, slots=True)
class DiffSection:
    """One range of a diff with the metrics that are shown of it."""

    path: tuple[str, ...]
    status: Status
    fate: str
    """`added`, `gone`, or which variants it is gone in; empty where all sides have it."""
    note: str
    lines: tuple[DiffLine, ...]


@dataclass(frozen=True, slots=True)
class DiffTable:
    """A diff as text."""

    sections: tuple[DiffSection, ...]
    left: int
    """Ranges left out because there are too many of them to read."""


def diff_table(found: TraceDiff, view: View) -> DiffTable:
    """The ranges of a diff that are shown: unless all are asked for, those that changed."""
    outer = outer_paths((row.path for row in found.rows if row.changed), (row.path for row in found.rows))
    sections: list[DiffSection] = []
    left = 0
    for row in found.rows:
        if not view.shows(row.path) or (row.status is Status.SAME and not view.everything and not _times_differ(row)):
            continue
        if len(sections) == MOST_RANGES and not view.everything:
            left += 1
            continue
        lines = tuple(_diff_line(found, row, name) for name in _shown_metrics(row, view, inner=row.path not in outer))
        if lines or row.status in _FATES:
            sections.append(DiffSection(row.path, row.status, _fate(found, row), _note(found, row), lines))
    return DiffTable(tuple(sections), left)


_FATES = (Status.ADDED, Status.GONE)


def _fate(found: TraceDiff, row: DiffRow) -> str:
    fates = {side.label: row.fate(number) for number, side in enumerate(found.variants)}
    told = {label: fate for label, fate in fates.items() if fate in _FATES}
    if not told:
        return ""
    if len(told) == len(fates):
        return str(row.status)
    return f"{row.status} in {', '.join(told)}"


def _times_differ(row: DiffRow) -> bool:
    return any(
        verdict in (Verdict.FASTER, Verdict.SLOWER)
        for comparison in row.metrics.values()
        for verdict in comparison.verdicts
    )


def _shown_metrics(row: DiffRow, view: View, *, inner: bool) -> list[str]:
    """The metrics shown of a range; `inner`: no range in it changed, so that this is where a change was made."""
    if view.metrics:
        return [name for name in view.metrics if name in row.metrics]
    if view.everything:
        return [name for name in row.metrics if name in METRICS]
    made_here = row.status not in _FATES and inner
    shown = []
    for name, comparison in row.metrics.items():
        if name not in METRICS or (name in DETAILS and not made_here):
            continue
        if METRICS[name].exact:
            wanted = comparison.changed and not (name == "calls" and row.status in _FATES)
        else:
            told = set(comparison.verdicts) - {Verdict.NOT_CHECKED}
            wanted = (name == "cpu_ns" and bool(told) and row.status not in _FATES) or bool(
                told & {Verdict.FASTER, Verdict.SLOWER}
            )
        if wanted and not _repeats(row, name):
            shown.append(name)
    return shown


def _repeats(row: DiffRow, name: str) -> bool:
    """Whether a metric changed just as a more telling one did."""
    twin = {"kernels": "kernel_launches"}.get(name)
    if name in ("copies", "copy_bytes"):
        return True
    if twin is None or twin not in row.metrics:
        return False
    one, other = row.metrics[name], row.metrics[twin]
    return _means(one) == _means(other)


def _means(comparison: Comparison) -> list[Fraction]:
    cells = (comparison.baseline, *comparison.variants)
    return [cell.mean if cell else Fraction(0) for cell in cells]


def _note(found: TraceDiff, row: DiffRow) -> str:
    moved = [words.path_text(path) for path in row.elsewhere if path]
    names = f"lined up by its name with {', '.join(dict.fromkeys(moved))}" if moved else ""
    sides = words.replayed(found, row)
    graphs = [side.label for side, replayed in zip(found.sides, sides, strict=True) if replayed]
    return "; ".join(filter(None, [names, f"{_VIA_GRAPH} in {', '.join(graphs)}" if graphs else ""]))


def _diff_line(found: TraceDiff, row: DiffRow, name: str) -> DiffLine:
    comparison = row.metrics[name]
    metric = lookup(name)
    before = _figure(comparison.baseline, metric)
    ratios, good = [], []
    for cell, verdict, ratio in zip(comparison.variants, comparison.verdicts, comparison.ratios, strict=True):
        ratios.append(
            _verdict_text(verdict, ratio.value if ratio else None)
            if not metric.exact or verdict is Verdict.NOT_CHECKED
            else words.ratio(before, _figure(cell, metric))
        )
        good.append(
            {Verdict.FEWER: True, Verdict.FASTER: True, Verdict.MORE: False, Verdict.SLOWER: False}.get(verdict)
        )
    return DiffLine(
        metric,
        comparison.per,
        words.spread(comparison.baseline, name),
        tuple(words.spread(cell, name) for cell in comparison.variants),
        tuple(ratios),
        tuple(good),
        _causes(found, row, name) if comparison.changed and row.status not in _FATES else "",
    )


def _figure(cell: Cell | None, metric: Metric) -> Fraction:
    if cell is None:
        return Fraction(0)
    return cell.mean if metric.exact else Fraction(cell.median)


def _verdict_text(verdict: Verdict, ratio: float | None) -> str:
    if verdict in (Verdict.FASTER, Verdict.SLOWER) and ratio is not None:
        if math.isinf(ratio):
            return f"new, {verdict}"
        return f"x{ratio:.3g} {verdict}"
    return {Verdict.NOISE: "within noise", Verdict.TOO_FEW: "too few samples"}.get(verdict, "not checked")


_CAUSES = 3
_CAUSE_WIDTH = 48


def _causes(found: TraceDiff, row: DiffRow, metric: str) -> str:
    """What made the change: lines where the capture has them, else ops, and functions where there are stacks."""
    by = "line" if found.contributions(row, metric, "line") else "op"
    shown = [one for one in found.contributions(row, metric, by) if one.changed]
    if not shown and metric in ("kernels", "graph_kernels"):
        shown = [one for one in found.contributions(row, metric, "kernel") if one.changed]
    between = ", " if len(found.variants) == 1 else "; "  # with several variants a cause has commas of its own
    text = between.join(
        _cause(one, METRICS[metric].unit if metric in METRICS else Unit.COUNT) for one in shown[:_CAUSES]
    )
    more = f"{between}and {len(shown) - _CAUSES} more" if len(shown) > _CAUSES else ""
    where = next((one for one in found.contributions(row, metric, "function") if one.changed), None)
    return text + more + (f" in {words.shorten(where.name, _CAUSE_WIDTH)}" if where and text else "")


def _cause(one: Contribution, unit: Unit) -> str:
    name = words.shorten(one.name, _CAUSE_WIDTH)
    changes = [value - one.baseline for value in one.variants]
    if len(changes) > 1:
        return f"{name} {words.number(one.baseline, unit)} -> {', '.join(words.number(v, unit) for v in one.variants)}"
    if unit is Unit.COUNT:
        return f"{'new' if changes[0] > 0 else 'gone'} {name} x {words.number(abs(changes[0]), unit)}"
    return f"{name} {'+' if changes[0] > 0 else '-'}{words.number(abs(changes[0]), unit)}"


def top_contributors(found: TraceSummary, view: View, metrics: Sequence[str]) -> list[tuple[str, str]]:
    """For each exact metric of a summary, what made most of it in the ranges shown, over the whole trace."""
    rows = [row for row, path in enumerate(found.paths) if view.shows(path) and row != found.before_row]
    texts = []
    for name in metrics:
        if name in METRICS and METRICS[name].exact and name != "calls":
            made = _tops(found, rows, name)
            if made:
                texts.append((name, made))
    return texts


def _tops(found: TraceSummary, rows: Iterable[int], metric: str) -> str:
    for by in ("line", "op"):
        counts: dict[str, int] = {}
        for row in rows:
            for name, amount in found.contributors_to(metric, row, by).items():
                counts[name] = counts.get(name, 0) + amount
        if counts:
            best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            unit = METRICS[metric].unit
            shown = [
                f"{words.shorten(name, _CAUSE_WIDTH)} {words.number(value, unit)}" for name, value in best[:_CAUSES]
            ]
            left = sum(value for _, value in best[_CAUSES:])
            return ", ".join(shown) + (f", others {words.number(left, unit)}" if left else "")
    return ""
