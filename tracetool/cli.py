"""The command line: reads options, calls the pure parts, writes results and exits."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, MutableMapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from tracetool import __version__
from tracetool.errors import SettingError, TracetoolError
from tracetool.opening import printable, ranks_diff_of, ranks_of, several, summarize_all
from tracetool.options import (
    TRACE,
    labels_option,
    metric_option,
    output_options,
    reading_options,
    target_option,
    view_options,
)
from tracetool.output import check_target
from tracetool.presenting import FAILED, INTERRUPTED, emit, exit_code_of, fail, uncollected, view_of
from tracetool.reporting import check_report, html_option, write_report

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tracetool.differ import TraceDiff
    from tracetool.ranks import Ranks, RanksDiff
    from tracetool.render.view import View
    from tracetool.summary import Path as RangePath
    from tracetool.summary import TraceSummary

DIFFERS = 1


_ELSEWHERE = {
    "breakdown": ("breakdown_command", "breakdown"),
    "capture": ("capture_commands", "capture"),
    "check": ("check_command", "check"),
    "compare": ("compare_command", "compare"),
    "lint": ("lint_command", "lint"),
    "merge": ("perfetto_commands", "merge"),
    "open": ("perfetto_commands", "open_traces"),
    "rules": ("lint_command", "rules"),
    "snapshot": ("check_command", "snapshot"),
    "workloads": ("capture_commands", "workloads"),
}


class _Commands(MutableMapping[str, click.Command]):
    """Commands by name; a module that is there for other commands is not imported for this one."""

    def __init__(self) -> None:
        self._found: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._found:
            module, variable = _ELSEWHERE[name]
            self._found[name] = getattr(importlib.import_module(f"tracetool.{module}"), variable)
        return self._found[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._found[name] = command

    def __delitem__(self, name: str) -> None:
        del self._found[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._found, **_ELSEWHERE})

    def __len__(self) -> int:
        return len({**self._found, **_ELSEWHERE})


@click.group(commands=_Commands(), context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="tracetool")
def cli() -> None:
    """What did my change do to the work on the GPU?

    Counts kernel launches, copies, synchronisations and compiles in PyTorch profiler traces, range by range, and
    lays variants side by side.
    """


@cli.command()
@click.argument("traces", type=TRACE, nargs=-1, required=True, metavar="TRACE...")
@view_options
@reading_options
@output_options
@click.pass_context
def summary(
    context: click.Context,
    /,
    traces: tuple[str, ...],
    form: str,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Count the work of each range of TRACE (- is standard input); of several, a folder or a pattern: of each rank."""
    context.with_resource(uncollected())
    check_target(output, force=force)
    view = view_of(options)
    if several(traces):
        ranks, paths = ranks_of(traces, options, view)
        _check_patterns(view, paths)
        emit("ranks", ranks, form, output, _with_next(view, _next_of_ranks(ranks, options)))
        context.exit(_code_of(one.error for one in ranks.rows))
    [found], eager = summarize_all(traces, options)
    if options["per"] == "step" and not found.step_count:
        raise SettingError(f"{found.source} has no profiler steps: give numbers per call or per trace instead")
    _check_patterns(view, found.paths)
    emit("summary", found, form, output, _with_next(view, _next_of_summary(found, options)))
    context.exit(exit_code_of([found, *eager]))


@cli.command()
@click.argument("baseline", type=TRACE)
@click.argument("variants", type=TRACE, nargs=-1, required=True)
@labels_option
@click.option("--self", "own", is_flag=True, help="Compare what a range owns directly, without the ranges in it.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 where any exact count differs.")
@html_option
@view_options
@reading_options
@output_options
@click.pass_context
def diff(
    context: click.Context,
    /,
    baseline: str,
    variants: tuple[str, ...],
    labels: tuple[str, ...],
    own: bool,
    exit_code: bool,
    html: Path | None,
    form: str,
    output: Path | None,
    force: bool,
    **options: Any,
) -> None:
    """Lay VARIANTS beside BASELINE: what changed, range by range, and what did it; of two folders: rank by rank."""
    context.with_resource(uncollected())
    from tracetool.differ import diff as compare

    check_target(output, force=force)
    check_report(html, output, force=force)
    view = view_of(options)
    if several([baseline]) or any(several([variant]) for variant in variants):
        if len(variants) != 1 or html is not None:
            raise SettingError("runs of several ranks are compared two at a time, and without --html")
        sides = (baseline, variants[0])
        ranks, paths = ranks_diff_of(sides, labels, "self" if own else "total", options, view)
        _check_patterns(view, paths)
        emit("ranks_diff", ranks, form, output, _with_next(view, _next_of_ranks_diff(ranks, options)))
        unhealthy = _code_of(one.error for one in ranks.ordered)
        context.exit(unhealthy or (DIFFERS if exit_code and ranks.differs else 0))
    summaries, eager = summarize_all([baseline, *variants], options)
    _check_patterns(view, [path for found in summaries for path in found.paths])
    found = compare(
        *summaries, labels=[printable(label) for label in labels], scope="self" if own else "total", per=view.per
    )
    emit("diff", found, form, output, _with_next(view, _next_of_diff(found, labels, options)))
    if html is not None:
        write_report(found, html, _command_of_report([baseline, *variants], labels, html, options))
    unhealthy = exit_code_of([*summaries, *eager])
    context.exit(unhealthy or (DIFFERS if exit_code and found.differs else 0))


@cli.command()
@click.argument("baseline", type=TRACE)
@click.argument("variants", type=TRACE, nargs=-1)
@labels_option
@target_option("The page, an HTML file.")
@reading_options
@click.pass_context
def report(
    context: click.Context,
    /,
    baseline: str,
    variants: tuple[str, ...],
    labels: tuple[str, ...],
    output: Path,
    force: bool,
    **options: Any,
) -> None:
    """Write an HTML page about BASELINE, or about what VARIANTS changed: one file that needs no network."""
    from tracetool.differ import lay_out

    check_report(output, None, force=force)
    summaries, eager = summarize_all([baseline, *variants], options)
    found = lay_out(summaries, labels=[printable(label) for label in labels])
    write_report(found, output, _command_of_report([baseline, *variants], labels, output, options))
    context.exit(exit_code_of([*summaries, *eager]))


@cli.command()
@click.argument("trace", type=TRACE)
@reading_options
@output_options
@click.pass_context
def health(context: click.Context, /, trace: str, form: str, output: Path | None, force: bool, **options: Any) -> None:
    """Say whether the numbers of TRACE can be believed; exits with 2 where they cannot."""
    check_target(output, force=force)
    [found], eager = summarize_all([trace], options)
    emit("health", found, form, output, None)
    context.exit(exit_code_of([found, *eager]))


@cli.command()
@metric_option
@output_options
def metrics(metrics: tuple[str, ...], form: str, output: Path | None, force: bool) -> None:
    """Explain every metric: its unit, whether it is exact, what it counts."""
    from tracetool.metrics import ALL, lookup

    check_target(output, force=force)
    chosen = [lookup(name) for name in dict.fromkeys(metrics)] or ALL
    emit("metrics", chosen, form, output, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Every failure ends here, as one sentence on standard error and an exit code."""
    try:
        result = cli.main(args=arguments, prog_name="tracetool", standalone_mode=False)
    except TracetoolError as error:
        return fail(str(error), error.exit_code)
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return fail(error.format_message(), FAILED)
    except (click.Abort, KeyboardInterrupt):
        return fail("interrupted; nothing was written", INTERRUPTED)
    except MemoryError:
        return fail("out of memory: the trace is too large for this machine", FAILED)
    except Exception as error:  # noqa: BLE001 (no traceback reaches a user)
        if os.environ.get("TRACETOOL_DEBUG"):
            traceback.print_exc()
        return fail(
            f"a defect in tracetool: {type(error).__name__}: {error}; please report it with the output of the same "
            "command under TRACETOOL_DEBUG=1",
            FAILED,
        )
    return result if isinstance(result, int) else 0


# Steps of the commands ------------------------------------------------------------------------------------------


def _code_of(errors: Iterable[str]) -> int:
    """0, or what an unhealthy rank ends with, once it has been said."""
    worst = next(filter(None, errors), None)
    return fail(worst, FAILED) if worst else 0


def _next_of_ranks(found: Ranks, options: dict[str, Any]) -> list[str]:
    """The rank that stands out most beside the one that does least."""
    first, last = found.rows[0], found.rows[-1]
    if first is last:
        return ["summary", first.source, *_read_alike(options)]
    return ["diff", last.source, first.source, *_read_alike(options)]


def _next_of_ranks_diff(found: RanksDiff, options: dict[str, Any]) -> list[str]:
    return ["diff", *found.ordered[0].sources, *_read_alike(options)]


def _check_patterns(view: View, all_paths: Iterable[RangePath]) -> None:
    """A pattern that fits no range is a slip, not a wish to see nothing."""
    from tracetool.folding import STEP
    from tracetool.render.words import clean, pattern_of

    paths = {tuple(path): None for path in all_paths}
    for pattern in view.patterns:
        one = replace(view, patterns=(pattern,), depth=None)
        if any(one.shows(path) for path in paths):
            continue
        names = {path[-1]: pattern_of(path) for path in paths if path[-1] != STEP}
        last = re.split(r"(?<!\\)/", pattern.pattern.rstrip("/"))[-1].strip("*")
        near = [names[name] for name in difflib.get_close_matches(last, names, n=3)]
        near = near or [fit for name, fit in names.items() if last and last.lower() in name.lower()][:3]
        hint = f"did you mean {' or '.join(near)}?" if near else "`--depth 1` shows the outermost ranges"
        raise SettingError(f"no range fits '{clean(pattern.pattern)}': {hint}")


def _with_next(view: View, command: list[str]) -> View:
    from tracetool.render.words import to_type

    typed = to_type(command)
    return replace(view, command=typed and f"next: {typed}")


def _read_alike(options: dict[str, Any]) -> list[str]:
    """The options that make the ranges of a trace what they are."""
    return [
        *(word for regex in options["fold"] for word in ("--fold", regex)),
        *(word for source in options["ranges_as"] for word in ("--ranges-as", source)),
        *(("--ranges-from", options["ranges_from"]) if options["ranges_from"] else ()),
    ]


def _command_of_report(paths: Sequence[str], labels: Sequence[str], output: Path, options: dict[str, Any]) -> list[str]:
    names = [word for label in labels for word in ("--name", label)]
    return ["report", *paths, *names, *_read_alike(options), "-o", str(output)]


def _next_of_summary(found: TraceSummary, options: dict[str, Any]) -> list[str]:
    """The range that makes most launches (without a device: most ops), call by call; from there, all as JSON."""
    from tracetool.render.words import pattern_of

    command = ["summary", found.source, *_read_alike(options)]
    for metric in ("kernel_launches", "graph_launches", "ops"):
        own = found.own(metric)[: found.outside_row]
        if len(own) and own.max() > 0:
            pattern = pattern_of(found.paths[int(own.argmax())])
            if pattern in options["patterns"]:
                return [*command, "--format", "json"]
            return [*command, "--range", pattern, "--per", "call", "--all"]
    return ["health", found.source]


def _next_of_diff(found: TraceDiff, labels: Sequence[str], options: dict[str, Any]) -> list[str]:
    """All metrics of the innermost range that changed; from there, all as JSON."""
    from tracetool.differ import Status
    from tracetool.render.words import pattern_of

    command = ["diff", *(side.summary.source for side in found.sides), *_read_alike(options)]
    command += [word for label in labels for word in ("--name", label)]
    command += ["--self"] if found.scope == "self" else []
    # A range that all sides have tells more than one that came or went.
    changed = [row.path for row in found.rows if row.status is Status.CHANGED] or [
        row.path for row in found.rows if row.changed
    ]
    pattern = pattern_of(max(changed, key=len)) if changed else ""
    if options["everything"] and (not pattern or pattern in options["patterns"]):
        return [*command, "--format", "json"]
    return [*command, "--range", pattern, "--all"] if pattern else [*command, "--all"]


if __name__ == "__main__":
    sys.exit(main())
