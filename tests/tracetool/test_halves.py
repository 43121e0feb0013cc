"""A file read in two processes gives what one process gives."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tracetool.chrome import halves, read

from .same import assert_same

ROOT = Path(__file__).resolve().parents[2]
TRACES = sorted((ROOT / "traces").glob("*.json.gz"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.name)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.999])
def test_split_anywhere(path, part):
    size = len(gzip.decompress(path.read_bytes()))
    alone = read(str(path), split_at=0)
    assert_same(alone, read(str(path), split_at=int(size * part), chunk_bytes=7_000))


def test_split_before_the_events_behind_them_and_behind_the_end():
    path = TRACES[0]
    alone = read(str(path), split_at=0)
    for position in (1, 10**9):
        assert_same(alone, read(str(path), split_at=position))


def test_a_likely_end_that_is_none(tmp_path):
    # Around the split stands `}, {` inside a string, where no event ends.
    events = [
        {"ph": "X", "cat": "cpu_op", "name": "a }, { b" * 40, "pid": 1, "tid": 1, "ts": t, "dur": 1} for t in range(50)
    ]
    path = tmp_path / "strings.json"
    path.write_text(json.dumps({"traceEvents": events, "after": [{"x": 1}, {"y": 2}]}))
    alone = read(str(path), split_at=0)
    assert len(alone.events) == len(events)
    for position in range(100, path.stat().st_size, 997):
        assert_same(alone, read(str(path), split_at=position))


@pytest.mark.parametrize("cut", [-3000, -1])
def test_a_cut_in_the_second_half_is_told(tmp_path, cut):
    path = tmp_path / "cut.json"
    path.write_bytes(gzip.decompress(TRACES[0].read_bytes())[:cut])
    alone = read(str(path), split_at=0)
    assert alone.report.truncated
    assert_same(alone, read(str(path), split_at=20_000))


def test_a_second_process_that_dies_costs_nothing_but_time(monkeypatch):
    monkeypatch.setattr(halves.sys, "executable", "/bin/false")
    path = str(TRACES[0])
    assert_same(read(path, split_at=0), read(path, split_at=20_000))


def test_only_large_files_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(halves.os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert halves.middle_of(str(TRACES[0])) == 0
    assert halves.middle_of("-") == 0
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(halves.WORTH_A_PROCESS)
    assert 0 < halves.middle_of(str(large)) < halves.WORTH_A_PROCESS
    monkeypatch.setattr(halves.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert halves.middle_of(str(large)) == 0
