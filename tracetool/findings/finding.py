"""What a rule is, and what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tracetool.events import IntArray
    from tracetool.findings.subject import Subject
    from tracetool.summary import Path


@dataclass(frozen=True, slots=True)
class Mend:
    """What would mend a finding.

    Attributes:
        of: which of a rule's findings it mends; empty for all.
        text: two sentences at most.
        code: a few lines that show it.
    """

    of: str
    text: str
    code: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a finding costs, as the trace tells it.

    Attributes:
        ns: of a step (without steps: of the trace) that could be saved, in profiled time; None where the trace does not
            tell.
        how: how it was estimated, or why it cannot be.
        at_most: where it cannot be, no more than this, ns; None where not even that is known.
    """

    ns: float | None
    how: str
    at_most: float | None = None


@dataclass(frozen=True, slots=True)
class Culprit:
    """What makes the work of a finding.

    Attributes:
        op: the op, or the call where no op is around it.
        place: the line, else the Python function; empty where the capture has neither.
        count: how often a step.
    """

    op: str
    place: str
    count: float


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        rule: by whom.
        path: of the range; empty for the whole trace.
        what: one sentence with the counts.
        counts: metrics of the finding's work, a step.
        calls: how often the range ran a step.
        culprits: what makes the work, the most frequent first.
        cost: of a step.
        mend: what would mend it.
        work: rows of the summary's work that are the finding, by which findings about the same work are recognised.
        source: the trace.
        covered_by: the id of a dearer rule that found the same work in the same range; empty for none.
    """

    rule: Rule
    path: Path
    what: str
    counts: dict[str, float]
    calls: float
    culprits: tuple[Culprit, ...]
    cost: Cost
    mend: Mend
    work: IntArray = field(default_factory=lambda: np.empty(0, dtype=np.int64), repr=False, compare=False)
    source: str = ""
    covered_by: str = ""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A rule that cannot judge from a trace, and why, in words."""

    rule: Rule
    why: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        id: `TT01`; stays when the name changes.
        name: in the field's terms.
        looks_for: what it looks for, one sentence.
        why: why that costs, one sentence.
        estimate: how the cost is estimated.
        mends: what mends its findings.
        find: gives its findings in one trace; the words of why it cannot judge, where it cannot.
        find_among: the same in several traces together, for a rule that compares them.
        needs_device: whether it judges from device work, and can say nothing of a trace without any.
    """

    id: str
    name: str
    looks_for: str
    why: str
    estimate: str
    mends: tuple[Mend, ...]
    find: Callable[[Subject], Iterable[Finding] | str] | None = None
    find_among: Callable[[list[Subject]], Iterable[Finding] | str] | None = None
    needs_device: bool = True

    @property
    def anchor(self) -> str:
        """Where it is documented."""
        return f"docs/rules.md#{self.id.lower()}-{self.name}"
