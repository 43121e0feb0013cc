"""A diff in one line of words."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import TYPE_CHECKING

from tracetool.differ import Status, Verdict, outer_paths
from tracetool.folding import STEP
from tracetool.metrics import METRICS, Needs
from tracetool.render.words import each, number, path_text, plural

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
    "autotunes",
    "other_copies",
    "memsets",
    "allocs",
    "ops",
)
_WORDS = {
    "h2d_copies": "HtoD copies",
    "d2h_copies": "DtoH copies",
    "d2d_copies": "DtoD copies",
    "p2p_copies": "PtoP copies",
    "other_copies": "other copies",
    "graph_launches": "graph launches",
    "kernel_launches": "kernel launches",
    "copy_bytes": "of copies",
    "h2d_bytes": "of HtoD copies",
    "d2h_bytes": "of DtoH copies",
    "d2d_bytes": "of DtoD copies",
    "p2p_bytes": "of PtoP copies",
    "other_bytes": "of other copies",
    "collective_bytes": "of collectives",
    "alloc_bytes": "of allocations",
}
_UNCHECKED = {
    Needs.DEVICE: "device activity was",
    Needs.MEMORY: "allocations were",
    Needs.COMPILES: "compiles were",
}
_MOST = 3


def verdict_of(found: TraceDiff) -> str:
    """What changed, in one line: for each variant the ranges in which the change was made."""
    lines = ["; ".join(changes_of(found, number)) for number in range(len(found.variants))]
    if len(lines) == 1:
        return lines[0]
    return " | ".join(f"{side.label}: {line}" for side, line in zip(found.variants, lines, strict=True))


def changes_of(found: TraceDiff, variant: int) -> list[str]:
    """What changed on one variant, a clause for each range in which a change was made."""
    told = [(row, text) for row in found.rows if (text := ", ".join(changes_in(row, variant)))]
    # A change shows in every range around the one where it was made; the innermost one says where that is.
    outer = outer_paths((row.path for row, _ in told), (row.path for row, _ in told))
    inner = [(row, text) for row, text in told if row.path not in outer]
    lost = {row.path: row.fate(variant) for row in found.rows if row.fate(variant) in (Status.ADDED, Status.GONE)}
    inner = [(row, text) for row, text in inner if row.path not in lost]
    fates = [f"{path_text(path)} {fate}" for path, fate in lost.items()]
    if not inner and not fates:
        times = sum(
            comparison.verdicts[variant] in (Verdict.FASTER, Verdict.SLOWER)
            for row in found.rows
            for comparison in row.metrics.values()
        )
        rest = [f"{plural(times, 'profiled time')} {'differs' if times == 1 else 'differ'}"] if times else []
        return ["no count of launches, copies, syncs or ops differs", *rest, *_unchecked(found, variant)]
    parts = [f"{path_text(row.path)}: {text}" for row, text in inner[:_MOST]] + fates[: _MOST - len(inner[:_MOST])]
    left = len(inner) + len(fates) - len(parts)
    more = [f"and {plural(left, 'more range')}"] if left > 0 else []
    return [*parts, *more, *_unchecked(found, variant)]


def _unchecked(found: TraceDiff, variant: int) -> list[str]:
    """What could not be compared, because one side has no record of it."""
    sides = (found.baseline, found.variants[variant])
    names = [
        name
        for name in found.metrics
        if name in METRICS and METRICS[name].exact and len({side.summary.holds(name) for side in sides}) > 1
    ]
    told = []
    for needs in dict.fromkeys(METRICS[name].needs for name in names):
        without = next(
            side.label for side in sides if any(METRICS[n].needs is needs and not side.summary.holds(n) for n in names)
        )
        told.append(f"{_UNCHECKED[needs]} not compared: {without} has none on record")
    return told


def changes_in(row: DiffRow, variant: int) -> Iterator[str]:
    """What changed in one range of one variant, by metric."""
    exact = [name for name in row.metrics if name in METRICS and _changed(row.metrics[name], variant)]
    names = [name for name in _TELLING if name in exact or _kind_changed(row, name, variant)]
    # What says less is said only where it is all there is to say.
    names = names or [name for name in ("calls", *_WORDS) if name in exact] or exact
    if not names and (ops := [name for name in row.metrics if _changed(row.metrics[name], variant)]):
        yield f"other ops: {', '.join(ops[:_MOST])}{', ...' if len(ops) > _MOST else ''}"
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
            yield f"{number(before, unit)} {_spaced(old)}{noun} {each(name, comparison.per)} gone"
        elif not before:
            yield f"{number(after, unit)} {_spaced(new)}{noun} {each(name, comparison.per)} new"
        elif before == after:
            yield f"{number(before, unit)} {_spaced(old)}{noun} {each(name, comparison.per)} became {new}"
        else:
            later = number(after, unit) + (f" {new}" if new != old and new else "")
            yield f"{number(before, unit)} {_spaced(old)}{noun} {each(name, comparison.per)} became {later}"


def _noun(name: str, count: Fraction | int) -> str:
    words = _WORDS.get(name, name)
    if count == 1 and words.startswith("of "):
        return words
    if count != 1:
        return words
    return {
        "HtoD copies": "HtoD copy",
        "DtoH copies": "DtoH copy",
        "DtoD copies": "DtoD copy",
        "PtoP copies": "PtoP copy",
        "other copies": "other copy",
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


def _kind_changed(row: DiffRow, name: str, variant: int) -> bool:
    """Whether as many copies as before go through another kind of host memory."""
    if name not in row.metrics or row.metrics[name].verdicts[variant] is Verdict.NOT_CHECKED:
        return False
    old, new = _kind(row, name, 0, variant), _kind(row, name, 1, variant)
    return bool(old and new) and old != new


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
    in_steps = Counter[str]()
    for _, counts in found.steps:
        in_steps.update(counts)
    if not any(in_steps[name] for name in _TELLING):
        steps, unit = 0, "trace"
    for name in _TELLING:
        whole = in_steps[name] if steps else found.totals.get(name, 0)
        if whole and name not in ("kernels", "ops"):
            told.append(
                f"{number(Fraction(whole, steps or 1), METRICS[name].unit)} {_noun(name, Fraction(whole, steps or 1))}"
            )
    if not told:
        ops = Fraction(in_steps["ops"] if steps else found.totals.get("ops", 0), steps or 1)
        return f"No device work; {number(ops, METRICS['ops'].unit)} {_noun('ops', ops)} a {unit}."
    return f"A {unit}: {', '.join(told)}.{_busiest(found)}"


def _busiest(found: TraceSummary) -> str:
    launches = found.own("kernel_launches").tolist()[: found.outside_row]
    whole = found.totals.get("kernel_launches", 0)
    best = max(range(len(launches)), key=launches.__getitem__, default=None)
    if best is None or not launches[best]:
        return ""
    path = tuple(name for name in found.paths[best] if name != STEP) or found.paths[best]
    return f" {path_text(path)} makes {launches[best] / whole:.0%} of the kernel launches."
