"""JSON: the schemas `tracetool.summary/1`, `tracetool.diff/1` and others, which `tracetool/schemas` holds."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from tracetool.differ import Per
from tracetool.health import Health
from tracetool.render import findings, sentences, words
from tracetool.render import ranks as by_rank
from tracetool.render.verdict import verdict_of
from tracetool.summary import BY

_STEERING = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""What JSON allows in a text as it is, though it steers a terminal."""

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.checking import Check, Outcome
    from tracetool.differ import Cell, Comparison, DiffRow, Side, TraceDiff
    from tracetool.findings.finding import Finding, Mend, Rule
    from tracetool.findings.linting import Lint
    from tracetool.metrics import Metric
    from tracetool.ranks import Rank, RankDiff, Ranks, RanksDiff, Value
    from tracetool.render.view import View
    from tracetool.summary import Spread, TraceSummary


def summary(found: TraceSummary, view: View) -> str:
    """One trace, by `tracetool.summary/1`."""
    return as_text(
        {
            "schema": "tracetool.summary/1",
            "trace": _trace(found),
            "health": _health(found.health),
            "totals": _chosen(found.totals, view),
            "steps": [{"number": number, "totals": _chosen(totals, view)} for number, totals in found.steps],
            "ranges": list(_ranges(found, view)),
        }
    )


def health(found: TraceSummary) -> str:
    """The health of one trace, by `tracetool.health/1`."""
    return as_text({"schema": "tracetool.health/1", "trace": _trace(found), "health": _health(found.health)})


def metrics(chosen: Sequence[Metric]) -> str:
    """Metrics explained, by `tracetool.metrics/1`."""
    return as_text(
        {
            "schema": "tracetool.metrics/1",
            "metrics": [_metric(metric) for metric in chosen],
        }
    )


def diff(found: TraceDiff, view: View) -> str:
    """A diff, by `tracetool.diff/1`. Everything is there, changed or not."""
    return as_text(diff_values(found, view))


def diff_values(found: TraceDiff, view: View) -> dict[str, Any]:
    """The same as values."""
    return {
        "schema": "tracetool.diff/1",
        "baseline": _side(found.baseline),
        "variants": [_side(side) for side in found.variants],
        "scope": found.scope,
        "environment": [{"setting": name, "values": values} for name, values in found.environment.items()],
        "ranges": [_diff_row(found, row, view) for row in found.rows if view.shows(row.path)],
        "verdict": verdict_of(found),
    }


def ranks(found: Ranks, view: View) -> str:
    """The traces of a program's ranks, by `tracetool.ranks/1`."""
    del view
    spreads = {name: found.spread(partial(found.value, metric=name)) for name in found.metrics}
    return as_text(
        {
            "schema": "tracetool.ranks/1",
            "per": found.per,
            "ranks": [_rank(found, one) for one in found.rows],
            "spread": {
                name: {"min": _of_value(one.least), "median": _of_value(one.median), "max": _of_value(one.most)}
                for name, one in spreads.items()
            },
            "differences": [
                {
                    "range": list(one.path),
                    "metric": one.metric,
                    "usual": one.usual,
                    "others": [
                        {"rank": other.rank, "path": other.source, "value": value} for other, value in one.others
                    ],
                }
                for one in found.differences
            ],
            "verdict": by_rank.verdict(found),
        }
    )


def _rank(found: Ranks, one: Rank) -> dict[str, Any]:
    straggles = found.straggles(one)
    return {
        "rank": one.rank,
        "path": one.source,
        "events": one.events,
        "steps": one.steps,
        "health": one.verdict,
        "differs": found.differs(one),
        "straggles": None if straggles is None else float(straggles),
        "step_ns": one.step_ns,
        "working_ns": _of_value(found.time(one, one.working_ns)),
        "collective_ns": _of_value(found.time(one, one.collective_ns)),
        "metrics": {name: _of_value(found.value(one, name)) for name in found.metrics},
    }


def ranks_diff(found: RanksDiff, view: View) -> str:
    """Two runs rank by rank, by `tracetool.ranks_diff/1`."""
    del view
    return as_text(
        {
            "schema": "tracetool.ranks_diff/1",
            "baseline": found.labels[0],
            "variant": found.labels[1],
            "ranks": [_rank_diff(one) for one in found.ordered],
            "alone": {"baseline": list(found.alone[0]), "variant": list(found.alone[1])},
            "verdict": by_rank.diff_verdict(found),
        }
    )


def _rank_diff(one: RankDiff) -> dict[str, Any]:
    return {
        "rank": one.rank,
        "baseline": {"path": one.sources[0], "health": one.health[0]},
        "variant": {"path": one.sources[1], "health": one.health[1]},
        "differs": one.differs,
        "changes": [
            {
                "range": list(change.path),
                "metric": change.metric,
                "per": change.per,
                "baseline": None if change.baseline is None else _plain(change.baseline),
                "variant": None if change.variant is None else _plain(change.variant),
            }
            for change in one.changes
        ],
        "verdict": one.verdict,
    }


def _of_value(value: Value) -> float | int:
    return _plain(float(value))


def check(found: Check, view: View) -> str:
    """What came of a check, by `tracetool.check/1`. Everything is there, whatever the view leaves out."""
    del view
    return as_text(
        {
            "schema": "tracetool.check/1",
            "trace": _trace(found.summary),
            "health": _health(Health((*found.findings, *found.summary.health.findings))),
            "baseline": found.baseline,
            "not_comparable": found.not_comparable,
            "outcomes": [_outcome(one) for one in found.outcomes],
            "accepted": None if found.accepted is None else [_outcome(one) for one in found.accepted],
            "verdict": sentences.verdict(found),
        }
    )


def _outcome(one: Outcome) -> dict[str, Any]:
    return {
        "range": list(one.path),
        "metric": one.metric,
        "scope": one.scope,
        "per": one.per,
        "against": one.against,
        "source": one.source,
        "bound": {
            "relation": one.bound.relation,
            "relative": one.bound.relative,
            "number": float(one.bound.number),
            "limit": None if one.limit is None else float(one.limit),
        },
        "result": one.result,
        "reason": one.reason,
        "numbers": None
        if not one.samples
        else {"least": one.least, "most": one.most, "count": one.samples, "broken": one.broken},
        "interval": None if one.interval is None else {"low": one.interval[0], "high": one.interval[1]},
        "causes": [{"op": cause.op, "place": cause.place, "amount": float(cause.amount)} for cause in one.causes],
        "allowed": [
            {"op": allowance.op, "line": allowance.line, "reason": allowance.reason, "amount": amount}
            for allowance, amount in one.allowed
        ],
        "sentence": sentences.sentence(one),
    }


def lint(found: Sequence[Lint], view: View) -> str:
    """What rules found in traces, by `tracetool.lint/1`."""
    del view
    return as_text(
        {
            "schema": "tracetool.lint/1",
            "traces": [_lint(one) for one in found],
            "verdict": findings.verdict(found),
        }
    )


def _lint(one: Lint) -> dict[str, Any]:
    return {
        "trace": _trace(one.summary),
        "health": _health(one.summary.health),
        "unit": one.unit,
        "step_ns": one.step_ns,
        "busy_ns": one.busy_ns,
        "least_ns": one.least_ns,
        "findings": [_finding(finding) for finding in one.findings],
        "suppressed": [{**_finding(finding), "reason": known.reason} for finding, known in one.suppressed],
        "cheaper": one.cheap,
        "unjudged": [{"rule": told.rule.id, "why": told.why} for told in one.unjudged],
    }


def _finding(one: Finding) -> dict[str, Any]:
    return {
        "rule": one.rule.id,
        "name": one.rule.name,
        "range": list(one.path),
        "what": one.what,
        "calls": one.calls,
        "counts": one.counts,
        "culprits": [{"op": made.op, "place": made.place, "count": made.count} for made in one.culprits],
        "cost": {"ns": one.cost.ns, "at_most_ns": one.cost.at_most, "how": one.cost.how},
        "same_work_as": one.covered_by,
        "mend": _mend(one.mend),
        "docs": one.rule.anchor,
    }


def _mend(one: Mend) -> dict[str, str]:
    return {"of": one.of, "text": one.text, "code": one.code}


def rules(chosen: Sequence[Rule]) -> str:
    """Rules explained, by `tracetool.rules/1`."""
    return as_text(
        {
            "schema": "tracetool.rules/1",
            "rules": [
                {
                    "id": rule.id,
                    "name": rule.name,
                    "looks_for": rule.looks_for,
                    "why": rule.why,
                    "estimate": rule.estimate,
                    "mends": [_mend(one) for one in rule.mends],
                    "docs": rule.anchor,
                }
                for rule in chosen
            ],
        }
    )


def as_text(value: object) -> str:
    """Values as indented JSON."""
    text = msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    return _STEERING.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _trace(found: TraceSummary) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": found.source,
        "events": found.event_count,
        "steps": found.step_count,
        "environment": found.environment,
    }
    if replays := found.replays:
        entry["graphs"] = {
            "ranges_from": replays.source,
            "launches": replays.launches,
            "pieces": replays.pieces,
            "given_back": replays.given,
            "left": [{"why": one.doubt.name.lower(), "name": one.name, "count": one.count} for one in replays.left],
        }
    return entry


def _health(found: Health) -> dict[str, Any]:
    return {
        "verdict": found.verdict,
        "findings": [
            {"code": one.code, "severity": one.severity, "message": one.message, "count": one.count}
            for one in found.findings
        ],
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "unit": metric.unit,
        "exact": metric.exact,
        "additive": metric.additive,
        "needs": metric.needs,
        "meaning": metric.meaning,
    }


def _chosen(counts: dict[str, int], view: View) -> dict[str, int]:
    return {name: value for name, value in counts.items() if not view.metrics or name in view.metrics}


def _ranges(found: TraceSummary, view: View) -> Iterable[dict[str, Any]]:
    names = [name for name in (*found.metrics, *found.op_metrics) if not view.metrics or name in view.metrics]
    own = {name: found.own(name).tolist() for name in names if name != "calls"}
    total = {name: found.total(name).tolist() for name in names if name != "calls"}
    spreads = {name: found.spreads(name) for name in total}
    threads = found.work.events.threads
    for row, path in enumerate(found.paths):
        calls = int(found.calls[row])
        of_self = {name: values[row] for name, values in own.items() if values[row]}
        of_total = {name: values[row] for name, values in total.items() if values[row]}
        if not view.shows(path) or not (calls or of_total or of_self):
            continue
        entry: dict[str, Any] = {
            "path": list(path),
            "calls": calls,
            "self": of_self,
            "total": of_total,
            "per_call": {name: _spread(spreads[name][row]) for name in of_total} if calls else {},
            "via_autograd": _chosen(found.via_autograd.get(row, {}), view),
            "threads": [
                {"tid": threads[thread].tid, "name": threads[thread].name, "self": chosen}
                for thread, counts in found.threads.get(row, {}).items()
                if (chosen := _chosen(counts, view))
            ],
            "contributors": [
                {"by": by, "name": name, **chosen}
                for by in BY
                for name, counts in found.contributors(row, by).items()
                if (chosen := _chosen(counts, view))
            ],
        }
        if view.per is Per.STEP and found.step_count:
            entry["per_step"] = {name: _step_spread(found, name, row) for name in of_total}
        if found.replayed[row]:
            entry["replayed"] = True
        if row in found.via_graph:
            entry["via_graph"] = _chosen(found.via_graph[row], view)
        if found.ambiguous[row]:
            entry["ambiguous"] = True
        if row in found.raw_names:
            entry["raw_names"] = found.raw_names[row]
        yield entry


def _spread(spread: Spread) -> dict[str, Any]:
    return {"min": spread.least, "median": _plain(spread.median), "max": spread.most}


def _step_spread(found: TraceSummary, metric: str, row: int) -> dict[str, Any]:
    samples = sorted(found.step_samples(metric, row).tolist())
    middle = (samples[(len(samples) - 1) // 2] + samples[len(samples) // 2]) / 2
    return {"min": samples[0], "median": _plain(middle), "max": samples[-1]}


def _plain(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _side(side: Side) -> dict[str, Any]:
    return {"label": side.label, **_trace(side.summary), "health": _health(side.summary.health)}


def _diff_row(found: TraceDiff, row: DiffRow, view: View) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "path": list(row.path),
        "status": row.status,
        "metrics": {
            name: _comparison(comparison)
            for name, comparison in row.metrics.items()
            if not view.metrics or name in view.metrics
        },
        "contributors": [
            {
                "by": one.by,
                "name": one.name,
                "metric": name,
                "baseline": _plain(float(one.baseline)),
                "variants": [_plain(float(value)) for value in one.variants],
            }
            for name in row.changed
            if not view.metrics or name in view.metrics
            for by in BY
            for one in found.contributions(row, name, by)
            if one.changed
        ],
    }
    if any(row.elsewhere):
        entry["matched_by_name"] = [list(path) if path else None for path in row.elsewhere]
    if any(replayed := words.replayed(found, row)):
        entry["replayed"] = replayed
    return entry


def _comparison(comparison: Comparison) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "per": comparison.per,
        "baseline": _cell(comparison.baseline),
        "variants": [_cell(cell) for cell in comparison.variants],
        "verdict": list(comparison.verdicts),
    }
    if any(comparison.ratios):
        entry["ratio"] = [
            {"median": one.value, "low": one.low, "high": one.high} if one else None for one in comparison.ratios
        ]
    return entry


def _cell(cell: Cell | None) -> dict[str, Any] | None:
    if cell is None:
        return None
    return {
        "sum": cell.sum,
        "calls": cell.count,
        "min": cell.least,
        "median": _plain(cell.median),
        "max": cell.most,
    }
