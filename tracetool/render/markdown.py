"""Results as GitHub-flavoured Markdown, for a job summary or a comment in a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracetool.checking import Result, unfit
from tracetool.render import sentences, words
from tracetool.render.tables import SHORT, diff_table, summary_table, top_contributors
from tracetool.render.verdict import summary_verdict, verdict_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.checking import Check
    from tracetool.differ import TraceDiff
    from tracetool.metrics import Metric
    from tracetool.render.view import View
    from tracetool.summary import TraceSummary

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$])")
_LONGEST_NAME = 120


def summary(found: TraceSummary, view: View) -> str:
    """One trace."""
    table = summary_table(found, view)
    lines = [f"**{_plain(summary_verdict(found))}**", "", *_sides([("", found)]), ""]
    if table.lines:
        headings = [f"range (per {table.per})", "calls", *(_plain(SHORT.get(name, name)) for name in table.metrics)]
        lines += _table(headings, ([_noted(line.path, line.note), *line.cells] for line in table.lines))
        lines += ["", *_left(table.left)]
    made = top_contributors(found, view, [name for name in table.metrics if name not in ("ops", "h2d_bytes")])
    lines += [f"- {_plain(name)}: {_plain(text)}" for name, text in made]
    return "\n".join(lines).rstrip() + "\n"


def diff(found: TraceDiff, view: View) -> str:
    """A diff: the verdict, and a table of what changed."""
    lines = [f"**{_plain(verdict_of(found))}**", "", *_sides([(side.label, side.summary) for side in found.sides]), ""]
    for name, values in found.environment.items():
        lines.append(f"- differs: {_plain(name)}: {_plain(' -> '.join(values))}")
    lines += [""] if found.environment else []
    rows = []
    table = diff_table(found, view)
    for section in table.sections:
        title = _noted(section.path, " ".join(filter(None, (section.fate, section.note))))
        if not section.lines:
            rows.append([title])
        for line in section.lines:
            profiled = "" if line.metric.exact else ", profiled,"
            metric = f"{line.metric.name}{profiled} {words.each(line.metric.name, line.per)}"
            changes = [f"{value} {ratio}".strip() for value, ratio in zip(line.variants, line.ratios, strict=True)]
            rows.append([title, _plain(metric), line.baseline, *changes, _plain(line.causes)])
            title = ""
    if rows:
        headings = ["range", "metric", *(_plain(side.label) for side in found.sides), "what did it"]
        lines += [*_table(headings, rows), "", *_left(table.left)]
    else:
        lines.append("No range that is shown differs.")
    return "\n".join(lines).rstrip() + "\n"


def check(found: Check, view: View) -> str:
    """What came of a check: the verdict, then violations, then what was not checked."""
    lines = [f"**{_plain(sentences.verdict(found))}**", "", *_sides([("", found.summary)]), ""]
    bad = unfit(found.summary)
    lines += [f"- **not healthy**: {_plain(bad.message)}"] if bad is not None else []
    lines += [f"- **warning**: {_plain(one.message)}" for one in found.findings]
    broken, left = (found.broken, 0) if view.everything else sentences.telling(found.outcomes)
    lines += [f"- :x: {_plain(sentences.sentence(one))}" for one in broken]
    lines += [f"- and {words.plural(left, 'more count')} that follow from these"] if left else []
    lines += [f"- :grey_question: {_plain(sentences.sentence(one))}" for one in found.not_checked]
    lines += [f"- accepted: {_plain(sentences.accepted(one))}" for one in sentences.telling(found.accepted or ())[0]]
    if view.everything:
        held = [one for one in found.outcomes if one.result is Result.HELD]
        lines += [f"- :white_check_mark: {_plain(sentences.sentence(one))}" for one in held]
    return "\n".join(lines).rstrip() + "\n"


def health(found: TraceSummary) -> str:
    """All findings about one trace."""
    lines = [*_sides([("", found)]), ""]
    lines += [f"- **{one.severity}** `{one.code}`: {_plain(one.message)}" for one in found.health.findings] or [
        "Nothing stands against this trace's counts."
    ]
    return "\n".join(lines) + "\n"


def metrics(chosen: Sequence[Metric]) -> str:
    """Metrics explained."""
    rows = [
        [
            f"`{metric.name}`",
            metric.unit.value,
            ("exact" if metric.exact else "statistical") + ("" if metric.additive else ", not additive"),
            _plain(metric.meaning),
        ]
        for metric in chosen
    ]
    return "\n".join(_table(["metric", "unit", "kind", "meaning"], rows)) + "\n"


def _left(left: int) -> list[str]:
    return [f"And {words.plural(left, 'more range')}: `--range` chooses, `--all` shows them all.", ""] if left else []


def _sides(sides: Sequence[tuple[str, TraceSummary]]) -> list[str]:
    return [
        f"- {f'{_plain(label)}: ' if label else ''}{_code(words.shorten(found.source, _LONGEST_NAME))}, "
        f"{words.plural(found.event_count, 'event')}, {words.plural(found.step_count, 'step')}, "
        f"{_plain(found.environment.get('gpu', 'no GPU named'))}, health {found.health.verdict}"
        f"{f', {_plain(told)}' if (told := words.given_back(found)) else ''}"
        for label, found in sides
    ]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [_line(headings), _line(["---"] * len(headings))]
    lines += [_line([*row, *[""] * (len(headings) - len(row))]) for row in rows]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _noted(path: Sequence[str], note: str) -> str:
    return _name(words.path_text(path)) + (f" *{_plain(note)}*" if note else "")


def _name(text: str) -> str:
    """A name from a trace as code in a table, whatever is in it."""
    return _code(words.shorten(text, _LONGEST_NAME).replace("|", "\\|"))


def _code(text: str) -> str:
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def _plain(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", words.clean(text))
