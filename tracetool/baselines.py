"""From files to what a trace is held against, and the whole of a check: for the command line and for pytest alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetool import budgets as budgeting
from tracetool import checking, snapshots
from tracetool.checking import Check, Result, TraceBaseline
from tracetool.chrome import read
from tracetool.errors import BudgetError, OutputError
from tracetool.output import is_stream, write
from tracetool.project import MOST_TEXT, nearest_pyproject, text_of
from tracetool.snapshots import Section, Snapshot, SnapshotBaseline
from tracetool.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tracetool.budgets import Budget
    from tracetool.checking import Baseline, Outcome
    from tracetool.summary import TraceSummary

_MARK = snapshots.HEADER.rpartition(" ")[0].encode()
_TRACES_BEGIN_WITH = (b"{", b"[", b"\x1f\x8b")


def read_budgets(path: Path) -> list[Budget]:
    """The budgets of a TOML file.

    Raises:
        BudgetError: it cannot be read, is no TOML, or something in it is no budget.
    """
    found = budgeting.parse_toml(text_of(path, BudgetError), str(path))
    if not found:
        raise BudgetError(f"{path} has no budgets: write [[tool.tracetool.budgets]] tables, or name another file")
    return found


def nearest_budgets(folder: Path) -> list[Budget]:
    """The budgets of the nearest pyproject.toml, upwards from a folder; none where that has none.

    Raises:
        BudgetError: it cannot be read, or something in it is no budget.
    """
    project = nearest_pyproject(folder)
    return [] if project is None else budgeting.parse_toml(text_of(project, BudgetError), str(project))


def read_snapshot(path: Path) -> Snapshot:
    """A snapshot.

    Raises:
        BudgetError: it cannot be read, or is none.
    """
    return snapshots.parse(text_of(path, BudgetError), str(path))


def write_snapshot(snapshot: Snapshot, path: Path | None) -> None:
    """Write a snapshot in the place of what was there; None for standard output.

    Raises:
        OutputError: the file cannot be written, or could not be read again.
    """
    text = snapshots.to_text(snapshot)
    if len(text) > MOST_TEXT:
        raise OutputError(
            f"the snapshot has more than {MOST_TEXT >> 20} MiB, and would not be read: --fold counts ranges together"
        )
    write(text, path)


class Reference:
    """What a trace is compared with: a snapshot, or another trace.

    Args:
        path: the file.

    Raises:
        BudgetError: it cannot be read, or is neither.
        TraceReadError: it is a trace that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trace: TraceSummary | None = None
        self.snapshot = Snapshot({})
        if is_stream(path):
            raise BudgetError(f"{path} is a pipe or a device, which cannot be looked into and then read; name a file")
        try:
            with path.open("rb") as file:
                head = file.read(64)
        except OSError as error:
            raise BudgetError(f"{path} cannot be read: {error.strerror}") from None
        if not head.startswith(_MARK) and head.lstrip().startswith(_TRACES_BEGIN_WITH):
            self.trace = summarize(read(str(path)))
            if (bad := self.trace.health.error) is not None:
                raise BudgetError(f"the baseline {path} is not healthy: {bad.message}")
            self.snapshot = Snapshot({}).with_section(snapshots.take(self.trace))
        else:
            self.snapshot = read_snapshot(path)

    def baseline(self, section: Section) -> Baseline:
        """The baseline of budgets, with what there is besides counts."""
        return SnapshotBaseline(section, str(self.path)) if self.trace is None else TraceBaseline(self.trace)


def judge(
    summary: TraceSummary, budgets: Sequence[Budget], reference: Reference | None = None, *, any_env: bool = False
) -> Check:
    """Hold a trace against budgets and against what it is compared with.

    Every exact count must be what it is there, unless budgets say how far from `baseline` it may be: then the
    comparison is theirs alone.

    Raises:
        BudgetError: a budget fits no range, an ambiguous one, or nothing that there is.
    """
    findings = tuple(checking.unknown_memory(summary, budgets))
    if reference is None:
        return Check(summary, tuple(checking.check(summary, budgets)), findings)
    source = str(reference.path)
    environment = snapshots.environment_of(summary)
    section = snapshots.comparable_section(reference.snapshot, environment, source, any_env=any_env)
    relative = any(budget.bound.relative for budget in budgets)
    if isinstance(section, str):
        absolute = [budget for budget in budgets if not budget.bound.relative]
        outcomes = tuple(checking.check(summary, absolute))
        return Check(summary, outcomes, findings, baseline=source, not_comparable=section)
    found = checking.check(summary, budgets, reference.baseline(section))
    found += [] if relative else snapshots.compare(summary, section, source)
    return Check(summary, tuple(found), findings, baseline=source)


def accept(summary: TraceSummary, budgets: Sequence[Budget], path: Path) -> tuple[Check, Snapshot]:
    """Make a trace's counts the new ones of its environment.

    Args:
        summary: the trace's.
        budgets: are checked all the same, relative ones against the new counts.
        path: the snapshot, which need not exist yet.

    Returns:
        What came of it, and the snapshot that is to be written.

    Raises:
        BudgetError: the file is there and is no snapshot; or as `judge` does.
    """
    before = read_snapshot(path) if path.exists() else Snapshot({})
    section = snapshots.take(summary)
    old = before.sections.get(section.environment) or Section(section.environment, section.records, {})
    accepted = tuple(one for one in snapshots.compare(summary, old, str(path)) if _differs(one))
    outcomes = checking.check(summary, budgets, SnapshotBaseline(section, str(path)))
    findings = tuple(checking.unknown_memory(summary, budgets))
    told = Check(summary, tuple(outcomes), findings, baseline=str(path), accepted=accepted)
    return told, before.with_section(section)


def _differs(outcome: Outcome) -> bool:
    return outcome.result is not Result.HELD
