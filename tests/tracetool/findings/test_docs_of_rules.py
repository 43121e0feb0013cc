"""`docs/rules.md` says what the rules say."""

import ast
import re

import pytest

from tests.tracetool.findings.test_pairs import FOLDER, PAIRS, found, saved
from tests.tracetool.traces import ROOT, invoke
from tracetool.amounts import number
from tracetool.findings.registry import RULES
from tracetool.findings.settings import parse_toml
from tracetool.metrics import Unit

TEXT = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")


def test_it_ends_with_all_rules_as_the_command_prints_them():
    assert TEXT.endswith(invoke("rules", "--format", "markdown").stdout)


def test_findings_point_to_headings_that_are_there():
    headings = [heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.+)$", TEXT, re.MULTILINE)]
    for rule in RULES.values():
        assert rule.anchor == f"docs/rules.md#{headings[headings.index(rule.anchor.partition('#')[2])]}"


@pytest.mark.parametrize("name", PAIRS)
def test_what_was_estimated_and_saved(name):
    fault, mend = (FOLDER / f"{name}.{which}.json.gz" for which in ("fault", "mend"))
    rule = PAIRS[name]
    [one] = found(fault, rule)
    real = saved(fault, mend, once=rule == "TT04")
    told = f"{number(one.cost.ns, Unit.NS)} | {number(real, Unit.NS)} | {one.cost.ns / real:.2f}"
    assert f"| {rule} | `{name}` | {told} |\n" in TEXT


def test_its_settings_are_settings():
    [block] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    told = parse_toml(block, "docs/rules.md")
    assert (told.ignore, told.threshold.share, len(told.suppressions)) == (("TT09",), 0.01, 1)


def test_rules_are_told_in_a_few_words():
    for rule in RULES.values():
        assert re.fullmatch(r"TT\d\d", rule.id)
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", rule.name)
        for mend in rule.mends:
            assert 1 <= len(mend.code.splitlines()) <= 5, (rule.id, mend.of)
            ast.parse(mend.code)
            assert 1 <= len(re.findall(r"\.(?: [A-Z]|$)", mend.text)) <= 2, (rule.id, mend.of)
