"""The rules that there are, by their ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracetool.errors import SettingError, nearest
from tracetool.findings.rules import (
    compile_in_step,
    device_malloc,
    graph_misuse,
    input_wait,
    launch_bound,
    layout_churn,
    pageable_copy,
    ranks_differ,
    serial_copy,
    small_copies,
    sync_in_step,
    unfused_elementwise,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tracetool.findings.finding import Rule

RULES: dict[str, Rule] = {
    module.RULE.id: module.RULE
    for module in (
        pageable_copy,
        small_copies,
        sync_in_step,
        compile_in_step,
        launch_bound,
        unfused_elementwise,
        device_malloc,
        layout_churn,
        serial_copy,
        graph_misuse,
        input_wait,
        ranks_differ,
    )
}


def rule_of(text: str) -> Rule:
    """A rule by its id or its name.

    Raises:
        SettingError: there is none.
    """
    names = {name.lower(): rule for rule in RULES.values() for name in (rule.id, rule.name)}
    if (found := names.get(text.lower())) is None:
        raise SettingError(
            f"there is no rule '{text}': {nearest(text, [*RULES, *(one.name for one in RULES.values())])}"
        )
    return found


def chosen(select: Iterable[str], ignore: Iterable[str]) -> list[Rule]:
    """The rules that are selected (all, where none is named) and not ignored, in the order of their ids.

    Raises:
        SettingError: one of them is no rule.
    """
    wanted = {rule_of(text).id for text in select} or set(RULES)
    left_out = {rule_of(text).id for text in ignore}
    return [rule for rule in RULES.values() if rule.id in wanted - left_out]
