"""Merged traces, as Perfetto's own trace_processor reads them."""

import gzip
import json
from collections import Counter, defaultdict

import pytest

import tracetool
from tracetool.differ import lay_out
from tracetool.merging import merge, raw_events

from .oracles.trace_processor import TraceProcessor
from .traces import GRAPH, PAGEABLE, PINNED, ROOT, invoke
from .traces_by_hand import call, kernel, launch, rng

REAL = ROOT / "tests" / "tracetool" / "real"
PAIRS = [
    (PAGEABLE, PINNED),
    (PAGEABLE, PINNED, GRAPH),
    (str(REAL / "ddp.json.gz"), str(REAL / "memory.json.gz")),
    (str(REAL / "stacks.json.gz"), str(REAL / "threads_all.json.gz")),
]


@pytest.fixture(scope="module")
def processor():
    if reason := TraceProcessor.unavailable():
        pytest.skip(reason)
    with TraceProcessor() as one:
        yield one


def merged_of(*paths, step=0, labels=()):
    found = lay_out([tracetool.summarize(tracetool.read(str(path))) for path in paths], labels=labels)
    return merge(found, step, lambda _, variant: f"changed in {variant}")


def saved(path, events):
    path.write_text(json.dumps({"traceEvents": events}))
    return path


def complete_flows(events):
    """Ends with a start: a graph launch starts one flow to each of its kernels."""
    starts = {(event.get("cat"), event["id"]) for event in events if event["ph"] == "s"}
    return sum((event.get("cat"), event["id"]) in starts for event in events if event["ph"] == "f")


@pytest.mark.parametrize("paths", PAIRS, ids=lambda paths: "+".join(path.rsplit("/", 1)[-1][:12] for path in paths))
def test_every_event_is_there_and_every_flow(processor, paths):
    merged = merged_of(*paths)
    processor.load(merged.text)
    assert processor.error_stats() == {}
    inputs = [raw_events(path) for path in paths]
    wanted = Counter(event.get("cat") for events in inputs for event in events if event["ph"] == "X")
    rows = processor.query("SELECT category, count(*) AS count FROM slice WHERE dur >= 0 GROUP BY category")
    found = {row["category"]: row["count"] for row in rows}
    assert {name: found.get(name) for name in wanted} == wanted
    [flows] = processor.query("SELECT count(*) AS count FROM flow")
    assert flows["count"] == sum(map(complete_flows, inputs))


def test_flows_lead_from_launches_to_their_kernels(processor):
    processor.load(merged_of(PAGEABLE, PINNED).text)
    rows = processor.query(
        "SELECT a.category AS of, b.category AS to_, extract_arg(a.arg_set_id, 'args.correlation') AS one, "
        "extract_arg(b.arg_set_id, 'args.correlation') AS other FROM flow "
        "JOIN slice a ON slice_out = a.id JOIN slice b ON slice_in = b.id WHERE b.category = 'kernel'"
    )
    assert len(rows) == 76 + 74
    assert all(row["of"] == "cuda_runtime" and row["one"] == row["other"] for row in rows)


def test_slices_that_overlap_partly_are_kept_on_lanes(processor, tmp_path):
    overlapping = [rng("ProfilerStep#1", 0, 100), *launch(10, 1, gpu_at=20), call("cudaLaunchKernel", 14, 2)]
    overlapping += [kernel(25, 2, dur=10, name="overlaps"), call("cudaLaunchKernel", 16, 3), kernel(28, 3, dur=4)]
    one = saved(tmp_path / "one.json", overlapping)
    merged = merged_of(one, one, labels=["a", "b"])
    assert merged.lanes == 2
    processor.load(merged.text)
    assert processor.error_stats() == {}
    [count] = processor.query("SELECT count(*) AS count FROM slice WHERE category = 'kernel'")
    assert count["count"] == 6
    names = {row["name"] for row in processor.query("SELECT name FROM thread WHERE name IS NOT NULL")}
    assert {"a: thread 7", "a: thread 7 (lane 2)", "b: thread 7"} <= names


def test_sides_are_aligned_and_no_time_is_negative(processor):
    for step in (0, 1):
        processor.load(merged_of(PAGEABLE, PINNED, step=step).text)
        rows = processor.query(
            "SELECT slice.ts, process.name AS process FROM slice JOIN thread_track ON track_id = thread_track.id "
            "JOIN thread USING (utid) JOIN process USING (upid) "
            "WHERE slice.name GLOB 'ProfilerStep#*' AND category = 'user_annotation' ORDER BY slice.ts"
        )
        starts = defaultdict(list)
        for row in rows:
            starts[row["process"]].append(row["ts"])
        [one, other] = starts.values()
        assert one[step] == other[step]
        assert processor.query("SELECT min(ts) AS least FROM slice")[0]["least"] >= 0


def test_processes_are_named_after_their_variant(processor):
    processor.load(merged_of(PAGEABLE, PINNED).text)
    names = {row["name"] for row in processor.query("SELECT name FROM process WHERE name IS NOT NULL")}
    assert {"train_pageable: CPU", "train_pageable: GPU 0", "train_pinned: CPU", "train_pinned: GPU 0"} <= names
    assert all(name.startswith(("train_pageable: ", "train_pinned: ")) for name in names)


def test_markers_and_counters_tell_what_changed(processor):
    processor.load(merged_of(PAGEABLE, PINNED).text)
    marks = [row["name"] for row in processor.query("SELECT name FROM slice WHERE category = 'tracetool' ORDER BY ts")]
    assert sorted(marks) == ["h2d_batch: changed in 0"] * 2 + ["h2d_batch: differs in a variant"] * 2
    rows = processor.query(
        "SELECT process.name AS process, max(value) AS most FROM counter "
        "JOIN process_counter_track t ON track_id = t.id JOIN process USING (upid) "
        "WHERE t.name LIKE 'copies in h2d_batch%' GROUP BY process.name"
    )
    most = {row["process"].partition(":")[0]: row["most"] for row in rows}
    assert most == {"train_pageable": 17, "train_pinned": 2}


def test_names_are_utf_8_and_odd_files_are_mended(processor, tmp_path):
    one = saved(tmp_path / "one.json", [rng("ProfilerStep#1", 0, 100), rng("prefill Ωß", 10, 20)])
    other = tmp_path / "other.json"
    text = json.dumps({"traceEvents": [rng("ProfilerStep#1", 0, 100, value=1), rng("x", 1, 5)]})
    other.write_bytes(text.replace('"value": 1', '"value": NaN').replace('"x"', '"x\x01"').encode())
    merged = merged_of(one, other)
    assert "prefill Ωß".encode() in merged.text
    processor.load(merged.text)
    assert processor.error_stats() == {}


def test_the_command_writes_it(tmp_path):
    path = tmp_path / "merged.json.gz"
    done = invoke("merge", PAGEABLE, PINNED, "--name", "a", "--name", "b", "--step", "1", "-o", path)
    assert done.exit_code == 0
    assert "ends of flows" in done.stderr
    whole = json.loads(gzip.decompress(path.read_bytes()))
    names = {one["args"]["name"] for one in whole["traceEvents"] if one["name"] == "process_name"}
    assert "a: CPU" in names
    assert "h2d_batch: 17 pageable HtoD copies a call became 2 pinned" in path_text(whole)


def path_text(whole):
    return " ".join(one["name"] for one in whole["traceEvents"] if one.get("cat") == "tracetool")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step", "7"], "'train_pageable' has 2 profiler steps, so no step 7 to align at"),
        (["-o", "merged.pftrace"], "must be named"),
    ],
)
def test_what_cannot_be_merged_is_said(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    output = [] if "-o" in arguments else ["-o", "merged.json"]
    with pytest.raises(tracetool.errors.TracetoolError, match=message):
        invoke("merge", PAGEABLE, PINNED, *arguments, *output)
    assert list(tmp_path.iterdir()) == []


def test_standard_input_and_files_that_are_cut_off(tmp_path):
    with pytest.raises(tracetool.errors.SettingError, match="standard input"):
        invoke("merge", PAGEABLE, "-", "-o", tmp_path / "merged.json")
    cut = tmp_path / "cut.json"
    cut.write_text('{"traceEvents": [' + json.dumps(rng("ProfilerStep#1", 0, 100)) + ",")
    with pytest.raises(tracetool.errors.TraceReadError, match="cut off"):
        merged_of(cut, cut)
