"""The commands that run programs: `capture` and `workloads`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from tracetool.capturing.options import DEFAULT_ACTIVE, window_of
from tracetool.errors import CaptureError, SettingError, TracetoolError
from tracetool.options import target_option
from tracetool.output import harmless
from tracetool.presenting import INTERRUPTED, StatusLine, fail

if TYPE_CHECKING:
    from tracetool.capturing.options import Window
    from tracetool.capturing.session import Capture
    from tracetool.capturing.targets import Program, Stepper

_NOT_THE_PROGRAM = (str(Path(__file__).parent), "<frozen runpy>")


class Settings(click.ParamType[tuple[str, str]]):
    """`axis=value`, of a workload."""

    name = "AXIS=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Split at the first `=`."""
        if isinstance(value, tuple):
            return value
        name, equals, chosen = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not AXIS=VALUE, as in --set batch_size=16", param, ctx)
        return name.strip(), chosen.strip()


def setting_options(command: Any) -> Any:
    """What is recorded, and of which steps: for `capture` and whatever captures."""
    for option in (
        click.option("--cold", is_flag=True, help="Begin with empty caches of compiled kernels."),
        click.option("--cpu", is_flag=True, help="Record nothing of a GPU, even where there is one."),
        click.option("--memory", is_flag=True, help="Record allocations too."),
        click.option("--lines", is_flag=True, help="Run one more step, and note the line that calls each op."),
        click.option("--shapes", is_flag=True, help="Record the shapes of ops' inputs too."),
        click.option("--stacks", is_flag=True, help="Record Python frames too, so that counts are told by function."),
        click.option("--active", type=int, metavar="N", help="Keep so many steps.  [default: 3]"),
        click.option("--warmup", type=int, metavar="N", help="Then record so many for nothing.  [default: 2]"),
        click.option("--wait", type=int, metavar="N", help="First let so many steps run as they are.  [default: 0]"),
        click.option(
            "--set",
            "settings",
            type=Settings(),
            multiple=True,
            metavar="AXIS=VALUE",
            help="Set an axis of a workload (`tracetool workloads` lists them). May be repeated.",
        ),
    ):
        command = option(command)
    return command


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@target_option("The trace, named *.json.gz.")
@click.option("-m", "module", is_flag=True, help="TARGET is a module, run as `python -m` does.")
@click.option("--setup", "set_up", is_flag=True, help="Record a workload's set-up too, in a range `setup`.")
@setting_options
@click.pass_context
def capture(
    context: click.Context,
    /,
    target: str,
    arguments: tuple[str, ...],
    output: Path,
    force: bool,
    module: bool,
    set_up: bool,
    settings: tuple[tuple[str, str], ...],
    wait: int | None,
    warmup: int | None,
    active: int | None,
    **recorded: bool,
) -> None:
    """Run TARGET under the profiler, and save a trace.

    TARGET is a workload (`tracetool workloads` lists them), a script, `package.module:function`, or with -m a module.
    A script or a module is recorded whole, and where it calls tracetool.step() by steps; with --wait, --warmup or
    --active only those steps are. A workload or a function is called once a step. Options that are not known here are
    TARGET's; after -- all are.
    """
    from tracetool.capturing.options import CaptureOptions, Window
    from tracetool.capturing.session import Capture, capture_program, capture_steps, check_trace_target
    from tracetool.capturing.targets import Stepper, find_target, with_set_up

    check_trace_target(output, force=force)
    # What Kineto prints of itself; that it recorded nothing is found out in the trace.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    window = window_of(wait, warmup, active)
    stepper = found = find_target(target, arguments, module=module, settings=dict(settings))
    if set_up:
        found, window = with_set_up(_set_up_of(found), _steps_after_set_up(wait, warmup, active)), None
    elif isinstance(found, Stepper):
        window = window or Window()
        _set_up(found)
    status = StatusLine()

    def show(ended: int) -> None:
        status.show(f"{found.title}: {_phase(window, ended)}")

    options = CaptureOptions(**recorded)
    one = Capture(output, window, force=force, about=found.facts, options=options, on_step=show)
    code = 0
    try:
        with status:
            show(0)
            if isinstance(found, Stepper):
                assert window is not None
                capture_steps(found, one, window)
            else:
                capture_program(found, one)
    except TracetoolError:
        raise
    except BaseException as error:  # noqa: BLE001 - the program's own; what was captured is there
        code = _failed(found, one, error)
    finally:
        if isinstance(stepper, Stepper):
            stepper.close()
    reported = _report(one)
    context.exit(code or reported)


def _set_up_of(found: Program | Stepper) -> Stepper:
    if found.facts["kind"] != "workload":
        raise SettingError(f"--setup is for workloads; {found.title} is none, and what it sets up is recorded anyway")
    return cast("Stepper", found)


def _steps_after_set_up(wait: int | None, warmup: int | None, active: int | None) -> int:
    if wait is not None or warmup is not None:
        raise SettingError("with --setup everything is recorded from the beginning: leave out --wait and --warmup")
    steps = window_of(wait, warmup, active)
    return DEFAULT_ACTIVE if steps is None else steps.active


def _set_up(stepper: Stepper) -> None:
    try:
        stepper.set_up()
    except TracetoolError:
        raise
    except Exception as error:
        raise CaptureError(f"{stepper.title} cannot be set up: {_sentence(error)}") from error


def _failed(found: Program | Stepper, one: Capture, error: BaseException) -> int:
    """Say how a program failed; the code that this ends with."""
    if isinstance(error, KeyboardInterrupt):
        return fail(f"interrupted{_kept(one)}", INTERRUPTED)
    if isinstance(error, SystemExit):
        return fail(f"{found.title} exited with {error.code!r}{_kept(one)}", CaptureError.exit_code)
    if not isinstance(error, Exception):
        raise error
    if found.facts["kind"] != "workload":
        # What a program's author would see without us, from their own first line on.
        _print_traceback(error)
    failure = f"{found.title} failed with {type(error).__name__}: {_sentence(error)}{_kept(one)}"
    return fail(failure, CaptureError.exit_code)


def _kept(one: Capture) -> str:
    return "" if one.result is None else f"; what was captured until then is in {one.path}"


def _sentence(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _print_traceback(error: Exception) -> None:
    own = error.__traceback__
    while own is not None and own.tb_frame.f_code.co_filename.startswith(_NOT_THE_PROGRAM):
        own = own.tb_next
    traceback.print_exception(type(error), error, own, file=sys.stderr)


def _report(one: Capture) -> int:
    """Say what was captured; the exit code of a trace that is not to be believed."""
    from tracetool.render.words import to_type

    result = one.result
    if result is None:
        return 0
    steps = f", {result.steps} steps" if result.steps else ""
    lines = f", {result.lines.known:,} of {result.lines.ops:,} ops have their line" if result.lines else ""
    click.echo(harmless(f"{result.path}  {result.events:,} events{steps}{lines}"))
    if result.warning is not None:
        return fail(f"{result.path}: {result.warning}", CaptureError.exit_code)
    if typed := to_type(["summary", str(result.path)]):
        click.echo(f"next: {typed}")
    return 0


def _phase(window: Window | None, ended: int) -> str:
    """What runs when so many steps have ended."""
    if window is None:
        return f"{ended} steps" if ended else "running"
    if ended < window.steps:
        return f"step {ended + 1} of {window.steps} ({window.phase(ended)})"
    return "captured; running to its end"


@click.command()
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
def workloads(names: tuple[str, ...]) -> None:
    """List the workloads that can be captured, their axes, and what each value does."""
    from tracetool.errors import nearest
    from tracetool.output import write
    from tracetool.workloads import find_workloads

    found = find_workloads(Path.cwd())
    for name in names:
        if name not in found:
            raise SettingError(f"{name!r} is no workload: {nearest(name, found)}")
    if not found:
        raise SettingError(
            "there are no workloads here: name modules that offer some under [tool.tracetool] workloads in "
            "pyproject.toml, or install a package with the entry point tracetool.workloads"
        )
    page = click.HelpFormatter(width=100)
    for workload in (found[name] for name in (names or found)):
        with page.section(f"{workload.name}: {workload.about}"):
            for name, axis in workload.axes.items():
                page.write_dl([(f"{name}={axis.default}", axis.about)], col_max=34)
                with page.indentation():
                    if axis.values:
                        page.write_dl(list(axis.values.items()), col_max=34)
    write(page.getvalue(), None)
