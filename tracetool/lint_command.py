"""The commands `lint` and `rules`: what a trace says is wrong, and what is looked for."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracetool.opening import summarize_all
from tracetool.options import FORMATS, TRACE, output_options, reading_options
from tracetool.output import check_target
from tracetool.presenting import emit, exit_code_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.findings.linting import Lint

FOUND = 1


@click.command()
@click.argument("traces", type=TRACE, nargs=-1, required=True)
@click.option(
    "--select",
    multiple=True,
    metavar="RULE",
    help="Look for what this rule finds alone. May be repeated.  [default: all]",
)
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave out this rule, by id or name. May be repeated.")
@click.option(
    "--min-cost",
    metavar="COST",
    help="Tell what costs at least this: a share of a step, as in '1 %', or a time, as in '50 us'.  [default: 0.5 %]",
)
@reading_options
@functools.partial(output_options, formats=(*FORMATS, "github"))
@click.pass_context
def lint(
    context: click.Context,
    /,
    traces: tuple[str, ...],
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    min_cost: str | None,
    form: str,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Say what is wrong in TRACES, where, what it costs, and what would mend it (- is standard input).

    Several traces of one run are compared where they name their ranks. Exits with 1 where something is found, with 2
    where a trace is not healthy.
    """
    from tracetool.findings import linting
    from tracetool.findings.registry import chosen
    from tracetool.findings.settings import nearest_settings, parse_threshold
    from tracetool.render.view import View

    check_target(output, force=force)
    settings = nearest_settings(Path.cwd())
    settings = replace(settings, select=select or settings.select, ignore=ignore or settings.ignore)
    if min_cost is not None:
        settings = replace(settings, threshold=parse_threshold(min_cost))
    rules = chosen(settings.select, settings.ignore)
    summaries, eager = summarize_all(traces, options)
    found = linting.lint(summaries, rules, settings.threshold, settings.suppressions)
    emit("lint", found, form, output, View(command=_next(found)))
    told = any(one.findings for one in found)
    context.exit(exit_code_of([*summaries, *eager]) or (FOUND if told else 0))


@click.command()
@output_options
def rules(form: str, output: Path | None, force: bool) -> None:
    """Explain every rule of `lint`: what it looks for, and why that costs."""
    from tracetool.findings.registry import RULES

    check_target(output, force=force)
    emit("rules", list(RULES.values()), form, output, None)


def _next(found: Sequence[Lint]) -> str:
    """The command that looks at the range of the dearest finding."""
    from tracetool.render.words import pattern_of, to_type

    for one in found:
        for finding in one.findings:
            command = to_type(["summary", one.summary.source, "--range", pattern_of(finding.path), "--all"])
            if finding.path and command:
                return f"next: {command}"
    return ""
