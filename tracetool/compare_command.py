"""The command `compare`: from a program to a verdict."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracetool.capture_commands import setting_options
from tracetool.capturing.options import ENDING
from tracetool.errors import CaptureError, TracetoolError
from tracetool.options import output_options, view_options
from tracetool.output import check_target, write
from tracetool.presenting import INTERRUPTED, StatusLine, exit_code_of, fail, rendered, view_of
from tracetool.reporting import check_report, html_option, write_report

if TYPE_CHECKING:
    from tracetool.comparing import Comparison


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--vary",
    "vary",
    multiple=True,
    required=True,
    metavar="NAME=A,B",
    help="Compare these values of a workload's axis, of a variable (env:NAME=A,B) or of a flag (arg:--FLAG=A,B); the "
    "first is the baseline. Repeated, all combinations.",
)
@click.option("-m", "module", is_flag=True, help="TARGET is a module, run as `python -m` does.")
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Time the steps of each variant in so many processes; 0 only captures.",
)
@click.option(
    "--samples", type=click.IntRange(min=1), default=10, show_default=True, help="Times of 10 steps in each process."
)
@click.option(
    "--traces",
    "folder",
    type=click.Path(path_type=Path),
    default=Path("tracetool-compare"),
    show_default=True,
    metavar="DIR",
    help="Where the variants' traces are kept.",
)
@html_option
@setting_options
@view_options
@output_options
@click.pass_context
def compare(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    vary: tuple[str, ...],
    module: bool,
    rounds: int,
    samples: int,
    folder: Path,
    html: Path | None,
    settings: tuple[tuple[str, str], ...],
    wait: int | None,
    warmup: int | None,
    active: int | None,
    form: str,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Capture TARGET in variants, time them without a profiler, and lay them side by side.

    TARGET is what `tracetool capture` takes. Each variant runs in processes of its own, in turn with the others. What
    is said of speed rests on the unprofiled times; what is counted, on the traces.
    """
    from tracetool import comparing
    from tracetool.capturing.options import CaptureOptions

    check_target(output, force=force)
    check_report(html, output, force=force)
    recorded = {option.name: options.pop(option.name) for option in fields(CaptureOptions)}
    view = view_of(options)
    variants = comparing.combinations([comparing.variation(text) for text in vary], dict(settings), arguments)
    window = {
        name: value for name, value in (("wait", wait), ("warmup", warmup), ("active", active)) if value is not None
    }
    plan = comparing.Plan(target, module, rounds, samples, folder, window, recorded)
    try:
        with StatusLine() as status:
            found = comparing.run(plan, variants, force=force, progress=status.show)
    except KeyboardInterrupt:
        kept = f"what was captured until then is in {folder}" if _holds_traces(folder) else "nothing was captured yet"
        context.exit(fail(f"interrupted; {kept}", INTERRUPTED))
    for note in found.notes:
        click.echo(f"note: {note}", err=True)
    write(_rendered(found, form, view, output), output)
    if html is not None:
        _report(found, html)
    context.exit(_exit_code(found))


def _holds_traces(folder: Path) -> bool:
    return any(folder.glob(f"*{ENDING}"))


def _rendered(found: Comparison, form: str, view: Any, output: Path | None) -> str:
    from tracetool.render import comparison

    if form == "json":
        return comparison.to_json(found, view)
    added = comparison.markdown(found) if form == "markdown" else comparison.text(found)
    return added if found.diff is None else rendered("diff", found.diff, form, output, view) + "\n" + added


def _report(found: Comparison, html: Path) -> None:
    if found.diff is None:
        raise CaptureError(f"{html} is not written: only one variant has a trace, so there is nothing to compare")
    notes = [f"{label} failed, and is not shown: {failure}" for label, failure in found.failures.items()]
    notes += [f"{label} came to other results than the baseline" for label in found.different]
    sides = found.diff.sides
    names = [word for side in sides for word in ("--name", side.label)]
    command = ["report", *(side.summary.source for side in sides), *names, "-o", str(html)]
    write_report(found.diff, html, command, notes)


def _exit_code(found: Comparison) -> int:
    if found.failures:
        return TracetoolError.exit_code
    return exit_code_of([side.summary for side in found.diff.sides]) if found.diff is not None else 0
