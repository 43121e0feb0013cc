"""Results as GitHub-flavoured Markdown, for a job summary or a comment in a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracetool import unprofiled
from tracetool.checking import Result
from tracetool.render import findings, sentences, words
from tracetool.render import ranks as by_rank
from tracetool.render.speed import speed_words
from tracetool.render.tables import SHORT, diff_table, summary_table, top_contributors
from tracetool.render.verdict import changes_of, summary_verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.checking import Check
    from tracetool.differ import TraceDiff
    from tracetool.findings.finding import Finding, Rule
    from tracetool.findings.linting import Lint
    from tracetool.metrics import Metric
    from tracetool.ranks import Ranks, RanksDiff
    from tracetool.render.view import View
    from tracetool.summary import TraceSummary

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#&$])")
_LONGEST_NAME = 120
_LONGEST_VERDICT = 2000
_MOST_SETTINGS = 50
_ROOM_FOR_THE_REST = 200

MOST_CHARACTERS = 60_000
"""GitHub takes comments of 65,536; the rest is for who adds a heading."""


def summary(found: TraceSummary, view: View) -> str:
    """One trace."""
    table = summary_table(found, view)
    lines = [f"**{plain(words.shorten(summary_verdict(found), _LONGEST_VERDICT))}**", "", *_sides([("", found)]), ""]
    if table.lines:
        headings = [f"range (per {table.per})", "calls", *(plain(SHORT.get(name, name)) for name in table.metrics)]
        lines += table_lines(headings, ([_noted(line.path, line.note), *line.cells] for line in table.lines))
        lines += ["", *_left(table.left)]
    made = top_contributors(found, view, [name for name in table.metrics if name not in ("ops", "h2d_bytes")])
    lines += [f"- {plain(name)}: {plain(text)}" for name, text in made]
    return bounded(lines)


def ranks(found: Ranks, view: View) -> str:
    """The traces of a program's ranks."""
    del view
    return _by_rank(by_rank.told(found), by_rank.table(found), by_rank.verdict(found))


def ranks_diff(found: RanksDiff, view: View) -> str:
    """Two runs, rank by rank."""
    del view
    return _by_rank(by_rank.diff_told(found), by_rank.diff_table(found), by_rank.diff_verdict(found))


def _by_rank(told: Sequence[str], lines: by_rank.Lines, verdict: str) -> str:
    found = [f"**{plain(words.shorten(verdict, _LONGEST_VERDICT))}**", ""]
    found += [f"- {plain(words.shorten(sentence, _LONGEST_VERDICT))}" for sentence in told]
    found += [""] if told else []
    rows = [[plain(cell) for cell in row] for row in (*lines.rows, *lines.spread)]
    return bounded([*found, *table_lines([plain(heading) for heading in lines.headings], rows)])


def diff(found: TraceDiff, view: View) -> str:
    """A diff: the verdict, a table of what changed, and where the traces come from folded below it."""
    lines = [*_verdicts(found), ""]
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
            rows.append([title, plain(metric), line.baseline, *changes, plain(line.causes)])
            title = ""
    if rows:
        headings = ["range", "metric", *(plain(side.label) for side in found.sides), "what did it"]
        lines += [*table_lines(headings, rows), "", *_left(table.left)]
    else:
        lines.append("No range that is shown differs.")
    return bounded([*lines, "", _folded(found)])


def _verdicts(found: TraceDiff) -> list[str]:
    """What changed, and how fast that is where it was measured without a profiler."""
    times = unprofiled.times_of(found.sides)
    several = len(found.variants) > 1
    lines = []
    for number, side in enumerate(found.variants):
        told = "; ".join(changes_of(found, number))
        told = told if len(told) <= _LONGEST_VERDICT else f"{told[:_LONGEST_VERDICT]}..."
        label = f"{plain(words.shorten(side.label, _LONGEST_NAME))}: " if several else ""
        lines.append(f"{'- ' if several else ''}{label}**{plain(told)}**")
        if (speed := speed_words(times[number + 1], times[0])) is not None:
            lines += ([] if several else [""]) + [f"{'  - ' if several else ''}{plain(speed)}"]
    return lines


def _folded(found: TraceDiff) -> str:
    lines = ["<details><summary>Traces and environment</summary>", ""]
    lines += _sides([(side.label, side.summary) for side in found.sides])
    for name, values in list(found.environment.items())[:_MOST_SETTINGS]:
        told = " -> ".join(words.shorten(value, _LONGEST_NAME) for value in values[:_MOST_SETTINGS])
        lines.append(f"- differs: {plain(words.shorten(name, _LONGEST_NAME))}: {plain(told)}")
    return "\n".join([*lines, "", "</details>"])


def bounded(blocks: Sequence[str], most: int = MOST_CHARACTERS) -> str:
    """Blocks of lines as one text that GitHub takes; the last ones, if they do not fit, are left out and counted."""
    text = "\n".join(blocks).rstrip() + "\n"
    if len(text) <= most:
        return text
    kept, size = [], 0
    for block in blocks:
        if size + len(block) + 1 > most - _ROOM_FOR_THE_REST:
            break
        kept.append(block)
        size += len(block) + 1
    left = words.plural(len(blocks) - len(kept), "more line")
    return "\n".join([*kept, "", f"And {left}, for GitHub takes no longer comment: `--range` chooses."]) + "\n"


def check(found: Check, view: View) -> str:
    """What came of a check: the verdict, then violations, then what was not checked."""
    lines = [f"**{plain(sentences.verdict(found))}**", "", *_sides([("", found.summary)]), ""]
    bad = found.summary.health.error
    lines += [f"- **not healthy**: {plain(bad.message)}"] if bad is not None else []
    lines += [f"- **warning**: {plain(one.message)}" for one in found.findings]
    broken, left = (found.broken, 0) if view.everything else sentences.telling(found.outcomes)
    lines += [f"- :x: {plain(sentences.sentence(one))}" for one in broken]
    lines += [f"- and {words.plural(left, 'more count')} that follow from these"] if left else []
    lines += [f"- :grey_question: {plain(sentences.sentence(one))}" for one in found.not_checked]
    lines += [f"- accepted: {plain(sentences.accepted(one))}" for one in sentences.telling(found.accepted or ())[0]]
    if view.everything:
        held = [one for one in found.outcomes if one.result is Result.HELD]
        lines += [f"- :white_check_mark: {plain(sentences.sentence(one))}" for one in held]
    return "\n".join(lines).rstrip() + "\n"


def health(found: TraceSummary) -> str:
    """All findings about one trace."""
    lines = [*_sides([("", found)]), ""]
    lines += [f"- **{one.severity}** `{one.code}`: {plain(one.message)}" for one in found.health.findings] or [
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
            plain(metric.meaning),
        ]
        for metric in chosen
    ]
    return "\n".join(table_lines(["metric", "unit", "kind", "meaning"], rows)) + "\n"


def lint(found: Sequence[Lint], view: View) -> str:
    """What rules found in traces: a table for each, then how to mend what is in it, each once."""
    del view
    lines = [f"**{plain(findings.verdict(found))}**", ""]
    for one in found:
        bad = one.summary.health.error
        lines += _sides([("", one.summary)])
        lines += [f"- **not healthy**: {plain(bad.message)}"] if bad is not None else []
        lines += [f"- {plain(told)}" for told in (findings.step_words(one), *findings.unjudged(one)) if told]
        lines += [
            f"- suppressed: {_rule(finding.rule)} in {_name(findings.where(finding))}, "
            f"{plain(findings.cost(one, finding))}: {plain(known.reason)}"
            for finding, known in one.suppressed
        ]
        rows = [_finding_cells(one, finding) for finding in one.findings]
        lines += ["", *table_lines(["rule", "range", "cost, estimated", "what", "by"], rows)] if rows else []
        lines.append("")
    mends = {finding.mend.code: finding for one in found for finding in one.findings}
    for finding in mends.values():
        lines += [f"**{_rule(finding.rule)}**: {plain(finding.rule.why)} {plain(finding.mend.text)}", ""]
        lines += ["```python", *finding.mend.code.splitlines(), "```", ""]
    return bounded(lines)


def _finding_cells(lint: Lint, finding: Finding) -> list[str]:
    return [
        _rule(finding.rule),
        _name(findings.where(finding)),
        plain(findings.cost(lint, finding)),
        plain(findings.what(finding)),
        plain(words.shorten(findings.made_by(lint, finding), _LONGEST_NAME)),
    ]


def _rule(rule: Rule) -> str:
    return f"{rule.id} {rule.name}"


def rules(chosen: Sequence[Rule]) -> str:
    """Rules explained, with how to mend what they find."""
    lines = []
    for rule in chosen:
        lines += [f"## {_rule(rule)}", "", plain(rule.looks_for), "", f"*Why it costs.* {plain(rule.why)}", ""]
        lines += [f"*The cost.* {plain(rule.estimate)}", ""]
        for mend in rule.mends:
            of = f" ({plain(mend.of)})" if mend.of else ""
            lines += [f"*Mend{of}.* {plain(mend.text)}", "", "```python", *mend.code.splitlines(), "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def _left(left: int) -> list[str]:
    return [f"And {words.plural(left, 'more range')}: `--range` chooses, `--all` shows them all.", ""] if left else []


def _sides(sides: Sequence[tuple[str, TraceSummary]]) -> list[str]:
    return [
        f"- {f'{plain(label)}: ' if label else ''}{_code(words.shorten(found.source, _LONGEST_NAME))}, "
        f"{words.plural(found.event_count, 'event')}, {words.plural(found.step_count, 'step')}, "
        f"{plain(found.environment.get('gpu', 'no GPU named'))}, health {found.health.verdict}"
        f"{f', {plain(told)}' if (told := words.given_back(found)) else ''}"
        for label, found in sides
    ]


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table; rows may be shorter than its headings."""
    lines = [_line(headings), _line(["---"] * len(headings))]
    lines += [_line([*row, *[""] * (len(headings) - len(row))]) for row in rows]
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _noted(path: Sequence[str], note: str) -> str:
    return _name(words.path_text(path)) + (f" *{plain(note)}*" if note else "")


def _name(text: str) -> str:
    """A name from a trace as code in a table, whatever is in it."""
    return _code(words.shorten(text, _LONGEST_NAME).replace("|", "\\|"))


def _code(text: str) -> str:
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def plain(text: str) -> str:
    """Text in which nothing is Markdown or HTML."""
    return _SPECIAL.sub(r"\\\1", words.clean(text))
