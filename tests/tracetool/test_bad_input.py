"""Whatever stands in a file: one clear sentence that names it, or a finding in health; never another exception."""

import gzip
import json
import re

import pytest

import tracetool
from tracetool.chrome import quick
from tracetool.errors import TraceReadError

from .traces_by_hand import (
    alloc,
    call,
    event,
    findings,
    flat,
    kernel,
    launch,
    memcpy,
    op,
    read,
    rng,
    selfs,
    to_json,
    trace,
)

GOOD = [rng("range", 0, 50), *launch(1, 1), op("aten::add", 60, 70)]
COUNTED = {
    ("range",): {"calls": 1, "kernel_launches": 1, "kernels": 1},
    ("(no range)",): {"ops": 1, 'op_calls["aten::add"]': 1},
}
TEXT = to_json(trace(*GOOD))
PLACE = "<here>"


@pytest.fixture(autouse=True, params=["compiled", "python"])
def way(request, monkeypatch):
    """Each case is read by the compiled part, where there is one, and without it."""
    monkeypatch.setenv(quick.WITHOUT, "1" if request.param == "python" else "")
    quick.compiled.cache_clear()
    if request.param == "compiled" and quick.compiled() is None:
        pytest.skip("tracetool is installed without its compiled reader")
    yield
    monkeypatch.undo()
    quick.compiled.cache_clear()


def counts(content):
    found = tracetool.summarize(read(content))
    found.check()
    return selfs(found)


def with_raw(field, text):
    more = {**call("cudaStreamSynchronize", 2, 9), field: PLACE}
    return to_json(trace(*GOOD, more)).replace(f'"{PLACE}"', text)


def with_arg(key, text, of=None):
    more = of or call("cudaStreamSynchronize", 2, 9)
    return to_json(trace(*GOOD, {**more, "args": {**more["args"], key: PLACE}})).replace(f'"{PLACE}"', text)


def without(event_, *keys):
    return {key: value for key, value in event_.items() if key not in keys}


# What cannot be read at all


def refused(path):
    with pytest.raises(TraceReadError) as caught:
        tracetool.read(str(path))
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_a_missing_file(tmp_path):
    assert refused(tmp_path / "absent.json") == ": there is no such file; check the path"


def test_a_directory(tmp_path):
    assert refused(tmp_path) == " is a directory; name a trace file in it"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "is empty"),
        (" \n ", "is empty"),
        ("hello", "is not JSON"),
        ("5", "is not JSON"),
        ("null", "is not JSON"),
        ('"traceEvents"', "is not JSON"),
        ("{}", "without 'traceEvents'"),
        ('{"note": "traceEvents"}', "without 'traceEvents'"),
        ('{"args": {"traceEvents": []}}', "without 'traceEvents'"),
        ('{"traceEvents": null}', "'traceEvents' that is not a list"),
        ('{"traceEvents": {}}', "'traceEvents' that is not a list"),
        ('{"traceEvents": "[]"}', "'traceEvents' that is not a list"),
        ('{"schemaVersion": 1', "ends before its 'traceEvents'"),
        ('{"traceEvents"', "ends before its 'traceEvents'"),
        ('{"traceEvents": [{"a": 1}}]}', "malformed JSON"),
        (TEXT.encode("utf-16"), "is not JSON"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "without 'traceEvents'"),
    ],
)
def test_what_is_no_trace_is_refused(tmp_path, content, why):
    path = tmp_path / "t.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert why in refused(path)


# Cut off


def verdict(path):
    """What comes of a damaged file: `refused`, in a sentence that names it, or the codes of its errors."""
    try:
        found = tracetool.summarize(tracetool.read(str(path))).health.findings
    except TraceReadError as error:
        return "refused" if str(path) in str(error) else str(error)
    return {finding.code for finding in found if finding.severity == "error"}


def test_a_file_cut_at_any_byte_is_refused_or_said_to_be_truncated(tmp_path):
    path = tmp_path / "t.json"
    for length in range(len(TEXT)):
        path.write_text(TEXT[:length])
        said = verdict(path)
        assert said == "refused" if length <= TEXT.index("[") else "truncated" in said


def test_a_cut_file_keeps_its_last_whole_event_and_what_it_says_of_itself():
    cut = TEXT[: TEXT.rindex("]")]
    assert counts(cut) == COUNTED
    assert read(cut).metadata == {"schemaVersion": 1}


def test_a_list_without_its_bracket_is_whole_but_said():
    listed = to_json(flat(GOOD))
    for end in ("", ",", ",\n"):
        assert counts(listed[:-1] + end) == COUNTED
        assert findings(listed[:-1] + end)["unclosed_list"] == "warning"
        assert "truncated" not in findings(listed[:-1] + end)
    assert findings(listed[:-5])["truncated"] == "error"


def test_a_gzip_cut_at_any_byte_is_refused_or_said_to_be_truncated(tmp_path):
    packed = gzip.compress(TEXT.encode(), mtime=0)
    path = tmp_path / "t.json.gz"
    for length in range(2, len(packed)):
        path.write_bytes(packed[:length])
        said = verdict(path)
        assert said == "refused" or "truncated" in said


def test_a_corrupt_gzip_never_passes_for_good(tmp_path):
    packed = gzip.compress(TEXT.encode(), mtime=0)
    path = tmp_path / "t.json.gz"
    for place in range(10, len(packed)):
        path.write_bytes(packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :])
        assert verdict(path) == "refused" or verdict(path)


# Bytes and JSON


@pytest.mark.parametrize(
    ("text", "name", "replaced"),
    [
        (b'"a\xff\xfeb"', "a\ufffd\ufffdb", 2),
        (b'"a\x00\x01\nb"', "a\ufffd\ufffd\ufffdb", 3),
        (b'"a\\qb\\x"', "a\\qb\\x", 2),
        (b'"C:\\dir\\new"', "C:\\dir\new", 1),
        (b'"a\\ud800b"', "a\ufffdb", 1),
        (b'"a\\ud83d\\ude00b"', "a\U0001f600b", 0),
        ('"\N{GREEK SMALL LETTER MU}"'.encode(), "\N{GREEK SMALL LETTER MU}", 0),
    ],
)
def test_what_json_does_not_allow_in_a_name_is_replaced_and_counted(text, name, replaced):
    content = to_json(trace(*GOOD, rng(PLACE, 80, 90))).encode().replace(f'"{PLACE}"'.encode(), text)
    found = tracetool.summarize(read(content))
    assert (name,) in found.paths
    said = {f.code: (f.severity.value, f.count) for f in found.health.findings}
    assert said.get("replaced_text", ("info", 0)) == ("info", replaced)


def test_odd_bytes_around_the_events_cost_no_event():
    for odd in (b"\xff", b"\x01", b"\\q"):
        content = to_json(trace(*GOOD, host=PLACE)).encode().replace(PLACE.encode(), odd)
        assert counts(content) == COUNTED
        assert findings(content)["replaced_text"] == "info"
    assert counts(to_json(trace(*GOOD, rate=PLACE)).replace(f'"{PLACE}"', "NaN")) == COUNTED


@pytest.mark.parametrize("odd", ["1e400", "1" + "0" * 5000, "[" * 5000 + "]" * 5000, "nothing"])
def test_metadata_that_no_one_can_read_is_no_cut_file(odd):
    before = to_json(trace(*GOOD, odd=PLACE)).replace(f'"{PLACE}"', odd)
    after = to_json({"traceEvents": flat(GOOD), "odd": PLACE}).replace(f'"{PLACE}"', odd)
    for content in (before, after, TEXT + " more"):
        assert counts(content) == COUNTED
        assert findings(content)["malformed_metadata"] == "warning"
        assert "truncated" not in findings(content)


def test_a_byte_order_mark_changes_nothing():
    for content in (TEXT, to_json(flat(GOOD))):
        marked = b"\xef\xbb\xbf" + content.encode()
        assert counts(marked) == COUNTED
        assert findings(marked) == findings(content)


def test_the_name_of_the_list_may_stand_elsewhere_too():
    content = to_json({"note": "traceEvents", "n": {"traceEvents": [1]}, "traceEvents": flat(GOOD)})
    assert counts(content) == COUNTED


# Events


@pytest.mark.parametrize("odd", ["5", '"text"', "null", "[1]", "true", "[" * 5000 + "]" * 5000])
def test_events_that_are_no_objects_are_dropped_and_said(odd):
    content = to_json(trace(*GOOD, PLACE_EVENT)).replace(to_json(PLACE_EVENT), odd)
    assert counts(content) == COUNTED
    assert findings(content)["dropped_events"] == "warning"


PLACE_EVENT = {"here": 1}


@pytest.mark.parametrize("args", ["[1, 2]", "null", '"text"', "5", None])
def test_args_that_are_no_object_are_no_args(args):
    content = with_raw("args", args) if args else trace(*GOOD, without(call("cudaStreamSynchronize", 2), "args"))
    assert counts(content)["range",] == {**COUNTED["range",], "syncs": 1}


def test_a_device_event_without_args_came_before_the_window():
    assert counts(trace(*GOOD, without(kernel(5, 1), "args")))["(before the window)",] == {"kernels": 1}


@pytest.mark.parametrize("key", ["name", "ts"])
def test_an_event_without_a_name_or_a_time_is_dropped_and_said(key):
    content = trace(*GOOD, without(call("cudaStreamSynchronize", 2), key))
    assert counts(content) == COUNTED
    assert findings(content)["dropped_events"] == "warning"


BAD_TIMES = [
    *("null", "NaN", "Infinity", "-Infinity", '"soon"', '"0x10"', "[1]", "{}", "true", str(2**63), str(2**80)),
    *("1e30", "1e400", "1e999990", "1e999999999", "-1e999999999", '"1e99999999"', "1e999999999999999999999"),
    '"5\\n6.5"',
]


@pytest.mark.parametrize("odd", BAD_TIMES)
def test_an_event_with_an_impossible_time_is_dropped_and_said(odd):
    assert counts(with_raw("ts", odd)) == COUNTED
    assert findings(with_raw("ts", odd))["dropped_events"] == "warning"


@pytest.mark.parametrize("odd", [*BAD_TIMES, "-5", "-0.001"])
def test_an_impossible_duration_is_zero_and_said(odd):
    assert counts(with_raw("dur", odd))["range",]["syncs"] == 1
    assert findings(with_raw("dur", odd))["bad_durations"] == "warning"


def test_a_missing_duration_is_zero_and_said():
    content = trace(*GOOD, without(call("cudaStreamSynchronize", 2), "dur"))
    assert counts(content)["range",]["syncs"] == 1
    assert findings(content)["bad_durations"] == "warning"


def test_huge_durations_do_not_wrap_around():
    kernels = [[call("cudaLaunchKernel", 1, i), kernel(5, i, dur=2**51)] for i in range(2, 12)]
    found = tracetool.summarize(read(trace(*GOOD, *kernels)))
    assert found.own("gpu_ns").tolist() == [10_000, 0, 0]
    assert findings(trace(*GOOD, *kernels))["bad_durations"] == "warning"


@pytest.mark.parametrize("odd", ["12.5", '"12.5"', "1.25e1"])
def test_times_as_text_or_with_exponents_are_read(odd):
    assert counts(with_raw("ts", odd))["range",]["syncs"] == 1


BAD_IDS = [
    *('"x"', "1.5", "true", "[1]", "[]", "{}", str(2**63), str(2**80), "1e30", "1e400", "1e999999999"),
    *('"1e999999999"', '"NaN"', '""'),
]


@pytest.mark.parametrize("odd", BAD_IDS)
def test_an_impossible_id_is_none_and_said(odd):
    content = with_arg("correlation", odd, call("cudaLaunchKernel", 2))
    assert counts(content)["range",] == {**COUNTED["range",], "unlinked_launches": 1}
    assert findings(content)["bad_numbers"] == "warning"
    alone = to_json(trace({**call("cudaLaunchKernel", 2), "args": {"correlation": PLACE}}))
    assert counts(alone.replace(f'"{PLACE}"', odd)) == {("(no range)",): {"unlinked_launches": 1}}


@pytest.mark.parametrize("same", ["1", '"1"', "1.0"])
def test_an_id_written_otherwise_is_the_same_id(same):
    content = with_arg("correlation", same, kernel(9, 0))
    assert counts(content)["range",]["kernels"] == 2
    assert "bad_numbers" not in findings(content)


@pytest.mark.parametrize("odd", ["-5", '"x"', "1.5", str(2**61), "1e999999999", "[8]"])
def test_an_impossible_size_is_no_size_and_said(odd):
    copies = [call("cudaMemcpyAsync", 3, 5), {**memcpy(9, 5), "args": {"correlation": 5, "bytes": PLACE}}]
    content = to_json(trace(*GOOD, *[copies] * 9)).replace(f'"{PLACE}"', odd)
    found = tracetool.summarize(read(content))
    assert found.own("copies").sum() == 9
    assert found.own("copy_bytes").sum() == 0
    assert findings(content).items() >= {"bad_numbers": "warning", "copies_without_bytes": "warning"}.items()


@pytest.mark.parametrize("odd", [2**61, -1, "x", [1]])
def test_an_impossible_collective_counts_no_bytes_and_is_said(odd):
    args = {"Collective name": "allreduce", "In msg nelems": odd, "Out msg nelems": odd, "dtype": "Double"}
    content = trace(*GOOD, kernel(9, 1, **args))
    assert counts(content)["range",] == {**COUNTED["range",], "kernels": 2, "collectives": 1}
    assert findings(content)["bad_numbers"] == "warning"


def test_a_collective_of_an_unknown_type_counts_no_bytes_and_is_said():
    args = {"Collective name": "allreduce", "In msg nelems": 8, "dtype": "Quaternion"}
    assert "collective_bytes" not in counts(trace(*GOOD, kernel(9, 1, **args)))["range",]
    assert findings(trace(*GOOD, kernel(9, 1, **args)))["bad_numbers"] == "warning"


@pytest.mark.parametrize("odd", ["1.5", "null", "[1]", "{}", str(2**80), '"x"'])
@pytest.mark.parametrize("field", ["pid", "tid"])
def test_an_odd_thread_is_a_thread_of_its_own(field, odd):
    assert counts(with_raw(field, odd)) == {
        **COUNTED,
        ("(no range)",): {**COUNTED["(no range)",], "syncs": 1},
    }


@pytest.mark.parametrize("number", ["9" * 19, "9" * 5000, "-1", "x"])
def test_a_step_whose_number_is_none_is_a_range(number):
    found = tracetool.summarize(read(trace(rng(f"ProfilerStep#{number}", 0, 90), *launch(1, 1))))
    assert found.own("kernels").tolist() == [1, 0, 0]
    assert found.steps == []


def test_odd_fields_that_are_not_counted_harm_nothing():
    odd = [
        {**event("cpu_op", "aten::add", 60, 5), "cat": 5},
        {**event("cpu_op", "aten::add", 60, 5), "ph": 5},
        {"ph": "M", "name": "thread_name", "pid": [9], "tid": {}, "args": {"name": 5}},
        {"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "id": [1], "pid": 9, "tid": 1, "ts": 1},
        {**alloc(5, 8), "args": {}},
        {},
    ]
    assert counts(trace(*GOOD, odd, deviceProperties=[5, {"name": [1]}], distributedInfo=3)) == COUNTED


def test_begin_and_end_events_are_said():
    pair = [{**rng("old", 60, 70), "ph": ph} for ph in "BE"]
    assert counts(trace(*GOOD, pair)) == COUNTED
    assert findings(trace(*GOOD, pair))["unpaired_phases"] == "warning"


def test_duplicate_ids_of_unrelated_calls_go_to_the_one_that_started_last_and_are_said():
    twice = trace(rng("a", 0, 9), rng("b", 10, 90), call("cudaLaunchKernel", 1, 1), *launch(11, 1), kernel(40, 1))
    assert counts(twice) == {("a",): {"calls": 1}, ("b",): {"calls": 1, "kernel_launches": 1, "kernels": 2}}
    assert findings(twice)["duplicate_correlation_ids"] == "warning"


def test_events_out_of_order():
    assert counts(trace(*reversed(flat(GOOD)))) == COUNTED


def test_a_hundred_thousand_range_names():
    ranges = [rng(f"request {i}", 2 * i, 2 * i + 1) for i in range(100_000)]
    found = tracetool.summarize(read(json.dumps(trace(ranges, launch(199_998, 1)))))
    assert len(found.paths) == 100_002
    assert found.own("kernels").sum() == found.own("kernels")[99_999] == 1
    assert found.calls.sum() == 100_000


def test_deep_nesting_of_ranges():
    ranges = [rng(f"r{i}", i, 10_000 - i) for i in range(3000)]
    found = tracetool.summarize(read(trace(ranges, launch(5000, 1))))
    assert max(map(len, found.paths)) == 3000
    assert found.total("kernels")[:3000].tolist() == [1] * 3000


# What health says of whole traces


def test_a_trace_of_a_cpu_is_fine():
    content = trace(rng("range", 0, 50), op("aten::add", 1, 5))
    assert counts(content) == {("range",): {"calls": 1, "ops": 1, 'op_calls["aten::add"]': 1}}
    assert findings(content) == {"no_device_work": "info", "perhaps_cut": "info"}
    assert tracetool.summarize(read(content)).health.verdict == "ok"


def test_launches_without_any_device_event_are_an_error():
    content = trace(rng("range", 0, 50), call("cudaLaunchKernel", 1, 1))
    assert findings(content)["no_device_events"] == "error"


def test_most_launches_unlinked_are_an_error_and_some_a_warning():
    lost = [call("cudaLaunchKernel", 20 + i, 90 + i) for i in range(3)]
    assert findings(trace(GOOD, lost))["launches_unlinked"] == "error"
    assert findings(trace(GOOD, lost[:1], launch(3, 3)))["unlinked_launches"] == "warning"


def test_launches_while_a_graph_is_captured_are_no_loss():
    captured = [
        call("cudaStreamBeginCapture_v10000", 20),
        [call("cudaLaunchKernel", 21 + i, 90 + i) for i in range(5)],
        call("cudaStreamEndCapture_v10000", 30),
    ]
    found = findings(trace(GOOD, captured))
    assert found["captured_launches"] == "info"
    assert not {"launches_unlinked", "unlinked_launches"} & found.keys()


def test_work_from_before_the_window_is_a_warning():
    assert findings(trace(GOOD, kernel(0, 77)))["before_window"] == "warning"


def test_times_of_whole_microseconds_are_a_warning():
    ops = [op("aten::add", i, i + 1) for i in range(60)]
    assert findings(trace(ops))["coarse_times"] == "warning"


def test_nothing_to_count_is_an_error():
    for content in ("[]", '{"traceEvents": []}', '{"traceEvents": [{"ph": "M", "name": "process_name"}]}'):
        assert findings(content)["no_events"] == "error"


def test_every_finding_is_one_sentence_for_a_person():
    content = trace(GOOD, kernel(0, 77), {}, 5, call("cudaLaunchKernel", 9, 8), memcpy(1, 1, size="x"))
    messages = [finding.message for finding in tracetool.summarize(read(content)).health.findings]
    assert messages
    assert all(re.fullmatch(r"[A-Z0-9].*\.", message) for message in messages)
