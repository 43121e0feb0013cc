"""HTA's breakdowns, as they come from HTA itself where it is installed."""

import json
import shutil

import jsonschema
import pytest

import tracetool
from tracetool.breakdown import break_down, installed
from tracetool.differ import lay_out

from .test_schemas import schema
from .traces import GRAPH, PAGEABLE, PINNED, invoke
from .traces_by_hand import launch, op, rng

with_hta = pytest.mark.skipif(
    not installed(), reason="HTA is not installed: pip install --no-deps traceinsight==0.6.1, and the extra hta"
)


def broken_down(*paths):
    return break_down(lay_out([tracetool.summarize(tracetool.read(str(path))) for path in paths]).sides)


def table_of(found, title):
    [table] = [one for one in found.tables if one.title.startswith(title)]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


@with_hta
def test_all_of_one_trace():
    [found] = broken_down(PAGEABLE)
    titles = [table.title.split(" (")[0].split(":")[0] for table in found.tables]
    assert titles == [
        "Temporal breakdown of the GPU",
        "Idle reasons by stream",
        "Kernel breakdown",
        "Queue length",
        "Critical path of the first step",
    ]
    assert found.missing == ("'train_pageable' has nothing for communication overlap.",)
    [shares] = table_of(found, "Temporal")
    assert sum(float(shares[name]) for name in ("idle %", "compute %", "copies and memsets %")) == pytest.approx(
        100, abs=0.1
    )


@with_hta
def test_nanoseconds_and_the_last_step_are_kept():
    [found] = broken_down(PAGEABLE)
    summary = tracetool.summarize(tracetool.read(PAGEABLE))
    [shares] = table_of(found, "Temporal")
    busy = float(shares["compute us"]) + float(shares["copies and memsets us"])
    assert busy * 1000 == pytest.approx(summary.totals["gpu_busy_ns"], abs=20)


@with_hta
def test_its_op_diff_is_a_second_opinion_that_agrees():
    *_, found = broken_down(PAGEABLE, PINNED)
    assert found.label == "train_pinned vs train_pageable"
    assert found.missing[0] == "Of 95 names that both count, 95 have the same counts in both."
    rows = {row["op or kernel"]: row for row in table_of(found, "HTA's op diff")}
    assert rows["aten::copy_"]["train_pageable, HTA"] == rows["aten::copy_"]["train_pageable, tracetool"] == "34"
    assert rows["Memcpy HtoD (Pageable -> Device)"]["train_pinned, HTA"] == "0"


@with_hta
@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ([rng("ProfilerStep#1", 0, 100), op("aten::add", 10, 20, 1)], "has no device work"),
        ([rng("step", 0, 100), *launch(10, 1)], "has no profiler steps"),
    ],
    ids=["cpu", "no steps"],
)
def test_what_is_missing_is_said(tmp_path, events, sentence):
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"traceEvents": events}))
    with pytest.raises(tracetool.errors.SettingError, match=sentence):
        invoke("breakdown", path)
    first, other = broken_down(path, GRAPH)
    assert not first.tables
    assert sentence in first.missing[0]
    assert other.tables


@with_hta
def test_relative_paths_and_all_formats(monkeypatch, tmp_path):
    shutil.copy(PAGEABLE, tmp_path / "here.json.gz")
    monkeypatch.chdir(tmp_path)
    text = invoke("breakdown", "here.json.gz", "--name", "mine").stdout
    assert text.startswith("mine\n")
    assert "host_wait" in text
    assert "### mine" in invoke("breakdown", "here.json.gz", "--name", "mine", "--format", "markdown").stdout
    found = json.loads(invoke("breakdown", "here.json.gz", "--format", "json").stdout)
    jsonschema.Draft202012Validator(schema("breakdown")).validate(found)


@with_hta
def test_the_report_has_it(tmp_path):
    path = tmp_path / "report.html"
    invoke("report", PAGEABLE, "-o", path)
    text = path.read_text(encoding="utf-8")
    assert "Idle reasons by stream" in text
    assert "host_wait" in text


def test_without_hta_one_sentence_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr("tracetool.breakdown.installed", lambda: False)
    with pytest.raises(tracetool.errors.SettingError, match=r"pip install --no-deps traceinsight==0\.6\.1"):
        invoke("breakdown", PAGEABLE)
    path = tmp_path / "report.html"
    assert invoke("report", PAGEABLE, "-o", path).exit_code == 0
    assert "traceinsight==0.6.1" in path.read_text(encoding="utf-8")
