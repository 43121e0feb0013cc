"""Settings of `lint`: which rules, from what cost on, and what is known already.

[tool.tracetool.lint]
ignore = ["TT09"]
min_cost = "1 %"
suppress = [{ rule = "TT05", range = "decode_step/model_forward", reason = "graphs come with the next release" }]
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tracetool.amounts import NANOSECONDS
from tracetool.errors import SettingError, nearest
from tracetool.findings.registry import rule_of
from tracetool.folding import STEP
from tracetool.globs import PathGlob
from tracetool.project import nearest_pyproject, ours, parsed, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from tracetool.findings.finding import Finding

_AMOUNT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(%|ns|us|ms|s)\s*")
_KNOWN = ("select", "ignore", "min_cost", "suppress")
_OF_A_SUPPRESSION = ("rule", "range", "reason")


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least cost that is told.

    Attributes:
        ns: of a step.
        share: of the time of a step, which counts where `ns` is None.
    """

    ns: float | None = None
    share: float = 0.005

    def ns_of(self, step_ns: float) -> float:
        """In a trace with steps of a length."""
        return self.share * step_ns if self.ns is None else self.ns


def parse_threshold(text: str) -> Threshold:
    """Read `1 %` (of a step) or `50 us`.

    Raises:
        SettingError: it is neither.
    """
    match = _AMOUNT.fullmatch(text)
    if match is None:
        raise SettingError(f"'{text}' is no cost: write a share of a step, as in '1 %', or a time, as in '50 us'")
    amount, unit = float(match[1]), match[2]
    return Threshold(share=amount / 100) if unit == "%" else Threshold(ns=amount * NANOSECONDS[unit])


@dataclass(frozen=True, slots=True)
class Suppression:
    """A finding that is known.

    Attributes:
        rule: its id.
        pattern: of the range, as `PathGlob` has it; empty for all.
        reason: why it stays.
    """

    rule: str
    pattern: str
    reason: str

    def fits(self, finding: Finding) -> bool:
        """Whether a finding is this one."""
        if finding.rule.id != self.rule:
            return False
        if not self.pattern:
            return True
        glob = PathGlob(self.pattern)
        bare = tuple(name for name in finding.path if name != STEP)
        return glob.matches(finding.path) or bool(bare and glob.matches(bare))


@dataclass(frozen=True, slots=True)
class LintSettings:
    """What `[tool.tracetool.lint]` says.

    Attributes:
        select: rules; empty for all.
        ignore: rules that are left out.
        threshold: the least cost that is told.
        suppressions: what is known.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    threshold: Threshold = Threshold()
    suppressions: tuple[Suppression, ...] = ()


def nearest_settings(folder: Path) -> LintSettings:
    """What the nearest pyproject.toml says, upwards from a folder; the defaults where there is none.

    Raises:
        SettingError: it cannot be read, or something in its table is no setting.
    """
    project = nearest_pyproject(folder)
    return LintSettings() if project is None else parse_toml(text_of(project), str(project))


def parse_toml(text: str, source: str) -> LintSettings:
    """The settings in a pyproject.toml.

    Args:
        text: its content.
        source: what messages call it.

    Raises:
        SettingError: it is no TOML, or something in its table is no setting.
    """
    table = ours(parsed(text, source)).get("lint", {})
    where = f"{source}: [tool.tracetool.lint]"
    if not isinstance(table, dict):
        raise SettingError(f"{where} is a table of {', '.join(_KNOWN)}")
    unknown = next((key for key in table if key not in _KNOWN), None)
    if unknown is not None:
        raise SettingError(f"{where} has no setting {unknown!r}: {nearest(unknown, _KNOWN)}")
    settings = LintSettings(_rules(table, "select", where), _rules(table, "ignore", where))
    try:
        if "min_cost" in table:
            settings = replace(settings, threshold=parse_threshold(str(table["min_cost"])))
    except SettingError as error:
        raise SettingError(f"{where}: min_cost: {error}") from None
    entries = table.get("suppress", [])
    if not isinstance(entries, list):
        raise SettingError(f"{where}: suppress is a list of tables with a rule, a range and a reason")
    return replace(settings, suppressions=tuple(_suppression(entry, where) for entry in entries))


def _rules(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    names = table.get(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingError(f"{where}: {key} is a list of rules, as in ['TT05']")
    try:
        return tuple(rule_of(name).id for name in names)
    except SettingError as error:
        raise SettingError(f"{where}: {key}: {error}") from None


def _suppression(entry: object, where: str) -> Suppression:
    if not isinstance(entry, Mapping) or not all(isinstance(value, str) for value in entry.values()):
        raise SettingError(f"{where}: each entry of suppress is a table of texts: rule, range and reason")
    unknown = next((key for key in entry if key not in _OF_A_SUPPRESSION), None)
    if unknown is not None:
        raise SettingError(f"{where}: suppress has no setting {unknown!r}: {nearest(str(unknown), _OF_A_SUPPRESSION)}")
    if "rule" not in entry:
        raise SettingError(f"{where}: an entry of suppress names its rule, as in rule = 'TT05'")
    if not entry.get("reason", "").strip():
        raise SettingError(f"{where}: an entry of suppress says why, in reason = '...'")
    try:
        if "range" in entry:
            PathGlob(entry["range"])
        return Suppression(rule_of(entry["rule"]).id, entry.get("range", ""), entry["reason"])
    except SettingError as error:
        raise SettingError(f"{where}: suppress: {error}") from None
