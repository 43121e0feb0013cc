"""Rules on random traces as tangled as real ones, and worse: they say what they say in order, and never fail."""

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings

import tracetool
from tests.tracetool.random_traces import traces
from tests.tracetool.traces_by_hand import read
from tracetool.findings.linting import lint
from tracetool.findings.registry import RULES
from tracetool.findings.settings import Threshold
from tracetool.render import github, markdown, terminal
from tracetool.render import json as as_json
from tracetool.render.view import View


def judge(events):
    summary = tracetool.summarize(read({"traceEvents": events}))
    told = lint([summary, summary], RULES.values(), Threshold(ns=0))
    for one in told:
        costs = [finding.cost.ns for finding in one.findings]
        known = [cost for cost in costs if cost is not None]
        assert costs[: len(known)] == sorted(known, reverse=True)
        assert all(math.isfinite(cost) and cost >= 0 for cost in known)
        for finding in one.findings:
            assert finding.what
            assert all(value >= 0 for value in finding.counts.values())
            assert finding.path in summary.paths
    view = View()
    assert json.loads(as_json.lint(told, view))["verdict"]
    assert terminal.lint(told, view, width=80, colour=False)
    assert markdown.lint(told, view)
    assert github.lint(told, view)


@given(traces())
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
def test_they_never_fail(events):
    judge(events)


@pytest.mark.slow
@given(traces())
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
def test_they_never_fail_thousands_of_times(events):
    judge(events)
