"""The command `breakdown`: what Holistic Trace Analysis says."""

from __future__ import annotations

from pathlib import Path

import click

from tracetool.errors import SettingError
from tracetool.options import TRACE, labels_option, output_options
from tracetool.output import check_target, is_stream, write


@click.command()
@click.argument("trace", type=TRACE)
@click.argument("variants", type=TRACE, nargs=-1)
@labels_option
@output_options
def breakdown(
    trace: str,
    variants: tuple[str, ...],
    labels: tuple[str, ...],
    form: str,
    output: Path | None,
    force: bool,
) -> None:
    """Break down the time of TRACE, and of VARIANTS, by Holistic Trace Analysis.

    Compute, copies and idle time; why streams idle; kernels; queue length; overlap of communication; the critical
    path; with variants HTA's diff of ops too, as a second opinion beside tracetool's own counts.
    """
    from tracetool.breakdown import NOT_INSTALLED, break_down, installed
    from tracetool.chrome import read
    from tracetool.differ import lay_out
    from tracetool.render import breakdown as render
    from tracetool.summary import summarize

    check_target(output, force=force)
    paths = (trace, *variants)
    if not installed():
        raise SettingError(NOT_INSTALLED)
    if (stream := next((path for path in paths if path == "-" or is_stream(Path(path))), None)) is not None:
        what = "standard input" if stream == "-" else stream
        raise SettingError(f"{what} cannot be broken down: HTA reads files; name one")
    found = break_down(lay_out([summarize(read(path)) for path in paths], labels=labels).sides)
    if not any(one.tables for one in found):
        raise SettingError("; ".join(sentence for one in found for sentence in one.missing))
    write({"json": render.to_json, "markdown": render.markdown}.get(form, render.text)(found), output)
