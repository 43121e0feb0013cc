"""The report as one page: verdict, what stands against it, and all that changed, for people who would rather look."""

from __future__ import annotations

import base64
import hashlib
import shlex
from dataclasses import dataclass, field
from fractions import Fraction
from importlib import resources
from typing import TYPE_CHECKING, Any

from tracetool import __version__, by_name, unprofiled
from tracetool.differ import TraceDiff, outer_paths
from tracetool.environment import as_captured
from tracetool.metrics import METRICS, Unit
from tracetool.render import words
from tracetool.render.report import check_installed, figures
from tracetool.render.report.faults import faults
from tracetool.render.report.tree import tree
from tracetool.render.speed import interval_words, speed_word, speed_words
from tracetool.render.verdict import changes_of, summary_verdict
from tracetool.summary import BY
from tracetool.timeline import MOST_PIECES, step_timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tracetool.breakdown import Breakdown
    from tracetool.by_name import Named
    from tracetool.differ import Contribution, DiffRow, Side
    from tracetool.findings.linting import Lint
    from tracetool.unprofiled import Times

BUNDLE = "plotly-basic-4.1.1.min.js.gz"

_TILES = ("kernel_launches", "graph_launches", "h2d_copies", "d2h_copies", "syncs", "copy_bytes", "compiles", "ops")
_BARS = (
    "kernel_launches",
    "graph_launches",
    "kernels",
    "h2d_copies",
    "h2d_pageable_copies",
    "d2h_copies",
    "d2d_copies",
    "syncs",
    "h2d_bytes",
    "d2h_bytes",
    "d2d_bytes",
    "collectives",
    "memsets",
    "ops",
)
_TITLES = {
    "kernel_launches": "Kernel launches",
    "graph_launches": "Graph launches",
    "kernels": "Kernels",
    "h2d_copies": "HtoD copies",
    "h2d_pageable_copies": "HtoD copies, pageable",
    "d2h_copies": "DtoH copies",
    "d2d_copies": "DtoD copies",
    "syncs": "Syncs",
    "copy_bytes": "Bytes copied",
    "h2d_bytes": "HtoD bytes",
    "d2h_bytes": "DtoH bytes",
    "d2d_bytes": "DtoD bytes",
    "collectives": "Collectives",
    "memsets": "Memsets",
    "compiles": "Compiles",
    "ops": "Ops",
}
_MOST_TILES = 6
_MOST_IN_TITLE = 4
_MOST_KERNELS = 200
_MOST_CONTRIBUTORS = 250
_MOST_SETTINGS = 60
_MOST_PIECES_IN_ALL = 5000
_NAME = 160


@dataclass(frozen=True, slots=True)
class Extras:
    """What a page can have besides what the traces say.

    Attributes:
        command: That makes the page again; empty where it cannot be.
        breakdowns: HTA's tables of each trace, as `tracetool.breakdown` gives them.
        no_breakdown: Why there are none.
        notes: Sentences for the top: variants that failed, results that differ.
        lints: What rules find in each side; none where they were not asked.
    """

    command: str = ""
    breakdowns: Sequence[Breakdown] = ()
    no_breakdown: str = ""
    notes: Sequence[str] = field(default=())
    lints: Sequence[Lint] = ()


def report(found: TraceDiff, extras: Extras | None = None) -> str:
    """A page about a diff, or about one trace, as a diff of one side.

    Raises:
        SettingError: jinja2 or plotly is not installed.
    """
    check_installed()
    import jinja2

    extras = extras or Extras()
    assets = resources.files(__package__) / "assets"
    drawn, context = _context(found, extras)
    data = words.in_script({"tree": tree(found), "figures": drawn})
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((assets / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        **context,
        version=__version__,
        style=_safe((assets / "report.css").read_text(encoding="utf-8")),
        script=_safe((assets / "report.js").read_text(encoding="utf-8")),
        bundle=base64.b64encode((assets / BUNDLE).read_bytes()).decode(),
        data=_safe(data),
        # A script from a trace could not know it: it is made of all that the traces say.
        nonce=hashlib.sha256(data.encode()).hexdigest()[:32],
    )


def _safe(text: str) -> Any:
    """Our own files, and JSON in which no tag can begin or end."""
    from markupsafe import Markup

    return Markup(text)


def _context(found: TraceDiff, extras: Extras) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures by the ids of their places, and all else that the template shows."""
    sides = found.sides
    labels = [words.clean(side.label) for side in sides]
    times = unprofiled.times_of(sides)
    totals, per = _totals(sides)
    drawn: dict[str, Any] = {}
    bars = []
    for metric in _BARS:
        values = [float(total.get(metric, 0)) for total in totals]
        if any(values) and not (metric == "kernels" and values == [float(t.get("kernel_launches", 0)) for t in totals]):
            drawn[f"bar-{metric}"] = figures.bars(metric, labels, values)
            bars.append({"metric": metric, "title": _TITLES[metric], "meaning": METRICS[metric].meaning})
    steps = [step_timeline(side.summary, min(MOST_PIECES, _MOST_PIECES_IN_ALL // len(sides))) for side in sides]
    drawn["timeline"] = figures.timelines(labels, steps)
    if any(one.samples for one in times):
        drawn["unprofiled"] = figures.distributions(labels, [one.samples for one in times])
        if (ratio := figures.ratios(times)) is not None:
            drawn["ratios"] = ratio
    profiled = [
        [[counts["cpu_ns"] for _, counts in side.summary.steps]] if side.summary.steps else [] for side in sides
    ]
    if any(profiled):
        drawn["profiled"] = figures.distributions(labels, profiled)
    kernels = by_name.device_work(sides)
    order = {"gone": 0, "new": 1, "changed": 2, "same": 3}
    kernels.sort(key=lambda one: order[one.fate])
    single = len(sides) == 1
    contributors, contributors_left = _contributors(found)
    context = {
        "title": labels[0] if single else f"{_variants_in_words(labels)} vs {labels[0]}",
        "variants_in_words": _variants_in_words(labels) if len(labels) > _MOST_IN_TITLE else "",
        "single": single,
        "labels": labels,
        "colours": [figures.colour_of(number) for number in range(len(sides))],
        "verdicts": _verdicts(found, times),
        "notes": [words.clean(note) for note in extras.notes],
        "tiles": _tiles(totals) if len(sides) <= 2 else [],
        "per": per,
        "bars": bars,
        "drawn": set(drawn),
        "has_unprofiled": any(one.samples for one in times),
        "environment": [
            {"name": words.clean(name), "values": [words.shorten(value, _NAME) for value in values]}
            for name, values in list(found.environment.items())[:_MOST_SETTINGS]
        ],
        "sides": [_side(side, number) for number, side in enumerate(sides)],
        "steps": [
            {"label": label, "what": words.clean(step.what), "merged": step.merged, "left_out": step.left_out}
            for label, step in zip(labels, steps, strict=True)
        ],
        "kinds": sorted({piece.kind for step in steps for lane in step.lanes for piece in lane.pieces}),
        "device_per": "step" if by_name.stepped(sides) else "trace",
        "kernels": [_named(one) for one in kernels[:_MOST_KERNELS]],
        "kernels_left": max(0, len(kernels) - _MOST_KERNELS),
        "compiles": [_named(one) for one in by_name.compiles(sides)[:_MOST_KERNELS]],
        "compiles_held": any(side.summary.holds("compiles") for side in sides),
        "contributors": contributors,
        "contributors_left": contributors_left,
        "breakdowns": [_breakdown(one) for one in extras.breakdowns],
        "no_breakdown": extras.no_breakdown,
        "command": extras.command,
        "against": _against(sides),
        "faults": faults(extras.lints) if extras.lints else None,
        "health": _worst([side.summary.health.verdict for side in sides]),
        "plural": words.plural,
    }
    return drawn, context


def _variants_in_words(labels: Sequence[str]) -> str:
    return ", ".join(labels[1:]) if len(labels) <= _MOST_IN_TITLE else words.plural(len(labels) - 1, "variant")


def _against(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """What stands against the traces, each sentence once with the sides that it is about."""
    about: dict[tuple[str, str], list[int]] = {}
    for number, side in enumerate(sides):
        for one in side.summary.health.findings:
            about.setdefault((str(one.severity), words.clean(one.message)), []).append(number)
        if told := words.given_back(side.summary):
            about.setdefault(("info", words.clean(told)), []).append(number)
    rank = ("error", "warning", "info")
    return [
        {
            "severity": severity,
            "message": message,
            "sides": [] if len(numbers) == len(sides) else [_tag(sides, number) for number in numbers],
        }
        for (severity, message), numbers in sorted(about.items(), key=lambda item: rank.index(item[0][0]))
    ]


def _tag(sides: Sequence[Side], number: int) -> dict[str, str]:
    return {"label": words.clean(sides[number].label), "colour": figures.colour_of(number)}


def _worst(verdicts: Sequence[str]) -> str:
    return next((one for one in ("error", "warning") if one in verdicts), "ok")


def _totals(sides: Sequence[Side]) -> tuple[list[dict[str, Fraction]], str]:
    """Whole traces, for a step where all have steps."""
    if by_name.stepped(sides) and any(len(counts) > 1 for side in sides for _, counts in side.summary.steps):
        found = []
        for side in sides:
            steps = [counts for _, counts in side.summary.steps]
            names = dict.fromkeys(name for counts in steps for name in counts)
            found.append({name: Fraction(sum(c.get(name, 0) for c in steps), len(steps)) for name in names})
        return found, "step"
    return [{name: Fraction(value) for name, value in side.summary.totals.items()} for side in sides], "trace"


def _tiles(totals: Sequence[dict[str, Fraction]]) -> list[dict[str, Any]]:
    tiles = []
    for name in _TILES:
        values = [total.get(name, Fraction(0)) for total in totals]
        if any(values):
            unit = METRICS[name].unit
            tiles.append(
                {
                    "title": _TITLES[name],
                    "meaning": METRICS[name].meaning,
                    "values": [words.number(value, unit) for value in values],
                    "ratio": words.ratio(values[0], values[-1]) if len(values) > 1 else "",
                    "direction": "" if values[0] == values[-1] else "less" if values[-1] < values[0] else "more",
                }
            )
    return tiles[:_MOST_TILES]


def _verdicts(found: TraceDiff, times: Sequence[Times]) -> list[dict[str, Any]]:
    if len(found.sides) == 1:
        return [
            {"label": "", "clauses": [_clause(summary_verdict(found.baseline.summary))], **_speed(times[0], times[0])}
        ]
    return [
        {
            "label": words.clean(side.label),
            "clauses": [_clause(clause) for clause in changes_of(found, number)],
            **_speed(times[number + 1], times[0]),
        }
        for number, side in enumerate(found.variants)
    ]


def _clause(text: str) -> dict[str, str]:
    where, colon, what = words.clean(text).partition(": ")
    return {"where": where, "what": what} if colon else {"where": "", "what": where}


def _speed(one: Times, baseline: Times) -> dict[str, str]:
    """What can be said of speed: a word for the eye, and the sentence."""
    if one is baseline:
        if one.median_ns is None:
            return {"speed": "", "speed_words": "No unprofiled times are stored with this trace."}
        return {"speed": words.number(one.median_ns, Unit.NS), "speed_words": "a step, unprofiled"}
    if not one.samples or not baseline.samples:
        return {
            "speed": "",
            "speed_words": "Nothing is said of speed: no unprofiled times are stored with these traces "
            "(tracetool compare measures them).",
        }
    if one.ratio is None:
        return {"speed": "", "speed_words": speed_words(one, baseline) or ""}
    return {"speed": speed_word(one), "speed_words": interval_words(one)}


def _side(side: Side, number: int) -> dict[str, Any]:
    summary = side.summary
    ours = as_captured(summary.metadata)
    command = ours.get("command")
    captured = ours.get("captured")
    settings = list(summary.environment.items())
    return {
        "label": words.clean(side.label),
        "colour": figures.colour_of(number),
        "source": words.clean(summary.source),
        "events": f"{summary.event_count:,}",
        "steps": summary.step_count,
        "gpu": words.shorten(summary.environment.get("gpu", "no GPU named"), _NAME),
        "captured": words.clean(captured) if isinstance(captured, str) else "",
        "command": words.clean(shlex.join(map(str, command))) if isinstance(command, list) else "",
        "settings": [
            {"name": words.shorten(name, _NAME), "value": words.shorten(value, _NAME)}
            for name, value in settings[:_MOST_SETTINGS]
        ],
        "settings_left": max(0, len(settings) - _MOST_SETTINGS),
    }


def _named(one: Named) -> dict[str, Any]:
    return {
        "name": words.shorten(one.name, _NAME),
        "fate": one.fate,
        "counts": [words.number(count, Unit.COUNT) for count in one.counts],
        "times": [words.number(time, Unit.NS) if time else "-" for time in one.times_ns],
    }


def _breakdown(one: Breakdown) -> dict[str, Any]:
    return {
        "label": words.clean(one.label),
        "missing": [words.clean(sentence) for sentence in one.missing],
        "tables": [
            {
                "title": table.title,
                "columns": [words.clean(name) for name in table.columns],
                "rows": [[words.shorten(cell, _NAME) for cell in row] for row in table.rows],
                "numeric": table.numeric,
            }
            for table in one.tables
        ],
    }


def _contributors(found: TraceDiff) -> tuple[list[dict[str, Any]], int]:
    """What did what changed, in the innermost ranges; of one trace, what made most of it."""
    told = list(_told_single(found) if len(found.sides) == 1 else _told(found))
    return told[:_MOST_CONTRIBUTORS], max(0, len(told) - _MOST_CONTRIBUTORS)


def _told(found: TraceDiff) -> Iterator[dict[str, Any]]:
    outer = outer_paths((row.path for row in found.rows if row.changed), (row.path for row in found.rows))
    for row in found.rows:
        if row.path in outer:
            continue
        for metric in row.changed:
            if metric not in METRICS or metric in ("calls", "copies", "copy_bytes"):
                continue
            for by in BY:
                for one in found.contributions(row, metric, by):
                    if one.changed:
                        yield _contributor(row, metric, one)


def _told_single(found: TraceDiff) -> Iterator[dict[str, Any]]:
    summary = found.baseline.summary
    for metric in (name for name in _BARS if name in summary.metrics):
        for by in BY:
            counts: dict[str, int] = {}
            for row in range(summary.before_row):
                for name, amounts in summary.contributors(row, by).items():
                    if metric in amounts:
                        counts[name] = counts.get(name, 0) + amounts[metric]
            for name, value in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:5]:
                yield {
                    "range": "",
                    "metric": metric,
                    "by": by,
                    "name": words.shorten(name, _NAME),
                    "values": [words.number(value, METRICS[metric].unit)],
                }


def _contributor(row: DiffRow, metric: str, one: Contribution) -> dict[str, Any]:
    unit = METRICS[metric].unit
    return {
        "range": words.clean(words.path_text(row.path)),
        "metric": f"{metric} {words.each(metric, row.metrics[metric].per)}",
        "by": one.by,
        "name": words.shorten(one.name, _NAME),
        "values": [words.number(value, unit) for value in (one.baseline, *one.variants)],
    }
