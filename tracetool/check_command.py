"""The commands `check` and `snapshot`: a trace held against budgets, and counts kept to hold the next one against."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracetool.errors import BudgetError, OutputError, SettingError
from tracetool.opening import summarize_all
from tracetool.options import FORMATS, TRACE, output_options, reading_options
from tracetool.output import check_target
from tracetool.presenting import FAILED, emit, exit_code_of, fail

if TYPE_CHECKING:
    from tracetool.checking import Check

BROKEN = 1


@click.command()
@click.argument("trace", type=TRACE)
@click.option(
    "--budgets",
    "budgets_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Take budgets from this TOML file, and not from the nearest pyproject.toml.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with this snapshot, or with another trace: every exact count must be the same, or what budgets "
    "that speak of `baseline` let it be.",
)
@click.option("--any-env", is_flag=True, help="Compare even where the baseline is of another GPU, torch or CUDA.")
@click.option("--update", is_flag=True, help="Accept the trace's counts into the snapshot that --baseline names.")
@click.option("--all", "everything", is_flag=True, help="Also show what holds, and counts that follow from others.")
@reading_options
@functools.partial(output_options, formats=(*FORMATS, "github"))
@click.pass_context
def check(
    context: click.Context,
    /,
    trace: str,
    budgets_file: Path | None,
    baseline: Path | None,
    any_env: bool,
    update: bool,
    everything: bool,
    form: str,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Hold TRACE against budgets, and against a snapshot (- is standard input).

    Exits with 1 where a budget is broken or a count differs, with 2 where the trace is not healthy or is of another
    environment than the snapshot.
    """
    from tracetool import baselines
    from tracetool.render.view import View

    check_target(output, force=force)
    if update and baseline is None:
        raise SettingError("--update accepts counts into a snapshot: name it with --baseline")
    budgets = baselines.nearest_budgets(Path.cwd()) if budgets_file is None else baselines.read_budgets(budgets_file)
    if not budgets and baseline is None:
        raise BudgetError(
            "there is nothing to check: write budgets into pyproject.toml ([[tool.tracetool.budgets]]), or name a "
            "file of them with --budgets, or a snapshot with --baseline"
        )
    [found], eager = summarize_all([trace], options)
    if update and baseline is not None:
        if unhealthy := exit_code_of([found, *eager]):
            context.exit(unhealthy)
        told, snapshot = baselines.accept(found, budgets, baseline)
        baselines.write_snapshot(snapshot, baseline)
    else:
        told = baselines.judge(
            found, budgets, None if baseline is None else baselines.Reference(baseline), any_env=any_env
        )
    emit("check", told, form, output, View(everything=everything, command=_next(trace, told)))
    unhealthy = exit_code_of([found, *eager])
    if told.not_comparable and not unhealthy:
        unhealthy = fail(f"{told.not_comparable}; --any-env compares all the same, --update adds this one", FAILED)
    context.exit(unhealthy or (BROKEN if told.broken else 0))


def _next(trace: str, told: Check) -> str:
    """The command that looks at the first violation; where a count is not that of a snapshot, the one to accept it."""
    from tracetool.render.words import pattern_of, to_type

    if not told.broken:
        return ""
    first = told.broken[0]
    if first.against == "snapshot":
        typed = to_type(["check", trace, "--baseline", told.baseline, "--update"])
        return typed and f"accept: {typed}"
    typed = to_type(["summary", trace, *(["--range", pattern_of(first.path), "--all"] if first.path else [])])
    return typed and f"next: {typed}"


@click.command()
@click.argument("trace", type=TRACE)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE instead of standard output; sections of other environments in it stay.",
)
@click.option("--force", is_flag=True, help="Replace the section of this environment if FILE has one.")
@reading_options
@click.pass_context
def snapshot(context: click.Context, /, trace: str, output: Path | None, force: bool, **options: Any) -> None:
    """Store the exact counts of TRACE as text to commit, for `check --baseline`."""
    from tracetool import baselines, snapshots

    kept = snapshots.Snapshot({})
    if output is not None and output.exists():
        kept = baselines.read_snapshot(output)
    else:
        check_target(output, force=force)
    [found], eager = summarize_all([trace], options)
    unhealthy = exit_code_of([found, *eager])
    if unhealthy:
        context.exit(unhealthy)
    section = snapshots.take(found)
    old = kept.sections.get(section.environment)
    if old is not None and old != section and not force:
        raise OutputError(
            f"{output} has other counts for {snapshots.environment_text(section.environment)} already; --force "
            "replaces them, and `tracetool check --update` shows what differs"
        )
    baselines.write_snapshot(kept.with_section(section), output)
