"""The compiled way from text to columns gives what Python gives: on real traces, on odd ones, on damaged ones."""

import gzip
import json
import random
import re
from dataclasses import replace

import pytest

from tracetool.chrome import quick
from tracetool.chrome import read as read_trace
from tracetool.chrome.columns import ColumnBuilder
from tracetool.chrome.quick import Status
from tracetool.errors import TraceReadError
from tracetool.events import Category

from .same import assert_alike
from .traces import ROOT
from .traces_by_hand import (
    alloc,
    call,
    compiled,
    event,
    flow,
    kernel,
    launch,
    memcpy,
    memset,
    op,
    python,
    rng,
    thread_name,
    to_json,
    trace,
)

REAL = sorted((ROOT / "traces").glob("*.json.gz")) + sorted((ROOT / "tests/tracetool/real").glob("*.json.gz"))

pytestmark = pytest.mark.skipif(quick.compiled() is None, reason="tracetool is installed without its compiled reader")


@pytest.fixture
def both(monkeypatch):
    """Reads a file the quick way, then in Python alone; gives two traces, or two sentences."""

    def read_both(path, **options):
        found = []
        for way in ("", "1"):
            monkeypatch.setenv(quick.WITHOUT, way)
            quick.compiled.cache_clear()
            try:
                found.append(read_trace(str(path), **options))
            except TraceReadError as error:
                found.append(str(error))
        monkeypatch.undo()
        quick.compiled.cache_clear()
        return found

    return read_both


def assert_same_both(found, *, same_mends=True):
    compiled, plain = found
    if isinstance(compiled, str) or isinstance(plain, str):
        assert compiled == plain
    else:
        if not same_mends:
            compiled, plain = counted_alike(compiled), counted_alike(plain)
        assert_alike(compiled, plain)


def counted_alike(found):
    """What is mended in an event that is dropped in the end counts or not by how the file is cut into windows."""
    return replace(found, report=replace(found.report, replaced_text=bool(found.report.replaced_text)))


def taken(text):
    """What the compiled part alone makes of a window: why it stopped, where, and how many events it kept."""
    builder = ColumnBuilder()
    taker, window, rows = builder.taker(), bytearray(text), 0
    while True:
        one = taker.take(window)
        builder.add_taken(one, taker, window)
        rows += len(one.columns["category"])
        del window[: one.consumed]
        if one.status is not Status.FULL:
            return one.status, len(text) - len(window), rows


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_real_traces(both, path):
    assert_same_both(both(path))


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name)
def test_nothing_that_profilers_write_is_odd(path):
    text = gzip.decompress(path.read_bytes())
    status, end, rows = taken(text[text.index(b"[", text.index(b'"traceEvents"')) :])
    assert status is Status.CLOSED
    assert text.endswith(text[len(text) - end :])
    assert rows > 10


EVENT = b'{"ph":"X","cat":"cpu_op","name":"a","pid":1,"tid":2,"ts":1.5,"dur":2,"args":{"External id":7}}'


@pytest.mark.parametrize(
    ("text", "status", "end"),
    [
        (b"[]", Status.CLOSED, 2),
        (b"[ " + EVENT + b" ] tail", Status.CLOSED, len(EVENT) + 4),
        (b"[" + EVENT + b",", Status.MORE, len(EVENT) + 1),
        (b"[" + EVENT, Status.MORE, 0),
        (b"[" + EVENT + b"," + EVENT[:40], Status.MORE, len(EVENT) + 1),
        (b"," + EVENT + b",5]", Status.ODD, len(EVENT) + 1),
        (b"[" + EVENT + b"}", Status.ODD, 0),
        (b"[,]", Status.ODD, 0),
    ],
)
def test_where_it_stops(text, status, end):
    found, consumed, _ = taken(text)
    assert (found, consumed) == (status, end)


@pytest.mark.parametrize("end", range(len(EVENT)))
def test_a_cut_event_is_never_taken(end):
    assert taken(b"[" + EVENT[:end])[1:] == (0, 0)
    assert taken(b"[" + EVENT + b"," + EVENT[:end])[1:] == (len(EVENT) + 1, 1)


ODD = [
    (rb'"name":"a"', rb'"name":"\u00e9"'),
    (rb'"name":"a"', rb'"name":"a","name":"b"'),
    (rb'"name":"a"', b'"name":"\xff"'),
    (rb'"name":"a"', b'"name":"\n"'),
    (rb'"name":"a"', rb'"name":"\x"'),
    (rb'"name":"a"', rb'"name":null'),
    (rb'"name":"a"', rb'"name":5'),
    (rb'"name"', rb'"\u006eame"'),
    (rb'"ts":1.5', rb'"ts":1.5e3'),
    (rb'"ts":1.5', rb'"ts":"1.5"'),
    (rb'"ts":1.5', rb'"ts":-1.5'),
    (rb'"ts":1.5', rb'"ts":01.5'),
    (rb'"ts":1.5', rb'"ts":1.'),
    (rb'"ts":1.5', rb'"ts":1234567890123456'),
    (rb'"ts":1.5', rb'"ts":1.' + b"1" * 60),
    (rb'"ts":1.5,', rb""),
    (rb'"dur":2', rb'"dur":null'),
    (rb'"dur":2', rb'"dur":-2'),
    (rb'"dur":2', rb'"dur":9007199254740.993'),
    (rb'"dur":2', rb'"dur":NaN'),
    (rb'"pid":1', rb'"pid":1.0'),
    (rb'"pid":1', rb'"pid":true'),
    (rb'"tid":2', rb'"tid":99999999999999999999'),
    (rb'"tid":2', rb'"tid":"a\"b"'),
    (rb'"args":{"External id":7}', rb'"args":null'),
    (rb'"args":{"External id":7}', rb'"args":[]'),
    (rb'"args":{"External id":7}', rb'"args":{},"args":{"External id":7}'),
    (rb'"External id":7', rb'"External id":"7"'),
    (rb'"External id":7', rb'"External id":7.0'),
    (rb'"External id":7', rb'"External id":4611686018427387904'),
    (rb'"External id":7', rb'"External id":-2147483648'),
    (rb'"External id":7', rb'"External id":7,"external id":8'),
    (rb'"External id":7', rb'"External id":7,"x":tru'),
    (rb'"External id":7', rb'"External id":7,"x":[1,]'),
    (rb'"External id":7', rb'"External id":7,"x":"\ud800"'),
    (rb'"External id":7', rb'"External id":7,"x":' + b"[" * 100 + b"]" * 100),
    (rb'"External id":7', rb'"External id":7,"Call line":5'),
    # Numbers beyond what Python reads into fields that this category has no use for.
    (rb'"External id":7', rb'"External id":7,"correlation":1e400'),
    (rb'"dur":2', rb'"dur":2,"id":' + b"9" * 5000),
]


@pytest.mark.parametrize(("old", "new"), ODD)
def test_what_is_odd_is_left_to_python(both, tmp_path, old, new):
    odd = EVENT.replace(old, new)
    assert odd != EVENT
    status, end, rows = taken(b"[" + EVENT + b"," + odd + b"]")
    assert (status, end, rows) == (Status.ODD, len(EVENT) + 1, 1)
    (tmp_path / "odd.json").write_bytes(b"[" + b",".join([EVENT, odd, EVENT]) + b"]")
    assert_same_both(both(tmp_path / "odd.json"))


PLAIN = [
    (rb'"name":"a"', 'name":"é €"'.encode().join([b'"', b""])),
    (rb'"name":"a"', rb'"name":"a\"\\\/\b\f\n\r\tb"'),
    (rb'"name":"a"', rb'"name":""'),
    (rb'"ts":1.5', rb'"ts" : 0'),
    (rb'"ts":1.5', rb'"ts":999999999999999.999'),
    *(
        (rb'"ts":1.5', rb'"ts":' + time)
        for time in (b"1.2345", b"1.2355", b"1.23450001", b"1.23449999", b"1.9995", b"0.0005")
    ),
    (rb'"dur":2', rb'"dur":0.12300000000000182'),
    (rb'"pid":1', rb'"pid":"Spans"'),
    (rb'"pid":1,', rb""),
    (rb'"tid":2', rb'"tid":-7'),
    (rb'"tid":2', rb'"tid":null'),
    (rb'"External id":7', rb'"external id":9'),
    (rb'"External id":7', rb'"External id":null'),
    (rb'"External id":7', rb'"x":[{"y":[1.5e-7,"\u00e9\n",true,false,null,{}]}],"External id":7'),
    (rb'"External id":7', rb'"External id":7,"Call line":"a.py:3\t"'),
    (rb',"args":{"External id":7}', rb""),
    (rb'"cat":"cpu_op"', rb'"cat":"mtia_runtime"'),
    (rb'"cat":"cpu_op"', rb'"cat":"something else"'),
    (rb'"ph":"X"', rb'"ph":"B"'),
]


@pytest.mark.parametrize(("old", "new"), PLAIN)
def test_what_is_plain_is_taken(both, tmp_path, old, new):
    plain = EVENT.replace(old, new)
    assert plain != EVENT
    assert taken(b"[" + plain + b"]")[0] is Status.CLOSED
    (tmp_path / "plain.json").write_bytes(b"[" + b", ".join([EVENT, plain, EVENT]) + b"]")
    assert_same_both(both(tmp_path / "plain.json"))


ALIKE = [EVENT.replace(old, new) for old, new in PLAIN]


@pytest.mark.parametrize("seed", range(4))
def test_events_of_shapes_that_were_seen_before(both, tmp_path, seed):
    events = 3 * [EVENT, *ALIKE, *(EVENT.replace(old, new) for old, new in ODD[seed::4])]
    random.Random(seed).shuffle(events)
    (tmp_path / "alike.json").write_bytes(b"[" + b",".join(events) + b"]")
    assert_same_both(both(tmp_path / "alike.json"), same_mends=False)


@pytest.mark.parametrize(
    "new",
    [
        *(b'"%d":1,"External id":%d' % (number, number) for number in (5, 12345)),
        b'"' + b"long " * 80 + b'":1,"External id":1',
        b'"External id":1,"a":{"b":[1]},"c":"d"',
        b'"External id":1,"a":null,"c":-1.5',
        b'"External id":1,' + b",".join(b'"%d":1' % number for number in range(100)),
    ],
)
def test_more_shapes_than_are_remembered(both, tmp_path, new):
    many = [EVENT.replace(b'"External id":7', b'"key %d":0,"External id":%d' % (n, n)) for n in range(3000)]
    one = EVENT.replace(b'"External id":7', new)
    cut = one[: one.index(b'"args":') + 9]
    many[::100] = 30 * [one]
    (tmp_path / "shapes.json").write_bytes(b"[" + b",".join([one, *many, one, one, cut]))
    found = both(tmp_path / "shapes.json")
    assert_same_both(found)
    assert len(found[0].events) == 3003


def every_kind():
    """One event or more of every category, with all that is read of each."""
    collective = {"Collective name": "allreduce", "In msg nelems": 8, "Out msg nelems": 4, "dtype": "BFloat16"}
    return trace(
        thread_name(1, "python3"),
        rng("range", 0, 50),
        *launch(1, 1),
        memcpy(20, 2, size=64),
        memset(25, 3),
        call("cudaMemcpyAsync", 15, 2),
        kernel(30, 4, name="ncclDevKernel", **collective),
        alloc(31, 64),
        alloc(32, -64),
        op("aten::add", 60, 70, **{"Call line": "a.py:3"}),
        *flow(5, 1, 61, 2, 71),
        python("a.py(3): f", 0, 40),
        compiled("triton_", 2, 3),
        compiled("triton_", 4, 5, cache_hit=True, signature="x: *fp32", multiples="x"),
        event("cuda_sync", "Stream Synchronize", 6, 7, correlation=1),
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python3"}},
    )


@pytest.mark.parametrize("chunk_bytes", [7, 64, 333, 1 << 20])
def test_every_kind_of_event_in_windows_of_any_size(both, tmp_path, chunk_bytes):
    (tmp_path / "all.json").write_text(to_json(every_kind()))
    found = both(tmp_path / "all.json", chunk_bytes=chunk_bytes)
    assert_same_both(found)
    assert len(set(found[0].events.category.tolist())) == len(Category) - 1  # all but autotune
    assert "python3" in {thread.name for thread in found[0].events.threads}


def test_more_rows_than_one_answer_holds(both, tmp_path):
    many = [EVENT.replace(b'"a"', b'"op %d"' % (number % 700)) for number in range(40_000)]
    many[20_000] = EVENT.replace(rb'"name":"a"', rb'"name":"\u00e9"')
    (tmp_path / "many.json").write_bytes(b"[" + b",".join(many) + b"]")
    assert_same_both(both(tmp_path / "many.json", chunk_bytes=8 << 20))


TOKENS = [
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"-", b"1e5", b"true", rb"\u00e9", rb"\ud800"),
    *(b"\xff", "é".encode(), b"\n", b"0", b"9" * 20, b'"ph": "B"', b'"ts": "5"', b"4611686018427387904", b".1234"),
    *(
        rb"\n",
        rb"\x",
        b"\x00",
        b'"args": {}',
        b'"args": null',
        b'"External id": 5',
        b'"external id": 7',
        b'"pid": null',
    ),
    *(b'"Call line": "a"', b'"Collective name": "x"', b'"tid": "stream 7"'),
]


def damaged(random_, events):
    """A few events as text, with a few places of it cut, doubled, replaced or filled with noise."""
    sample = random_.sample(events, min(len(events), random_.choice([1, 3, 10, 30])))
    shape = {"schemaVersion": 1, "traceEvents": sample} if random_.random() < 0.8 else sample
    text = bytearray(json.dumps(shape, indent=random_.choice([None, 1]), ensure_ascii=random_.random() < 0.5).encode())
    for _ in range(random_.choice([1, 1, 2, 8])):
        place, token = random_.randrange(len(text)), random_.choice(TOKENS)
        values = list(re.finditer(rb"(?<=: )[^,}\n]+", bytes(text)))
        value = random_.choice(values).span() if values else (place, place)
        begin, end, new = random_.choice(
            [
                (place, place + 1, token),
                (place, place, token),
                (place, place + random_.choice([1, 5, 40]), b""),
                (place, place + 1, bytes([random_.randrange(256)])),
                (place, place, bytes(text[place // 2 : place // 2 + 200])),
                (*value, token),
            ]
        )
        text[begin:end] = new
        text = text or bytearray(b"[")
    return bytes(text)


@pytest.mark.parametrize("cases", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_traces(both, tmp_path, cases):
    random_ = random.Random(cases)
    sources = [json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] for path in REAL[-12:]]
    for _ in range(cases):
        text = damaged(random_, random_.choice(sources))
        (tmp_path / "damaged.json").write_bytes(text)
        try:
            found = both(tmp_path / "damaged.json", chunk_bytes=random_.choice([7, 64, 300, 1 << 20]))
            assert_same_both(found, same_mends=False)
        except AssertionError:
            (tmp_path / "found.json").write_bytes(text)
            raise


def test_without_it_python_reads(monkeypatch):
    monkeypatch.setenv(quick.WITHOUT, "1")
    quick.compiled.cache_clear()
    assert ColumnBuilder().taker() is None
    monkeypatch.undo()
    quick.compiled.cache_clear()
    assert ColumnBuilder().taker() is not None


def test_a_library_that_cannot_be_loaded_is_done_without(monkeypatch, tmp_path):
    (tmp_path / "quick.compiled").write_bytes(b"no library")
    monkeypatch.setattr(quick, "LIBRARY", tmp_path / "quick.compiled")
    quick.compiled.cache_clear()
    assert quick.compiled() is None
    monkeypatch.undo()
    quick.compiled.cache_clear()
