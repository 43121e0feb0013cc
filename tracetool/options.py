"""Options that commands share, so that they mean and do the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Command = Callable[..., Any]

FORMATS = ("terminal", "markdown", "json")

TRACE = click.Path(path_type=str, allow_dash=True)


def output_options(command: Command, formats: Sequence[str] = FORMATS) -> Command:
    """`--format`, `-o` and `--force`."""
    for option in (
        click.option("--force", is_flag=True, help="Overwrite FILE if it exists."),
        click.option(
            "-o",
            "--output",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write to FILE instead of standard output.",
        ),
        click.option(
            "--format",
            "form",
            type=click.Choice(formats),
            default="terminal",
            show_default=True,
            help="How the result is written.",
        ),
    ):
        command = option(command)
    return command


def target_option(about: str) -> Callable[[Command], Command]:
    """`-o`, without which there is nothing to do, and `--force`."""

    def add(command: Command) -> Command:
        command = click.option("--force", is_flag=True, help="Overwrite FILE if it exists.")(command)
        target = click.Path(path_type=Path)
        return click.option("-o", "--output", type=target, required=True, metavar="FILE", help=about)(command)

    return add


labels_option = click.option(
    "--name", "labels", multiple=True, metavar="LABEL", help="What to call each side, in their order."
)


def reading_options(command: Command) -> Command:
    """`--fold`, `--ranges-as` and `--ranges-from`: what the ranges of a trace are."""
    for option in (
        click.option(
            "--ranges-from",
            type=TRACE,
            metavar="EAGER_TRACE",
            help="Give the device work of graph launches back to the ranges that it was captured in, as EAGER_TRACE, "
            "a trace of the same step without graphs, tells them.",
        ),
        click.option(
            "--ranges-as",
            multiple=True,
            metavar="SOURCE",
            help="Let other events serve as ranges too: op:GLOB, python:GLOB, module (nn.Module frames) or thread. "
            "May be repeated.",
        ),
        click.option(
            "--fold",
            multiple=True,
            metavar="REGEX",
            help="Count ranges together whose names differ only in what REGEX matches; it is shown as *. "
            "May be repeated.",
        ),
    ):
        command = option(command)
    return command


metric_option = click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Show this metric (`tracetool metrics` lists them). May be repeated.",
)


def view_options(command: Command) -> Command:
    """`--range`, `--metric`, `--depth`, `--all` and `--per`: what is shown of a result."""
    for option in (
        click.option(
            "--per",
            type=click.Choice(("call", "step", "trace")),
            help="Give numbers per call of the range, per profiler step or per trace.",
        ),
        click.option("--all", "everything", is_flag=True, help="Also show what did not change, or counts nothing."),
        click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show ranges down to depth N only."),
        metric_option,
        click.option(
            "--range",
            "patterns",
            multiple=True,
            metavar="GLOB",
            help="Show ranges whose path fits: * is any text in a name, ** any names, / separates, a leading / ties "
            r"the pattern to the top, \ escapes. May be repeated.",
        ),
    ):
        command = option(command)
    return command
