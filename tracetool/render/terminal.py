"""Results for a terminal, through rich: three lines of header, a table, a verdict, the command for the next view."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracetool.checking import Result
from tracetool.differ import Status
from tracetool.environment import differences
from tracetool.metrics import Needs
from tracetool.render import findings, sentences, words
from tracetool.render import ranks as by_rank
from tracetool.render.tables import SHORT, diff_table, summary_table, top_contributors
from tracetool.render.verdict import summary_verdict, verdict_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.checking import Check
    from tracetool.differ import TraceDiff
    from tracetool.findings.finding import Finding, Rule
    from tracetool.findings.linting import Lint
    from tracetool.health import Health
    from tracetool.metrics import Metric
    from tracetool.ranks import Ranks, RanksDiff
    from tracetool.render.tables import DiffLine, DiffSection, RangeLine, SummaryTable
    from tracetool.render.view import View
    from tracetool.summary import TraceSummary

_HEALTH_STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "info": "dim"}
_STATUS_STYLES = {Status.ADDED: "yellow", Status.GONE: "green"}
_GOOD_STYLES = {True: "green", False: "red", None: ""}
_NARROWEST_NAME = 24
_LABEL_WIDTH = 24
_SETTINGS = 6
_SETTING_WORDS = {
    "gpu": "",
    "cuda_runtime_version": "CUDA",
    "cuda_driver_version": "driver",
    "cupti_version": "CUPTI",
}
_WIDTH_OF_METRICS = 80


class _Page:
    """Lines of output at a given width, with or without colour."""

    def __init__(self, width: int, *, colour: bool) -> None:
        self._text = io.StringIO()
        self.width = width
        self._console = Console(
            file=self._text,
            width=width,
            force_terminal=colour,
            no_color=not colour,
            color_system="standard" if colour else None,
            highlight=False,
            markup=False,
            emoji=False,
            legacy_windows=False,
        )

    def add(self, what: Text | Table | Padding | str = "", style: str = "", *, unbroken: bool = False) -> None:
        """Add something; what is unbroken may be longer than the width, so that it can be copied."""
        self._console.print(Text(what, style=style) if isinstance(what, str) else what, soft_wrap=unbroken)

    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._text.getvalue().splitlines()) + "\n"


def summary(found: TraceSummary, view: View, *, width: int, colour: bool) -> str:
    """One trace."""
    page = _Page(width, colour=colour)
    _header(page, [("", found)])
    page.add()
    table = summary_table(found, view)
    _draw_summary(page, found, table)
    made = top_contributors(found, view, [name for name in table.metrics if name not in ("ops", "h2d_bytes")])
    if made:
        page.add()
        page.add("made by, in the whole trace", "bold")
        for name, text in made:
            made_by = Text.assemble((f"{SHORT.get(name, name)}: ", "dim"), text)
            page.add(Padding(made_by, (0, 0, 0, 2)))
    page.add()
    page.add(Text(words.clean(summary_verdict(found)), style="bold"))
    if view.command:
        page.add(view.command, "dim", unbroken=True)
    return page.text()


def ranks(found: Ranks, view: View, *, width: int, colour: bool) -> str:
    """The traces of a program's ranks: those that stand out, a row for each, the spread."""
    return _by_rank(by_rank.told(found), by_rank.table(found), by_rank.verdict(found), view, width, colour=colour)


def ranks_diff(found: RanksDiff, view: View, *, width: int, colour: bool) -> str:
    """Two runs, rank by rank."""
    told, lines = by_rank.diff_told(found), by_rank.diff_table(found)
    return _by_rank(told, lines, by_rank.diff_verdict(found), view, width, colour=colour)


def _by_rank(told: Sequence[str], lines: by_rank.Lines, verdict: str, view: View, width: int, *, colour: bool) -> str:
    page = _Page(width, colour=colour)
    for sentence in told:
        page.add(words.clean(sentence), "yellow")
    if told:
        page.add()
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, heading in enumerate(lines.headings):
        numbers = 0 < number < len(lines.headings) - 1 and bool(lines.spread)
        drawn.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in lines.rows:
        drawn.add_row(*(Text(cell) for cell in row))
    for row in lines.spread:
        drawn.add_row(*(Text(cell) for cell in row), style="dim")
    page.add(drawn)
    page.add()
    page.add(Text(words.clean(verdict), style="bold"))
    if view.command:
        page.add(view.command, "dim", unbroken=True)
    return page.text()


def diff(found: TraceDiff, view: View, *, width: int, colour: bool) -> str:
    """A diff: only what changed, unless all is asked for."""
    page = _Page(width, colour=colour)
    _header(page, [(side.label, side.summary) for side in found.sides])
    page.add()
    table = diff_table(found, view)
    if table.sections:
        _draw_diff(page, found, table.sections)
        _tell_left(page, table.left)
    else:
        page.add("No range that is shown differs; --all shows what is the same.", "dim")
    page.add()
    page.add(Text(words.clean(verdict_of(found)), style="bold"))
    if view.command:
        page.add(view.command, "dim", unbroken=True)
    return page.text()


def check(found: Check, view: View, *, width: int, colour: bool) -> str:
    """What came of a check: violations, what was not checked, the verdict."""
    page = _Page(width, colour=colour)
    _header(page, [("", found.summary)])
    page.add()
    for one in found.findings:
        page.add(Text.assemble((f"{one.severity} ", _HEALTH_STYLES[one.severity]), words.clean(one.message)))
    broken, left = (found.broken, 0) if view.everything else sentences.telling(found.outcomes)
    for outcome in broken:
        _tell(page, "broken ", "bold red", sentences.sentence(outcome))
    if left:
        page.add(f"and {words.plural(left, 'more count')} that follow from these; --all shows them", "dim")
    for outcome in found.not_checked:
        _tell(page, "not checked ", "yellow", sentences.sentence(outcome))
    for outcome in sentences.telling(found.accepted or ())[0]:
        _tell(page, "accepted ", "green", sentences.accepted(outcome))
    if view.everything:
        for outcome in found.outcomes:
            if outcome.result is Result.HELD:
                _tell(page, "held ", "green", sentences.sentence(outcome))
    page.add(
        words.clean(sentences.verdict(found)), "bold red" if found.broken or found.not_comparable else "bold green"
    )
    if view.command:
        page.add(view.command, "dim", unbroken=True)
    return page.text()


def _tell(page: _Page, label: str, style: str, sentence: str) -> None:
    page.add(Text.assemble((label, style), sentence), unbroken=True)


def health(found: TraceSummary, *, width: int, colour: bool) -> str:
    """All findings about one trace."""
    page = _Page(width, colour=colour)
    _header(page, [("", found)])
    for one in found.health.findings:
        page.add()
        page.add(
            Text.assemble(
                (f"{one.severity}", _HEALTH_STYLES[one.severity]), (f" [{one.code}] ", "bold"), words.clean(one.message)
            )
        )
    if not found.health.findings:
        page.add("Nothing stands against this trace's counts.")
    return page.text()


def metrics(chosen: Sequence[Metric], *, width: int, colour: bool) -> str:
    """Metrics explained."""
    page = _Page(width, colour=colour)
    if width < _WIDTH_OF_METRICS:
        for metric in chosen:
            page.add(Text.assemble((metric.name, "cyan"), f"  {metric.unit.value}, {_metric_kind(metric)}"))
            page.add(Padding(Text(_meaning(metric)), (0, 0, 0, 4)))
        return page.text()
    table = Table(box=None, pad_edge=False)
    for name in ("metric", "unit", "kind"):
        table.add_column(name, no_wrap=True)
    table.add_column("meaning")
    for metric in chosen:
        table.add_row(Text(metric.name, style="cyan"), metric.unit.value, _metric_kind(metric), Text(_meaning(metric)))
    page.add(table)
    return page.text()


def _metric_kind(metric: Metric) -> str:
    return ("exact" if metric.exact else "statistical") + ("" if metric.additive else ", not additive")


def _meaning(metric: Metric) -> str:
    needs = "" if metric.needs in (Needs.NOTHING, Needs.DEVICE) else f" Needs {metric.needs}."
    return metric.meaning + needs


def lint(found: Sequence[Lint], view: View, *, width: int, colour: bool) -> str:
    """What rules found in traces, the dearest first; how to mend it is told once."""
    page = _Page(width, colour=colour)
    mends: set[str] = set()
    for one in found:
        _header(page, [("", one.summary)])
        page.add(findings.step_words(one), "dim")
        page.add()
        for finding in one.findings:
            _tell_finding(page, one, finding, mends)
        for finding, known in one.suppressed:
            lead = (
                f"{finding.rule.id} {finding.rule.name} in {findings.where(finding)}, {findings.cost(one, finding)}: "
            )
            _tell(page, "suppressed ", "dim", lead + words.clean(known.reason))
        for text in findings.unjudged(one):
            page.add(text, "dim")
        if one.suppressed or one.unjudged:
            page.add()
    page.add(findings.verdict(found), "bold red" if any(one.findings for one in found) else "bold green")
    if view.command:
        page.add(view.command, "dim", unbroken=True)
    return page.text()


def _tell_finding(page: _Page, lint: Lint, finding: Finding, mends: set[str]) -> None:
    rule = finding.rule
    lead = Text.assemble((rule.id, "bold red"), (f" {rule.name}", "bold"), f"  {findings.where(finding)}  ")
    page.add(Text.assemble(lead, (findings.cost(lint, finding), "bold")), unbroken=True)
    page.add(_inset(findings.what(finding)))
    if told := findings.made_by(lint, finding):
        page.add(_inset(f"by {told}", "dim"))
    page.add(_inset(f"cost: {words.clean(finding.cost.how)}", "dim"))
    if finding.mend.code not in mends:
        mends.add(finding.mend.code)
        page.add(_inset(f"mend: {finding.mend.text}"))
        for line in finding.mend.code.splitlines():
            page.add(Text(f"      {line}", style="cyan"), unbroken=True)
        page.add(_inset(rule.anchor, "dim"))
    page.add()


def _inset(text: str, style: str = "") -> Padding:
    return Padding(Text(text, style=style), (0, 0, 0, 2))


def rules(chosen: Sequence[Rule], *, width: int, colour: bool) -> str:
    """Rules explained."""
    page = _Page(width, colour=colour)
    for rule in chosen:
        page.add(
            Text.assemble((rule.id, "cyan"), (f" {rule.name}", "bold"), (f"  {rule.anchor}", "dim")), unbroken=True
        )
        page.add(_inset(rule.looks_for))
        page.add(_inset(rule.why, "dim"))
    return page.text()


# Pieces -------------------------------------------------------------------------------------------------------


def _header(page: _Page, sides: Sequence[tuple[str, TraceSummary]]) -> None:
    for label, found in sides:
        what = Text.assemble(
            (f"{words.clean(label)}  " if label else "", "bold"),
            (words.clean(found.source), "cyan"),
            f"  {words.plural(found.event_count, 'event')}, {words.plural(found.step_count, 'step')},"
            f" {words.plural(len(found.paths) - 2, 'range')}",
        )
        page.add(what)
    _where(page, [found for _, found in sides])
    text = Text("health ", style="dim")
    for number, (label, found) in enumerate(sides):
        text.append(", " if number else "")
        text.append(f"{words.clean(label)} " if label else "")
        text.append(found.health.verdict, style=_HEALTH_STYLES[found.health.verdict])
        text.append(_worst(found.health))
    page.add(text)
    for label, found in sides:
        if told := words.given_back(found):
            page.add(Text.assemble((f"{words.clean(label)} " if label else "", "dim"), words.clean(told)))


def _worst(health: Health) -> str:
    grave = [one for one in health.findings if one.severity != "info"]
    if not grave:
        return ""
    more = f" (and {words.plural(len(grave) - 1, 'more finding')})" if len(grave) > 1 else ""
    return f": {words.clean(grave[0].message)}{more}"


def _where(page: _Page, sides: Sequence[TraceSummary]) -> None:
    environments = [side.environment for side in sides]
    differing = differences(environments)
    shared = {name: value for name, value in environments[0].items() if name not in differing}
    told = [f"{_SETTING_WORDS.get(name, name)} {value}".strip() for name, value in shared.items()]
    told = [text for text in told if not text.startswith("schemaVersion")]
    page.add(Text.assemble(("captured on ", "dim"), words.clean(", ".join(told[:_SETTINGS])) or "an unknown machine"))
    for name, values in differing.items():
        page.add(Text.assemble(("differs ", "yellow"), words.clean(f"{name}: {' -> '.join(values)}")))


def _draw_summary(page: _Page, found: TraceSummary, table: SummaryTable) -> None:
    if not table.lines:
        page.add("Nothing is counted in the ranges that are shown.", "dim")
        return
    headings = ["calls", *(SHORT.get(name, name) for name in table.metrics)]
    columns = list(zip(*(line.cells for line in table.lines), strict=True))
    widths = [
        max(len(heading), *(len(cell) for cell in cells)) for heading, cells in zip(headings, columns, strict=True)
    ]
    names = _indented_names(table.lines)
    longest = max(indent + len(name) for indent, name in names)
    narrowest = min(_NARROWEST_NAME, max(len("range (per trace)"), page.width * 2 // 5))
    name_width = min(max(longest, len("range") + 14), max(narrowest, page.width - sum(widths) - 2 * len(widths)))
    shown = len(widths)
    while shown > 1 and name_width + sum(widths[:shown]) + 2 * shown > page.width:
        shown -= 1
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    drawn.add_column(f"range (per {table.per})", width=name_width, no_wrap=True)
    for heading in headings[:shown]:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for line, (depth, name) in zip(table.lines, names, strict=True):
        indent = " " * min(depth, name_width // 2)
        text = indent + words.shorten(name, max(8, name_width - len(indent)))
        drawn.add_row(Text(text, style=_share_style(line.weight)), *line.cells[:shown])
    page.add(drawn)
    _tell_left(page, table.left)
    if shown < len(widths):
        left = ", ".join(headings[shown:])
        page.add(f"Not shown for want of width: {left}. Widen the terminal, or choose with --metric.", "dim")
    if any(found.ambiguous):
        page.add("Some ranges overlap without nesting; `tracetool health` names one.", "yellow")


def _indented_names(lines: Sequence[RangeLine]) -> list[tuple[int, str]]:
    """How far in each range stands, and its name; its path where the range around it is not shown."""
    depths: dict[tuple[str, ...], int] = {}
    names = []
    for line in lines:
        around = depths.get(line.path[:-1])
        depths[line.path] = 0 if around is None else around + 2
        alone = around is None and len(line.path) > 1
        name = words.path_text(line.path) if alone else line.path[-1]
        names.append((depths[line.path], f"{name} ({line.note})" if line.note else name))
    return names


def _tell_left(page: _Page, left: int) -> None:
    if left:
        page.add(f"And {words.plural(left, 'more range')}: --range chooses, --all shows them all.", "dim")


def _share_style(weight: float) -> str:
    return "bold" if weight >= 0.5 else "" if weight >= 0.05 else "dim"


def _draw_diff(page: _Page, found: TraceDiff, sections: Sequence[DiffSection]) -> None:
    """Ranges as headings over aligned lines of their metrics; a heading may be longer than any column."""
    labels = [words.shorten(side.label, _LABEL_WIDTH) for side in found.sides]
    lines = [line for section in sections for line in section.lines]
    names = [_metric_name(line) for line in lines]
    rows = [["metric", labels[0], *(text for label in labels[1:] for text in (label, ""))]]
    rows += [
        [name, line.baseline, *(text for pair in zip(line.variants, line.ratios, strict=True) for text in pair)]
        for name, line in zip(names, lines, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    wide = 2 + sum(widths) + 2 * (len(widths) - 1) <= page.width
    if wide:
        page.add(_aligned(rows[0], widths, ["dim"] * len(widths)))
    else:
        page.add(Text(f"metric: {' -> '.join(labels)}", style="dim"))
    cells = iter(rows[1:])
    for section in sections:
        page.add(_section_title(page, section))
        for line in section.lines:
            styles = [
                "",
                "",
                *(style for good in line.good for style in (_GOOD_STYLES[good], _GOOD_STYLES[good] or "dim")),
            ]
            text = _aligned(next(cells), widths, styles) if wide else _stacked(next(cells), styles)
            cause = Text(line.causes, style="dim")
            if wide and line.causes and text.cell_len + len(line.causes) + 2 <= page.width:
                page.add(Text.assemble(text, "  ", cause))
            else:
                text.rstrip()
                page.add(text if wide else Padding(text, (0, 0, 0, 2)))
                if line.causes:
                    page.add(Padding(cause, (0, 0, 0, 6)))


def _metric_name(line: DiffLine) -> str:
    profiled = "" if line.metric.exact else ", profiled,"
    return f"{line.metric.name}{profiled} {words.each(line.metric.name, line.per)}"


def _section_title(page: _Page, section: DiffSection) -> Text:
    title = Text(words.shorten(words.path_text(section.path), page.width - 16), style="bold")
    if section.fate:
        title.append(f"  {section.fate}", style=_STATUS_STYLES[section.status])
    if section.note:
        title.append(f"  ({words.clean(section.note)})", style="dim")
    return title


def _stacked(cells: Sequence[str], styles: Sequence[str]) -> Text:
    """A line for a page that is too narrow for columns: `h2d_copies a call: 17 -> 2 x0.118`."""
    text = Text(f"{cells[0]}: {cells[1]}")
    for number in range(2, len(cells), 2):
        text.append(" -> ", style="dim")
        text.append(cells[number], style=styles[number])
        text.append(f" {cells[number + 1]}" if cells[number + 1] else "", style=styles[number + 1])
    return text


def _aligned(cells: Sequence[str], widths: Sequence[int], styles: Sequence[str]) -> Text:
    text = Text("  ")
    for column, (cell, width, style) in enumerate(zip(cells, widths, styles, strict=True)):
        left = column == 0 or (column > 1 and column % 2)
        text.append((cell.ljust(width) if left else cell.rjust(width)) + "  ", style=style)
    return text
