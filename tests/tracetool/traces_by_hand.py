"""Traces of a few events, written by hand, and tables of what they must count.

Times are microseconds (a `Decimal` or a text for nanoseconds). A call lasts 1 us, device work 10 us, unless
told otherwise; events are on thread 1 of process 9 unless `on` moves them; device work is on device 0, stream 7.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from decimal import Decimal
from pathlib import Path

import tracetool
from tracetool.metrics import METRICS, PEAK
from tracetool.ranges import range_source

from .oracles import brute_force

EXACT = [name for name, metric in METRICS.items() if metric.exact and name != PEAK]
PAGEABLE = "Memcpy HtoD (Pageable -> Device)"
PINNED = "Memcpy HtoD (Pinned -> Device)"


def event(cat, name, start, duration, **args):
    """One complete event."""
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 1, "ts": start, "dur": duration, "args": args}


def rng(name, start, end, **args):
    """A range, from start to end."""
    return event("user_annotation", name, start, end - start, **args)


def op(name, start, end, ext=None, **args):
    return event("cpu_op", name, start, end - start, **({"External id": ext} if ext is not None else {}), **args)


def call(name, at, corr=None, dur=1, cat="cuda_runtime", ext=None):
    ids = {"correlation": corr, "External id": ext}
    return event(cat, name, at, dur, **{key: value for key, value in ids.items() if value is not None})


def kernel(at, corr, dur=10, name="some_kernel", device=0, stream=7, **args):
    return {**event("kernel", name, at, dur, correlation=corr, **args), "pid": device, "tid": stream}


def memcpy(at, corr, size=8, name=PAGEABLE, dur=10):
    return {**event("gpu_memcpy", name, at, dur, correlation=corr, bytes=size), "pid": 0, "tid": 7}


def memset(at, corr, size=8, dur=10):
    return {**event("gpu_memset", "Memset (Device)", at, dur, correlation=corr, bytes=size), "pid": 0, "tid": 7}


def launch(at, corr, gpu_at=None, **kernel_args):
    """A kernel launch and its kernel."""
    return [call("cudaLaunchKernel", at, corr), kernel(at + 5 if gpu_at is None else gpu_at, corr, **kernel_args)]


def python(name, start, end):
    return event("python_function", name, start, end - start)


def alloc(at, size, **args):
    """A `[memory]` instant; a negative size is a release."""
    return {**event("cpu_instant_event", "[memory]", at, 0, Bytes=size, **args), "ph": "i", "s": "t"}


def compiled(name, start, end, cache_hit=False, **args):
    return event("compile", name, start, end - start, cache_hit=cache_hit, **args)


def flow(number, source, source_at, target, target_at):
    """A `fwdbwd` flow from one thread to another."""
    ends = (("s", source, source_at), ("f", target, target_at))
    return [
        {"ph": ph, "cat": "fwdbwd", "name": "fwdbwd", "id": number, "pid": 9, "tid": tid, "ts": ts, "bp": "e"}
        for ph, tid, ts in ends
    ]


def on(tid, *events, pid=9):
    """The events, on another thread; device work stays on its device."""
    return [one if one["cat"] in brute_force.DEVICE_WORK else {**one, "tid": tid, "pid": pid} for one in flat(events)]


def thread_name(tid, name):
    return {"ph": "M", "name": "thread_name", "pid": 9, "tid": tid, "args": {"name": name}}


def flat(events):
    """Events out of nested lists, in their order."""
    return list(itertools.chain.from_iterable(flat(e) if isinstance(e, list | tuple) else [e] for e in events))


def trace(*events, **metadata):
    """A trace as a dict."""
    return {"schemaVersion": 1, **metadata, "traceEvents": flat(events)}


def to_json(content):
    """Text of a trace; the digits of `Decimal` and text times stand as they are."""
    digits: list[str] = []

    def keep(value):
        digits.append(f"{value}")
        return f"<digits {len(digits) - 1}>"

    text = json.dumps(content, default=lambda value: keep(value) if isinstance(value, Decimal) else str(value))
    for number, value in enumerate(digits):
        text = text.replace(f'"<digits {number}>"', value)
    return text


def read(content, **options):
    """What tracetool reads of a trace (a dict or list), of text or of bytes."""
    data = content if isinstance(content, bytes) else (content if isinstance(content, str) else to_json(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return tracetool.read(str(path), **options)


def summary(*events, ranges_as=()):
    """The summary of a few events, after tracetool and the brute-force counter have agreed on all of them."""
    found = tracetool.summarize(read(trace(*events)), ranges_as=[range_source(text) for text in ranges_as])
    found.check()
    if not ranges_as:
        assert_equals_brute_force(found, trace(*events))
    return found


def findings(content):
    """The codes of health and their severities, as `{code: severity}`."""
    found = tracetool.summarize(read(content)).health.findings
    return {finding.code: finding.severity.value for finding in found}


# What is counted -----------------------------------------------------------------------------------------------


def selfs(found):
    """Every exact metric of each row's self, without zeros and rows without counts."""
    rows = {path: {} for path in found.paths}
    for metric in [*EXACT, *found.op_metrics]:
        for path, value in zip(found.paths, found.own(metric).tolist(), strict=True):
            if value:
                rows[path][metric] = value
    return {path: counts for path, counts in rows.items() if counts}


def exact_only(counts):
    return {name: value for name, value in counts.items() if name in EXACT and value}


def nonzero(rows):
    return {path: {name: n for name, n in counts.items() if n} for path, counts in rows.items() if any(counts.values())}


def without_op_calls(counts):
    return {name: n for name, n in counts.items() if n and not name.startswith("op_calls")}


def assert_equals_brute_force(found, content):
    """Every exact metric of self, both ways; what came via autograd; threads; steps; busy times."""
    expected = brute_force.count(content)
    assert selfs(found) == nonzero(expected.own)
    via = {found.paths[row]: exact_only(counts) for row, counts in found.via_autograd.items()}
    assert nonzero(via) == nonzero({path: without_op_calls(counts) for path, counts in expected.via_autograd.items()})
    threads = found.work.events.threads
    by_thread = {
        (found.paths[row], (threads[number].pid, threads[number].tid)): exact_only(counts)
        for row, numbers in found.threads.items()
        for number, counts in numbers.items()
    }
    assert nonzero(by_thread) == nonzero(
        {
            (path, thread): without_op_calls(counts)
            for path, rows in expected.by_thread.items()
            for thread, counts in rows.items()
        }
    )
    steps = [(number, exact_only(counts)) for number, counts in found.steps]
    assert steps == [(number, without_op_calls(counts)) for number, counts in expected.steps]
    assert {
        path: peak for path, peak in zip(found.paths, found.own(PEAK).tolist(), strict=True) if peak
    } == expected.peak
    both = zip(found.own("gpu_busy_ns").tolist(), found.total("gpu_busy_ns").tolist(), strict=True)
    busy = dict(zip(found.paths, both, strict=True))
    assert {path: busy[path] for path in expected.busy} == expected.busy


def assert_table(found, table, scope="self"):
    """Compare with a table of text: the metrics in its first line, then a line for each row that counts any.

    Every row that counts any of the metrics must be there; `.` is 0. Names of a path are joined by slashes.
    """
    header, *lines = [line.split() for line in table.strip().splitlines()]
    expected = {}
    for words in lines:
        numbers = words[-len(header) :]
        expected[" ".join(words[: -len(header)])] = [0 if number == "." else int(number) for number in numbers]
    columns = [found.value(metric, scope).tolist() for metric in header]
    rows = {"/".join(path): list(values) for path, *values in zip(found.paths, *columns, strict=True)}
    assert {path: values for path, values in rows.items() if any(values)} == expected
