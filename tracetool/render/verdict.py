"""A diff in one line of words."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from tracetool.differ import Status, Verdict
from tracetool.folding import STEP
from tracetool.metrics import METRICS
from tracetool.render.words import number, path_text, plural

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tracetool.differ import Comparison, DiffRow, TraceDiff
    from tracetool.summary import TraceSummary

_TELLING = (
    "h2d_copies",
    "d2h_copies",
    "d2d_copies",
    "p2p_copies",
    "syncs",
    "graph_launches",
    "kernel_launches",
    "kernels",
    "collectives",
    "compiles",
    "memsets",
    "allocs",
    "ops",
)
_WORDS = {
    "h2d_copies": "HtoD copies",
    "d2h_copies": "DtoH copies",
    "d2d_copies": "DtoD copies",
    "p2p_copies": "PtoP copies",
    "graph_launches": "graph launches",
    "kernel_launches": "kernel launches",
}
_MOST = 3


def verdict_of(found: TraceDiff) -> str:
    """What changed, in one line: for each variant the ranges in which the change was made."""
    lines = [_of_variant(found, number) for number in range(len(found.variants))]
    if len(lines) == 1:
        return lines[0]
    return " | ".join(f"{side.label}: {line}" for side, line in zip(found.variants, lines, strict=True))


def _of_variant(found: TraceDiff, variant: int) -> str:
    told = [(row, text) for row in found.rows if (text := ", ".join(_changes(row, variant)))]
    # A change shows in every range around the one where it was made; the innermost one says where that is.
    inner = [(row, text) for row, text in told if not any(_inside(other.path, row.path) for other, _ in told)]
    lost = {row.path: row.fate(variant) for row in found.rows if row.fate(variant) in (Status.ADDED, Status.GONE)}
    inner = [(row, text) for row, text in inner if row.path not in lost]
    fates = [f"{path_text(path)} {fate}" for path, fate in lost.items()]
    if not inner and not fates:
        times = sum(
            comparison.verdicts[variant] in (Verdict.FASTER, Verdict.SLOWER)
            for row in found.rows
            for comparison in row.metrics.values()
        )
        rest = f"; {plural(times, 'profiled time')} differ" if times else ""
        return "no count of launches, copies, syncs or ops differs" + rest
    parts = [f"{path_text(row.path)}: {text}" for row, text in inner[:_MOST]] + fates[: _MOST - len(inner[:_MOST])]
    left = len(inner) + len(fates) - len(parts)
    return "; ".join(parts) + (f"; and {plural(left, 'more range')}" if left > 0 else "")


def _inside(path: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    outer = tuple(name for name in outer if name != STEP)
    return len(path) > len(outer) and path[: len(outer)] == outer


def _changes(row: DiffRow, variant: int) -> Iterator[str]:
    names = [name for name in _TELLING if name in row.metrics and _changed(row.metrics[name], variant)]
    if "kernel_launches" in names and "kernels" in names:
        names.remove("kernels")
    if len(names) > 1 and "ops" in names:
        names.remove("ops")
    for name in names:
        comparison = row.metrics[name]
        before, after = _means(comparison, variant)
        unit = METRICS[name].unit
        old, new = _kind(row, name, 0, variant), _kind(row, name, 1, variant)
        noun = _noun(name, before or after)
        if not after:
            yield f"{number(before, unit)} {_spaced(old)}{noun} a {comparison.per} gone"
        elif not before:
            yield f"{number(after, unit)} {_spaced(new)}{noun} a {comparison.per} new"
        else:
            kind = f" {new}" if new != old and new else ""
            yield f"{number(before, unit)} {_spaced(old)}{noun} a {comparison.per} became {number(after, unit)}{kind}"


def _noun(name: str, count: Fraction | int) -> str:
    words = _WORDS.get(name, name)
    if count != 1:
        return words
    return {
        "HtoD copies": "HtoD copy",
        "DtoH copies": "DtoH copy",
        "DtoD copies": "DtoD copy",
        "PtoP copies": "PtoP copy",
        "kernel launches": "kernel launch",
        "graph launches": "graph launch",
    }.get(words, words.removesuffix("s"))


def _spaced(word: str) -> str:
    return f"{word} " if word else ""


def _changed(comparison: Comparison, variant: int) -> bool:
    return comparison.verdicts[variant] in (Verdict.MORE, Verdict.FEWER)


def _means(comparison: Comparison, variant: int) -> tuple[Fraction | int, Fraction | int]:
    before, after = comparison.baseline, comparison.variants[variant]
    return (before.mean if before else 0), (after.mean if after else 0)


def _kind(row: DiffRow, name: str, side: int, variant: int) -> str:
    """`pageable` or `pinned` where all copies of a range are of one kind on a side."""
    direction = name.removesuffix("_copies")
    whole = _means(row.metrics[name], variant)[side]
    for kind in ("pageable", "pinned"):
        comparison = row.metrics.get(f"{direction}_{kind}_copies")
        if comparison is not None and whole and _means(comparison, variant)[side] == whole:
            return kind
    return ""


def summary_verdict(found: TraceSummary) -> str:
    """One trace in one line: how much work a step is, and where most of it is done."""
    steps = found.step_count
    unit = "step" if steps else "trace"
    told = []
    for name in _TELLING:
        whole = found.totals.get(name, 0) if not steps else sum(counts.get(name, 0) for _, counts in found.steps)
        if whole and name not in ("kernels", "ops"):
            told.append(
                f"{number(Fraction(whole, steps or 1), METRICS[name].unit)} {_noun(name, Fraction(whole, steps or 1))}"
            )
    if not told:
        ops = found.totals.get("ops", 0)
        return f"No device work; {number(Fraction(ops, steps or 1), METRICS['ops'].unit)} ops a {unit}."
    return f"A {unit}: {', '.join(told)}.{_busiest(found)}"


def _busiest(found: TraceSummary) -> str:
    launches = found.own("kernel_launches").tolist()[: found.outside_row]
    whole = found.totals.get("kernel_launches", 0)
    best = max(range(len(launches)), key=launches.__getitem__, default=None)
    if best is None or not launches[best]:
        return ""
    path = tuple(name for name in found.paths[best] if name != STEP) or found.paths[best]
    return f" {path_text(path)} makes {launches[best] / whole:.0%} of the kernel launches."
