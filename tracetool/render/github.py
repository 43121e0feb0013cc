"""What came of a trace as annotations of a GitHub Actions run: workflow commands, shown at the line that did it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracetool.output import harmless
from tracetool.render import findings, sentences

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.checking import Check
    from tracetool.findings.linting import Lint
    from tracetool.render.view import View

_PLACE = re.compile(r"(?P<file>[^\s:]+\.\w+):(?P<line>\d+)(?: in .*)?", re.DOTALL)


def check(found: Check, view: View) -> str:
    """What came of a check."""
    lines = []
    if found.summary.unhealthy:
        lines.append(_command("error", found.summary.unhealthy))
    if found.not_comparable:
        lines.append(_command("error", found.not_comparable))
    broken, left = (found.broken, 0) if view.everything else sentences.telling(found.outcomes)
    lines += [
        _command("error", sentences.sentence(one), **_place(cause.place for cause in one.causes)) for one in broken
    ]
    if left:
        lines.append(_command("notice", f"{left} more counts follow from these"))
    lines += [_command("warning", one.message) for one in found.findings]
    lines += [_command("notice", sentences.sentence(one)) for one in found.not_checked]
    lines += [
        _command("notice", f"accepted: {sentences.accepted(one)}") for one in sentences.telling(found.accepted or ())[0]
    ]
    lines.append(_command("notice", sentences.verdict(found)))
    return "\n".join(lines) + "\n"


def lint(found: Sequence[Lint], view: View) -> str:
    """What rules found in traces."""
    del view
    lines = []
    for one in found:
        if one.summary.unhealthy:
            lines.append(_command("error", one.summary.unhealthy))
        for finding in one.findings:
            lead = f"{finding.rule.id} {finding.rule.name} in {findings.where(finding)}"
            told = f"{lead}, {findings.cost(one, finding)}: {findings.what(finding)}. {finding.mend.text}"
            lines.append(_command("warning", told, **_place(culprit.place for culprit in finding.culprits)))
        lines += [_command("notice", text) for text in findings.unjudged(one)]
    lines.append(_command("notice", findings.verdict(found)))
    return "\n".join(lines) + "\n"


def _place(places: Iterable[str]) -> dict[str, str]:
    """The first of some places, if it is a line of a file."""
    match = _PLACE.fullmatch(next(iter(places), ""))
    return match.groupdict() if match else {}


def _command(level: str, message: str, **properties: str) -> str:
    told = ",".join(f"{key}={_property(value)}" for key, value in {**properties, "title": "tracetool"}.items())
    return f"::{level} {told}::{_data(message)}"


def _data(text: str) -> str:
    escaped = {"\r": "%0D", "\n": "%0A"}
    return "".join(escaped.get(part, harmless(part).replace("%", "%25")) for part in re.split(r"([\r\n])", text))


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
