"""What the JSON renderers write is what `tracetool/schemas` says."""

import copy
import itertools
import json
import re
from importlib import resources

import jsonschema
import pytest

import tracetool
from tracetool.metrics import METRICS

from .small import Small, healthy
from .traces import GRAPH, PAGEABLE, PINNED, ROOT, invoke

KINDS = ("summary", "diff", "compare", "health", "metrics", "check", "ranks", "ranks_diff", "lint", "rules")
OPS = 'op_calls["aten::copy_"]'


def schema(kind):
    return json.loads(resources.files(tracetool).joinpath(f"schemas/{kind}-1.json").read_text())


def validate(kind, value):
    jsonschema.Draft202012Validator(schema(kind)).validate(value)


def output(*arguments):
    done = invoke(*arguments, "--format", "json")
    assert done.exit_code in (0, 1, 2), done.output
    return json.loads(done.stdout)


def subschemas(node):
    if isinstance(node, dict):
        for key in ("properties", "$defs", "patternProperties"):
            for name, child in node.get(key, {}).items():
                yield name, child
                yield from subschemas(child)
        for key in ("items", "additionalProperties"):
            if isinstance(node.get(key), dict):
                yield key, node[key]
                yield from subschemas(node[key])


@pytest.mark.parametrize("kind", KINDS)
def test_each_schema_is_valid_closed_and_described(kind):
    found = schema(kind)
    jsonschema.Draft202012Validator.check_schema(found)
    assert found["$id"] == f"tracetool.{kind}/1"
    assert found["properties"]["schema"]["const"] == found["$id"]
    parts = [(kind, found), *subschemas(found)]
    for name, part in parts:
        if part.get("type") == "object":
            assert "additionalProperties" in part, name
        for child, field in part.get("properties", {}).items():
            described = field.get("description") or found["$defs"][field["$ref"].split("/")[-1]].get("description")
            assert described, (name, child)


def test_the_metric_names_of_the_schemas_are_the_registry():
    for kind in ("summary", "diff"):
        names = schema(kind)["$defs"]["metric"]["anyOf"][0]["enum"]
        assert set(names) == set(METRICS)
    contributor = set(schema("summary")["$defs"]["contributor"]["properties"]) - {"by", "name"}
    assert contributor == set(METRICS) - {"calls"}
    listed = schema("metrics")["properties"]["metrics"]["items"]["properties"]["name"]["enum"]
    assert listed == [*METRICS, 'op_calls["NAME"]']


@pytest.mark.parametrize("trace", [PAGEABLE, PINNED, GRAPH])
@pytest.mark.parametrize(
    "options", [(), ("--per", "step"), ("--metric", OPS), ("--ranges-as", "op:*"), ("--depth", "1")]
)
def test_summaries_of_real_traces(trace, options):
    found = output("summary", trace, *options)
    validate("summary", found)
    assert found["ranges"]


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations([PAGEABLE, PINNED, GRAPH], 2)))
def test_diffs_of_real_traces(one, other):
    validate("diff", output("diff", one, other))


@pytest.mark.parametrize("options", [("--self",), ("--per", "trace"), ("--per", "step"), ("--ranges-as", "thread")])
def test_diffs_of_three_real_traces(options):
    found = output("diff", PAGEABLE, PINNED, GRAPH, *options)
    validate("diff", found)
    for row in found["ranges"]:
        for comparison in row["metrics"].values():
            assert len(comparison["variants"]) == len(comparison["verdict"]) == 2


def test_health_and_metrics():
    validate("health", output("health", PAGEABLE))
    validate("metrics", output("metrics"))


def test_findings_and_rules(tmp_path, monkeypatch):
    validate("rules", output("rules"))
    found = output("lint", PAGEABLE, PINNED, GRAPH)
    validate("lint", found)
    assert all(one["findings"] for one in found["traces"])
    (tmp_path / "pyproject.toml").write_text(
        "[tool.tracetool.lint]\nsuppress = [{ rule = 'TT05', reason = 'graphs come later' }]\n"
    )
    monkeypatch.chdir(tmp_path)
    found = output("lint", PAGEABLE)
    validate("lint", found)
    [known] = found["traces"][0]["suppressed"]
    assert (known["rule"], known["reason"]) == ("TT05", "graphs come later")
    for name, path in oddities(tmp_path).items():
        found = output("lint", path)
        validate("lint", found)
        assert bool(found["traces"][0]["unjudged"]), name


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.update(traces=[]),
        lambda v: v["traces"][0].update(unit="call"),
        lambda v: v["traces"][0]["findings"][0].update(rule="X1"),
        lambda v: v["traces"][0]["findings"][0].pop("mend"),
        lambda v: v["traces"][0]["findings"][0].update(reason="none"),
        lambda v: v["traces"][0]["findings"][0]["counts"].update(kernel_launchs=1),
        lambda v: v["traces"][0]["findings"][0]["cost"].update(ns="1 us"),
        lambda v: v["traces"][0]["findings"][0].update(same_work_as="above"),
    ],
)
def test_the_lint_schema_refuses_what_is_wrong(change):
    value = output("lint", PAGEABLE)
    change(value)
    with pytest.raises(jsonschema.ValidationError):
        validate("lint", value)


def oddities(tmp_path):
    cpu, sick, odd, empty, slow = Small(gpu=None), Small(), Small(distributedInfo={"rank": 0}), Small(), Small()
    with cpu.range("f"), cpu.op("aten::add"):
        cpu.now += 1
    with sick.range("f"):
        sick.lost_launch()
    odd.orphan()
    with odd.range('CompiledFxGraph f0123456789abcdefghijkl "|\n'), odd.op('a"]b\n'):
        odd.kernel("k|\\")
        odd.graph("g", "g")
    late = dict(odd.events[1], name="overlapping", ts=odd.events[1]["ts"] + 2, dur=100)
    odd.events.append(late)
    for _ in range(8):
        with slow.range("f"):
            slow.sync()
    traces = {"cpu": cpu, "sick": sick, "odd": odd, "empty": empty, "slow": slow, "healthy": healthy()}
    return {name: trace.write(tmp_path / f"{name}.json") for name, trace in traces.items()}


def test_hand_made_traces(tmp_path):
    paths = oddities(tmp_path)
    for path in paths.values():
        validate("summary", output("summary", path))
        validate("health", output("health", path))
    for one, other in itertools.permutations(paths.values(), 2):
        validate("diff", output("diff", one, other))
    odd = output("summary", paths["odd"])
    assert any(row.get("ambiguous") for row in odd["ranges"])
    assert any("raw_names" in row for row in odd["ranges"])
    slow = output("diff", paths["slow"], paths["slow"])
    assert any("ratio" in one for row in slow["ranges"] for one in row["metrics"].values())


def wrong():
    """Ways to break a good output, each by one change."""
    yield lambda v: v.update(schema="tracetool.summary/2")
    yield lambda v: v.update(more=1)
    yield lambda v: v.pop("totals")
    yield lambda v: v["totals"].update(kernel_launchs=1)
    yield lambda v: v["totals"].update(kernels="1")
    yield lambda v: v["totals"].update({"op_calls[x]": 1})
    yield lambda v: v["health"].update(verdict="fine")
    yield lambda v: v["ranges"][0].update(calls=-1)
    yield lambda v: v["ranges"][0].update(path=[])
    yield lambda v: v["ranges"][0]["per_call"].update(kernels={"min": 1, "max": 1})
    yield lambda v: v["ranges"][0]["contributors"].append({"by": "thread", "name": "x"})
    yield lambda v: v["ranges"][0]["contributors"].append({"by": "op", "name": "x", "nonsense": 1})


@pytest.mark.parametrize("number", range(12))
def test_the_summary_schema_refuses_what_is_wrong(number):
    value = output("summary", PINNED)
    broken = copy.deepcopy(value)
    list(wrong())[number](broken)
    assert broken != value
    with pytest.raises(jsonschema.ValidationError):
        validate("summary", broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["ranges"][0].update(status="moved"),
        lambda v: v["ranges"][0]["metrics"]["syncs"].update(per="second"),
        lambda v: v["ranges"][0]["metrics"]["syncs"].update(verdict=["better"]),
        lambda v: v["ranges"][0]["metrics"]["syncs"].pop("baseline"),
        lambda v: v["ranges"][0]["metrics"].update(nonsense=v["ranges"][0]["metrics"]["syncs"]),
        lambda v: v.update(scope="all"),
        lambda v: v.update(variants=[]),
    ],
)
def test_the_diff_schema_refuses_what_is_wrong(change):
    value = output("diff", PAGEABLE, PINNED)
    change(value)
    with pytest.raises(jsonschema.ValidationError):
        validate("diff", value)


def test_no_other_schema_names_are_written():
    text = "".join((ROOT / "tracetool" / "render" / name).read_text() for name in ("json.py", "comparison.py"))
    assert set(re.findall(r'"schema": "tracetool\.(\w+)/1"', text)) == set(KINDS)
