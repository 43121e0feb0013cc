"""Writes the HTML report, for the commands that have a result to show in one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tracetool.errors import SettingError
from tracetool.output import check_target, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from tracetool.differ import TraceDiff


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
        SettingError: it is also where the result itself goes.
    """
    check_target(target, force=force)
    if target is not None and other is not None and target.resolve() == other.resolve():
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

    again = "" if "-" in command else shlex.join(["tracetool", *command])
    write(report(found, Extras(command=again, notes=notes)), target)
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(f"report: {target}", err=True)
