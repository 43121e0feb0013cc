"""What rules found, as the page shows it: each finding once, with every side that has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tracetool.render import findings, words
from tracetool.render.report.figures import colour_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tracetool.findings.finding import Finding
    from tracetool.findings.linting import Lint

MOST = 60
_NAME = 160


def faults(lints: Sequence[Lint]) -> dict[str, Any]:
    """Findings of all sides, the dearest first, and what was left out of them."""
    cards: dict[tuple[str, tuple[str, ...], str], dict[str, Any]] = {}
    for number, lint in enumerate(lints):
        for finding in lint.findings:
            key = (finding.rule.id, tuple(findings.where(finding).split("/")), _kind(finding))
            card = cards.setdefault(key, _card(finding, len(lints)))
            # Two of one kind in one range of one side are told below each other.
            card["sides"][number]["told"].append(_told(lint, finding))
            card["hows"].setdefault(words.clean(finding.cost.how))
            card["weight"] = max(card["weight"], finding.cost.ns or 0)
    ranked = sorted(cards.values(), key=lambda card: -card["weight"])
    return {
        "cards": ranked[:MOST],
        "left": max(0, len(ranked) - MOST),
        "suppressed": [
            {
                "colour": colour_of(number),
                "what": f"{finding.rule.id} {finding.rule.name} in {findings.where(finding)}",
                "cost": findings.cost(lint, finding),
                "reason": words.clean(known.reason),
            }
            for number, lint in enumerate(lints)
            for finding, known in lint.suppressed
        ],
        "unjudged": list(dict.fromkeys(text for lint in lints for text in findings.unjudged(lint))),
        "verdict": findings.verdict(lints),
    }


def _kind(finding: Finding) -> str:
    """What a finding has in common with that of another side: its mend, and the op that makes most of it."""
    return f"{finding.mend.of} {finding.culprits[0].op if finding.culprits else ''}"


def _card(finding: Finding, sides: int) -> dict[str, Any]:
    return {
        "rule": finding.rule.id,
        "name": finding.rule.name,
        "where": words.shorten(findings.where(finding), _NAME),
        "why": finding.rule.why,
        "mend": finding.mend.text,
        "code": finding.mend.code,
        "weight": 0,
        "hows": {},
        "sides": [{"colour": colour_of(number), "told": []} for number in range(sides)],
    }


def _told(lint: Lint, finding: Finding) -> dict[str, str]:
    return {
        "cost": findings.cost(lint, finding),
        "what": words.shorten(findings.what(finding), 2 * _NAME),
        "by": words.shorten(findings.made_by(lint, finding), _NAME),
    }
