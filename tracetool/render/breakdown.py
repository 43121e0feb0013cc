"""HTA's breakdowns as text, Markdown and JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracetool.render import json, words
from tracetool.render.markdown import bounded, plain, table_lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracetool.breakdown import Breakdown, Table

_WIDEST = 48


def text(found: Sequence[Breakdown]) -> str:
    """For a terminal."""
    return "\n".join(_lines(found)).rstrip() + "\n"


def _lines(found: Sequence[Breakdown]) -> Iterator[str]:
    for one in found:
        yield words.clean(one.label)
        for each in one.tables:
            yield ""
            yield f"  {words.clean(each.title)}"
            yield from _aligned(each)
        if one.missing:
            yield ""
            yield from (f"  {words.clean(sentence)}" for sentence in one.missing)
        yield ""


def _aligned(found: Table) -> Iterator[str]:
    rows = [found.columns, *found.rows]
    cells = [[words.shorten(cell, _WIDEST) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, found.numeric, strict=True)
        )
        yield f"    {line}".rstrip()


def markdown(found: Sequence[Breakdown]) -> str:
    """For a pull request."""
    lines: list[str] = []
    for one in found:
        lines += [f"### {plain(one.label)}", ""]
        for each in one.tables:
            lines += [f"**{plain(each.title)}**", ""]
            lines += table_lines(
                [plain(name) for name in each.columns], [[plain(cell) for cell in row] for row in each.rows]
            )
            lines += [""]
        lines += [f"- {plain(sentence)}" for sentence in one.missing]
        lines += [""] if one.missing else []
    return bounded(lines)


def to_json(found: Sequence[Breakdown]) -> str:
    """All of it, by `tracetool.breakdown/1`."""
    whole: dict[str, Any] = {
        "schema": "tracetool.breakdown/1",
        "breakdowns": [
            {
                "label": one.label,
                "tables": [{"title": each.title, "columns": each.columns, "rows": each.rows} for each in one.tables],
                "missing": one.missing,
            }
            for one in found
        ],
    }
    return json.as_text(whole)
