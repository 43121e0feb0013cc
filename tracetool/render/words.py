"""Numbers and paths as people read them."""

from __future__ import annotations

import re
import shlex
from fractions import Fraction
from typing import TYPE_CHECKING

import msgspec

from tracetool.amounts import number as number  # noqa: PLC0414 - one of the words that renderers use
from tracetool.folding import STEP
from tracetool.metrics import lookup
from tracetool.output import STEERING, harmless

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.differ import Cell, DiffRow, Per, TraceDiff
    from tracetool.summary import TraceSummary

_SPECIAL = re.compile(r"[\\*/]")


def spread(cell: Cell | None, metric: str) -> str:
    """One number where all calls agree (for a time: the median), else least, median and most."""
    if cell is None:
        return "-"
    unit = lookup(metric).unit
    if not lookup(metric).exact:
        return number(cell.median, unit)
    if cell.least == cell.most:
        return number(cell.least, unit)
    return f"{number(cell.least, unit)}..{number(cell.median, unit)}..{number(cell.most, unit)}"


def ratio(baseline: Fraction | float, variant: Fraction | float) -> str:
    """`x0.12`, `new`, `gone`, or nothing where nothing changed."""
    if baseline == variant:
        return ""
    if not baseline:
        return "new"
    if not variant:
        return "gone"
    value = float(Fraction(variant) / Fraction(baseline))
    return f"x{value:.0f}" if value >= 100 else f"x{value:.3g}"


def path_text(path: Sequence[str]) -> str:
    """A path as one would write it in a pattern: names with slashes escaped."""
    return "/".join(_SPECIAL.sub(r"\\\g<0>", name) for name in path)


def clean(text: str) -> str:
    """A name on one line, without characters that would steer a terminal (names in traces hold anything)."""
    return harmless(" ".join(text.split()))


def to_type(command: Sequence[str]) -> str:
    """A command of tracetool's as one would type it; empty where nobody can.

    What came through a pipe cannot be read again, and control characters, as names of files may hold, cannot be typed.
    """
    text = shlex.join(["tracetool", *command])
    return "" if "-" in command or STEERING.search(text) else text


def shorten(text: str, width: int) -> str:
    """A long name with its middle left out: kernels differ at both ends."""
    text = clean(text)
    if len(text) <= width:
        return text
    tail = max(1, (width - 3) // 3)
    return f"{text[: width - 3 - tail]}...{text[-tail:]}"


_IN_SCRIPT = {ord(one): f"\\u{ord(one):04x}" for one in "<>&\u2028\u2029"}


def in_script(value: object) -> str:
    """JSON that stays data inside a script element, whatever names are in it."""
    return msgspec.json.encode(value).decode().translate(_IN_SCRIPT)


def plural(count: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def each(metric: str, per: Per) -> str:
    """What a metric is compared for: `a call`, `a step`, `a trace`."""
    return "a call of its parent" if metric == "calls" and per == "call" else f"a {per}"


def given_back(found: TraceSummary) -> str:
    """What became of the work of a trace's graph launches, where an eager trace told their ranges; else nothing."""
    replays = found.replays
    if replays is None:
        return ""
    pieces = "kernel" if replays.all_kernels else "piece"
    return f"{replays.given:,} of {plural(replays.pieces, pieces)} of graphs given back to ranges of {replays.source}"


def replayed(found: TraceDiff, row: DiffRow) -> list[bool]:
    """On which sides of a diff a range did not run, but was given back work of graph launches."""
    return [
        part is not None and all(side.summary.replayed[number] for number in part.rows) and bool(part.rows)
        for side, part in zip(found.sides, row.parts, strict=True)
    ]


def pattern_of(path: Sequence[str]) -> str:
    """A `--range` pattern that fits this path, with or without the profiler's steps, and that can be typed."""
    bare = [name for name in path if name != STEP] or list(path)
    return "/" + "/".join(STEERING.sub("*", _SPECIAL.sub(r"\\\g<0>", name)) for name in bare)
