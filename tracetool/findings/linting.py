"""All rules over some traces: what they find, ranked by cost, less what is suppressed or too cheap to tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tracetool.findings.finding import Unjudged
from tracetool.findings.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tracetool.findings.finding import Finding, Rule
    from tracetool.findings.settings import Suppression, Threshold
    from tracetool.summary import TraceSummary


_NO_DEVICE = "the trace has no device work"


@dataclass(frozen=True, slots=True)
class Lint:
    """All that was found in one trace.

    Attributes:
        summary: of the trace.
        unit: what costs are of: `step` or `trace`.
        step_ns: how long one takes, the median.
        busy_ns: how long a device works in it.
        least_ns: what a finding costs at least to be told.
        findings: the dearest first; those without an estimate last.
        suppressed: findings that a setting says are known, each with the setting.
        cheap: how many cost less than the threshold.
        unjudged: rules that cannot judge from this trace.
    """

    summary: TraceSummary
    unit: str
    step_ns: float
    busy_ns: float
    least_ns: float
    findings: tuple[Finding, ...]
    suppressed: tuple[tuple[Finding, Suppression], ...]
    cheap: int
    unjudged: tuple[Unjudged, ...]


def lint(
    summaries: Sequence[TraceSummary],
    rules: Iterable[Rule],
    threshold: Threshold,
    suppressions: Sequence[Suppression] = (),
) -> list[Lint]:
    """Hold traces against rules.

    Args:
        summaries: of the traces.
        rules: what is looked for.
        threshold: what costs less is not told.
        suppressions: what is known, and why.
    """
    subjects = [Subject(summary) for summary in summaries]
    rules = list(rules)
    found: dict[int, list[Finding]] = {number: [] for number in range(len(subjects))}
    unjudged: dict[int, list[Unjudged]] = {number: [] for number in range(len(subjects))}
    for rule in rules:
        if rule.find is not None:
            for number, subject in enumerate(subjects):
                told = _NO_DEVICE if rule.needs_device and not subject.has_device_work else rule.find(subject)
                if isinstance(told, str):
                    unjudged[number].append(Unjudged(rule, told))
                else:
                    found[number] += (replace(one, source=subject.summary.source) for one in told)
        if rule.find_among is not None and len(subjects) > 1:
            told = rule.find_among(subjects)
            if isinstance(told, str):
                unjudged[0].append(Unjudged(rule, told))
            else:
                sources = [subject.summary.source for subject in subjects]
                for one in told:
                    found[sources.index(one.source)].append(one)
    return [
        _judged(subject, found[number], tuple(unjudged[number]), threshold, suppressions)
        for number, subject in enumerate(subjects)
    ]


def _judged(
    subject: Subject,
    findings: list[Finding],
    unjudged: tuple[Unjudged, ...],
    threshold: Threshold,
    suppressions: Sequence[Suppression],
) -> Lint:
    least = threshold.ns_of(subject.step_ns)
    dear = [one for one in findings if _most(one) is None or (_most(one) or 0) >= least]
    dear.sort(key=lambda one: (one.cost.ns is None, -(one.cost.ns or 0), one.rule.id, one.path))
    dear = _with_cover(dear)
    told, suppressed = [], []
    for one in dear:
        why = next((known for known in suppressions if known.fits(one)), None)
        if why is None:
            told.append(one)
        else:
            suppressed.append((one, why))
    return Lint(
        subject.summary,
        subject.unit,
        subject.step_ns,
        subject.busy_ns,
        least,
        tuple(told),
        tuple(suppressed),
        len(findings) - len(dear),
        unjudged,
    )


def _most(finding: Finding) -> float | None:
    return finding.cost.at_most if finding.cost.ns is None else finding.cost.ns


def _with_cover(findings: list[Finding]) -> list[Finding]:
    """Mark those whose work is that of a dearer one of the same range, so that nobody adds their costs."""
    marked: list[Finding] = []
    for one in findings:
        around = next(
            (
                other.rule.id
                for other in marked
                if other.path == one.path and len(one.work) and np.isin(one.work, other.work).all()
            ),
            "",
        )
        marked.append(replace(one, covered_by=around))
    return marked
