"""Files that are far larger than they look, or never end: read in bounded memory, or refused by a named limit."""

import gzip
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tracetool
from tracetool.errors import SettingError, TraceReadError
from tracetool.limits import Limits

from .traces import GRAPH, PAGEABLE, ROOT
from .traces_by_hand import launch, rng, to_json, trace

MIB = 1 << 20
TEXT = to_json(trace(rng("range", 0, 50), *launch(1, 1)))
SLICE = b'{"ph":"X","cat":"kernel","name":"k","ts":0,"dur":0},'
ARGS = b'{"traceEvents":[{"ph":"X","cat":"cuda_runtime","name":"x","ts":1,"dur":1,"args":{"correlation":'

ENDLESS = {
    # name: what the file begins with, what comes again and again, what is said
    "text": (b'{"traceEvents":[{"name":"', b"a", "one event"),
    "escapes": (b'{"traceEvents":[{"name":"', b'\\"', "one event"),
    "digits": (b'{"traceEvents":[{"ts":', b"9", "one event"),
    "blanks": (b"", b" ", "before or after the events"),
    "blanks among events": (b'{"traceEvents":[', b"\n", "one event"),
    "brackets": (b'{"traceEvents":[', b"[", "one event"),
    "lists in an event": (ARGS + b"[", b"[],", "one event"),
    "before the events": (b'{"a":[', b"[],", "before or after the events"),
    "after the events": (b'{"traceEvents":[],"a":[', b"[],", "before or after the events"),
    "nothing but zeros": (b"", b"\0", "is not JSON"),
}


def bomb(path, begin, unit, mib, end=b""):
    """A gzip of so many MiB of one thing, a thousand times as small."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(begin)
        many = unit * (MIB // len(unit))
        for _ in range(mib):
            file.write(many)
        file.write(end)


WORK = """
import pathlib, re, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]), int(sys.argv[1])))
import tracetool
from tracetool.cli import main
for path in sys.argv[2:]:
    began = time.process_time()
    code = main(["summary", path, "-o", "/dev/null"])
    # The most that this program took; `ru_maxrss` would have what the process had that started it.
    kib = re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]
    print(code, round(time.process_time() - began, 1), int(kib) >> 10)
"""


def in_child(paths, address_space, **limits):
    """Exit code, seconds and MiB of a summary of each path, and what was said, in one process with little memory."""
    environment = {**os.environ, **{f"TRACETOOL_{name.upper()}": str(value) for name, value in limits.items()}}
    command = [sys.executable, "-c", WORK, str(address_space), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=550, check=True)
    rows = [[float(word) for word in line.split()] for line in done.stdout.splitlines()]
    said = [line for line in done.stderr.splitlines() if not line.startswith("reading ")]
    return rows, said


def test_what_never_ends_is_refused_in_little_memory(tmp_path):
    for name, (begin, unit, _) in ENDLESS.items():
        bomb(tmp_path / name, begin, unit, 4)
    rows, said = in_child([tmp_path / name for name in ENDLESS], 2 << 30, max_piece_mib=1)
    assert [code for code, *_ in rows] == [2] * len(ENDLESS)
    assert len(said) == len(ENDLESS)
    for (name, (_, _, words)), sentence in zip(ENDLESS.items(), said, strict=True):
        assert f"{tmp_path / name} " in sentence
        assert words in sentence
        assert words == "is not JSON" or "TRACETOOL_MAX_PIECE_MIB" in sentence
    assert max(mib for *_, mib in rows) < 250


@pytest.mark.slow
def test_a_thousandfold_of_each_is_refused_in_the_memory_of_a_million_events(tmp_path):
    for name, (begin, unit, _) in ENDLESS.items():
        bomb(tmp_path / name, begin, unit, 1024)
    rows, said = in_child([tmp_path / name for name in ENDLESS], 4 << 30)
    assert [code for code, *_ in rows] == [2] * len(ENDLESS)
    assert all("which is refused" in one or "is not JSON" in one for one in said)
    assert max(mib for *_, mib in rows) < 600


def test_events_that_do_not_count_take_no_memory_however_many_there_are(tmp_path):
    bomb(tmp_path / "many", b'{"traceEvents":[', b'{"ph":"C","name":"c","ts":1},\n', 30, b'{"ph":"M"}]}')
    rows, _ = in_child([tmp_path / "many"], 2 << 30)
    assert rows[0][0] == 2  # nothing to count
    assert rows[0][2] < 200


def test_an_event_of_more_values_than_any_profiler_writes_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("tracetool.chrome.scan.MOST_MARKS", 1000)
    path = tmp_path / "t.json"
    path.write_bytes(ARGS + b"[" + b"[]," * 500_000 + b"0]}}")
    with pytest.raises(TraceReadError, match="has one event of more than 1,000 values, which is refused"):
        tracetool.read(str(path))


def test_events_and_names_beyond_a_limit_are_refused(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(b"[" + SLICE * 2000 + SLICE[:-1] + b"]")
    assert len(tracetool.read(str(path), limits=Limits(max_events=2001)).events) == 2001
    with pytest.raises(TraceReadError, match=r"more than 2,000 events that count.*TRACETOOL_MAX_EVENTS"):
        tracetool.read(str(path), limits=Limits(max_events=2000))
    with pytest.raises(TraceReadError, match="TRACETOOL_MAX_EVENTS"):
        tracetool.read(str(path), limits=Limits(max_events=2000), split_at=50_000)
    names = [{"ph": "X", "cat": "kernel", "name": f"{n}" + "x" * 1000, "ts": 0, "dur": 0} for n in range(1200)]
    path.write_text(json.dumps(names))
    assert len(tracetool.read(str(path)).events) == 1200
    with pytest.raises(TraceReadError, match=r"names that take more than 1 MiB.*TRACETOOL_MAX_NAMES_MIB"):
        tracetool.read(str(path), limits=Limits(max_names_mib=1))


def test_the_environment_sets_limits(tmp_path, run, monkeypatch):
    path = tmp_path / "t.json"
    path.write_bytes(b"[" + SLICE * 20 + SLICE[:-1] + b"]")
    monkeypatch.setenv("TRACETOOL_MAX_EVENTS", "20")
    code, out, said = run("summary", path)
    assert (code, out) == (2, "")
    assert said.endswith(
        f"{path} has more than 20 events that count, which is refused: TRACETOOL_MAX_EVENTS sets another limit\n"
    )
    for wrong in ("", "0", "-1", "many", "1.5", "\N{ARABIC-INDIC DIGIT THREE}"):
        monkeypatch.setenv("TRACETOOL_MAX_EVENTS", wrong)
        with pytest.raises(SettingError, match=r"TRACETOOL_MAX_EVENTS is '.*': set it to a whole number above 0"):
            tracetool.read(str(path))


def test_paths_of_ranges_within_ranges_are_bounded(tmp_path, run):
    # A thousand thousand names within each other are paths of 500,000 million names.
    for name, depth, length in (("deep", 30_000, 1), ("long", 300, 100_000)):
        nested = [rng("x" * length, level, 2 * depth - level) for level in range(depth)]
        (tmp_path / name).write_text(json.dumps(nested))
        code, _, said = run("summary", tmp_path / name)
        assert code == 2
        assert "ranges within ranges whose paths take more than 512 MiB" in said


def test_a_merge_holds_no_more_than_its_limit(tmp_path, run, monkeypatch):
    bomb(tmp_path / "many.json.gz", b'{"traceEvents":[', b'{"ph":"C","name":"c","ts":1},\n', 3, SLICE + b"{}]}")
    monkeypatch.setenv("TRACETOOL_MAX_MERGE_MIB", "2")
    code, _, said = run("merge", PAGEABLE, tmp_path / "many.json.gz", "-o", tmp_path / "out.json")
    assert code == 2
    assert "more than 2 MiB of JSON, which is not merged: TRACETOOL_MAX_MERGE_MIB" in said
    assert not (tmp_path / "out.json").exists()


# What is packed otherwise ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [2, 3])
def test_gzip_within_gzip_is_refused(tmp_path, times):
    packed = TEXT.encode()
    for _ in range(times):
        packed = gzip.compress(packed)
    path = tmp_path / "t.json.gz"
    path.write_bytes(packed)
    with pytest.raises(TraceReadError, match="is gzip within gzip: undo one of them with gunzip"):
        tracetool.read(str(path))


def test_utf_16_is_named(tmp_path):
    path = tmp_path / "t.json"
    path.write_bytes(TEXT.encode("utf-16"))
    with pytest.raises(TraceReadError, match="UTF-16: write it as UTF-8"):
        tracetool.read(str(path))


def test_gzip_members_one_after_the_other_are_one_trace(tmp_path):
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(TEXT[:100].encode()) + gzip.compress(TEXT[100:].encode()))
    assert len(tracetool.read(str(path)).events) == len(json.loads(TEXT)["traceEvents"])


# What is no file ------------------------------------------------------------------------------------------------


def test_devices_folders_and_empty_files(tmp_path, run):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "empty").touch()
    one_trace = [["health"], ["check", "--baseline", GRAPH]]
    any_trace = [["summary"], ["diff", PAGEABLE], *one_trace]
    for path, words, commands in (
        ("/dev/zero", "is not JSON", any_trace),
        ("/dev/null", "is empty", any_trace),
        (tmp_path / "empty", "is empty", any_trace),
        (folder, "is a directory; name a trace file in it", one_trace),
        (folder, "holds no traces: none of its files ends in .json or .json.gz", any_trace[:2]),
    ):
        for command in ([*words_before, path] for words_before in commands):
            code, _, said = run(*command)
            assert code == 2
            assert said.count("\n") == 1
            assert f"{path}" in said
            assert words in said


@pytest.fixture
def pipe(tmp_path):
    """A pipe into which a trace is written once somebody reads it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(Path(PAGEABLE).read_bytes()), daemon=True)
    writer.start()
    yield path
    writer.join(10)


def test_a_pipe_is_read_once(pipe, run):
    code, out, _ = run("summary", pipe, "--format", "json")
    assert code == 0
    assert json.loads(out)["trace"]["events"] == len(tracetool.read(PAGEABLE).events)


@pytest.mark.parametrize(
    "command",
    [
        ["merge", PAGEABLE, "PIPE", "-o", "out.json"],
        ["open", "PIPE", "--no-browser"],
        ["breakdown", "PIPE"],
        ["check", PAGEABLE, "--baseline", "PIPE"],
    ],
    ids=lambda command: command[0],
)
def test_what_reads_twice_refuses_a_pipe_instead_of_waiting_for_more(tmp_path, run, command):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    code, _, said = run(*[path if word == "PIPE" else word for word in command])
    assert code == 2
    assert str(path) in said
    assert said.count("\n") == 1


def test_a_file_that_grows_while_it_is_read_ends_where_its_last_event_did(tmp_path, monkeypatch):
    path = tmp_path / "t.json"
    path.write_text(TEXT[: TEXT.rindex("]")])
    reads = []

    class Growing(io.BufferedReader):
        def read1(self, size=-1):
            found = super().read1(size)
            reads.append(len(found))
            if len(reads) < 5:
                with path.open("a") as more:
                    more.write("," + json.dumps(rng("late", 60 + len(reads), 70)))
            return found

    monkeypatch.setattr("tracetool.chrome.source._open_file", lambda name: Growing(io.FileIO(name)))
    found = tracetool.read(str(path), split_at=0)
    assert len(found.events) == len(json.loads(TEXT)["traceEvents"]) + 4
    assert found.report.truncated


def test_budgets_and_snapshots_are_texts_of_bounded_size(run):
    for option in ("--budgets", "--baseline"):
        code, _, said = run("check", PAGEABLE, option, "/dev/zero")
        assert code == 2
        assert "/dev/zero" in said


def test_memory_that_is_not_there_is_one_sentence(run, monkeypatch):
    def full(*_):
        raise MemoryError

    for way in ("add", "add_taken"):
        monkeypatch.setattr(f"tracetool.chrome.columns.ColumnBuilder.{way}", full)
    assert run("summary", PAGEABLE) == (2, "", f"tracetool: {PAGEABLE} cannot be read: out of memory\n")
    monkeypatch.undo()
    monkeypatch.setattr("tracetool.summary.attribute", full)
    assert run("summary", PAGEABLE) == (2, "", "tracetool: out of memory: the trace is too large for this machine\n")
