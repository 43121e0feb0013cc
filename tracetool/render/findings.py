"""What rules found, in words: the same in a terminal, in Markdown, on a page and in a pull request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetool import amounts
from tracetool.folding import STEP
from tracetool.metrics import Unit
from tracetool.render.words import clean, path_text, plural

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.findings.finding import Finding
    from tracetool.findings.linting import Lint


def where(finding: Finding) -> str:
    """The range of a finding, without the profiler's steps around it."""
    return clean(
        path_text(tuple(name for name in finding.path if name != STEP) or finding.path or ("the whole trace",))
    )


def cost(lint: Lint, finding: Finding) -> str:
    """`287 us a step, 13 %`, `at most 86 us a step`, or that it is not known."""
    one = finding.cost
    if one.ns is None:
        return "cost not known" if one.at_most is None else f"at most {_time(lint, one.at_most)}"
    return _time(lint, one.ns)


def _time(lint: Lint, ns: float) -> str:
    # What comes once in a while costs more in its step than a usual step takes: no share can be told.
    share = f", {ns / lint.step_ns:.0%} of it" if 0 < ns <= lint.step_ns else ""
    return f"{amounts.number(ns, Unit.NS)} a {lint.unit}{share}"


def what(finding: Finding) -> str:
    """The sentence of a finding; where a dearer one is about the same work, with that."""
    same = f" (the work of {finding.covered_by} above)" if finding.covered_by else ""
    return clean(finding.what) + same


def made_by(lint: Lint, finding: Finding) -> str:
    """`aten::copy_ at train.py:12 x 24 a step, in 12 calls of the range`; empty where nothing is known."""
    told = [
        f"{clean(one.op)}{f' at {clean(one.place)}' if one.place else ''} x {_count(one.count)}"
        for one in finding.culprits
    ]
    calls = f", in {_count(finding.calls)} calls of the range" if finding.calls > 1 else ""
    return f"{', '.join(told)} a {lint.unit}{calls}" if told else ""


def _count(value: float) -> str:
    return amounts.number(int(value) if value == int(value) else round(value, 2), Unit.COUNT)


def unjudged(lint: Lint) -> list[str]:
    """What could not be judged, each reason once."""
    whys: dict[str, list[str]] = {}
    for one in lint.unjudged:
        whys.setdefault(one.why, []).append(one.rule.id)
    return [f"{', '.join(rules)} cannot judge: {clean(why)}" for why, rules in whys.items()]


def step_words(lint: Lint) -> str:
    """`a step takes 2.19 ms, in which the device works 192 us`."""
    if not lint.step_ns:
        return ""
    works = f", in which the device works {amounts.number(lint.busy_ns, Unit.NS)}" if lint.busy_ns else ""
    return f"a {lint.unit} takes {amounts.number(lint.step_ns, Unit.NS)}{works}"


def verdict(lints: Sequence[Lint]) -> str:
    """All of it in one line."""
    told = sum(len(one.findings) for one in lints)
    traces = f" in {plural(len(lints), 'trace')}" if len(lints) > 1 else ""
    parts = [f"{plural(told, 'finding') if told else 'no finding'}{traces}"]
    suppressed, cheap = sum(len(one.suppressed) for one in lints), sum(one.cheap for one in lints)
    parts += [f"{suppressed} suppressed"] if suppressed else []
    if cheap:
        least = {f"{amounts.number(one.least_ns, Unit.NS)} a {one.unit}" for one in lints if one.cheap}
        parts.append(f"{cheap} cheaper than {least.pop() if len(least) == 1 else 'is told'}")
    return ", ".join(parts) + ("; costs of several do not add up" if told > 1 else "")
