"""Writes the HTML report, for the commands that have a result to show in one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracetool.errors import SettingError
from tracetool.output import check_target, harmless, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from tracetool.breakdown import Breakdown
    from tracetool.differ import TraceDiff
    from tracetool.findings.linting import Lint

_MOST_EVENTS_FOR_HTA = 300_000


def html_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--html FILE`: the same result as a page."""
    return click.option(
        "--html",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Also write the HTML report to FILE.",
    )(command)


def check_report(target: Path | None, other: Path | None, *, force: bool) -> None:
    """Refuse a page that could not be written, before any work is done for it.

    Raises:
        OutputError: the file cannot be written.
        SettingError: it is also where the result itself goes, what makes pages is not installed, or the project's
            settings of findings are wrong.
    """
    if target is None:
        return
    from tracetool.findings.settings import nearest_settings
    from tracetool.render.report import check_installed

    check_installed()
    nearest_settings(Path.cwd())
    check_target(target, force=force)
    if other is not None and target.resolve() == other.resolve():
        raise SettingError(f"{target} is named by --html and by -o: the page and the result need a file each")


def write_report(found: TraceDiff, target: Path, command: Sequence[str], notes: Sequence[str] = ()) -> None:
    """Write a page about a diff, or about one trace as a diff of one side.

    Args:
        found: what it shows.
        target: its file, looked at with `check_report`.
        command: that makes it again; left out where a trace came through standard input.
        notes: sentences for its top.
    """
    from tracetool.render.report.page import Extras, report
    from tracetool.render.words import to_type

    breakdowns, why_not = _breakdowns(found)
    extras = Extras(
        command=to_type(command), notes=notes, lints=_lints(found), breakdowns=breakdowns, no_breakdown=why_not
    )
    write(report(found, extras), target)
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(harmless(f"report: {target}"), err=True)


def _lints(found: TraceDiff) -> list[Lint]:
    """What rules find in each trace, by the settings of the project; the sides of a page are no ranks of one run."""
    from tracetool.findings.linting import lint
    from tracetool.findings.registry import chosen
    from tracetool.findings.settings import nearest_settings

    settings = nearest_settings(Path.cwd())
    summaries = [side.summary for side in found.sides]
    rules = [rule for rule in chosen(settings.select, settings.ignore) if rule.find is not None]
    return lint(summaries, rules, settings.threshold, settings.suppressions)


def _breakdowns(found: TraceDiff) -> tuple[list[Breakdown], str]:
    """HTA's tables, or why there are none: a page is worth having without them."""
    from tracetool.breakdown import NOT_INSTALLED, break_down, installed

    if not installed():
        return [], f"{NOT_INSTALLED}."
    if "-" in (side.summary.source for side in found.sides):
        return [], "HTA reads files, and a trace came through standard input."
    events = max(side.summary.event_count for side in found.sides)
    if events > _MOST_EVENTS_FOR_HTA:
        return [], f"Left out: HTA takes long for {events:,} events. `tracetool breakdown` shows it."
    try:
        return break_down(found.sides), ""
    except Exception as error:  # noqa: BLE001 (HTA's own failure)
        return [], f"HTA could not read these traces: {type(error).__name__}: {error}"
