"""What is compiled and tuned while a program is captured, in the range where it happened, on the trace's clock."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import record_function
from triton import knobs
from triton.runtime.autotuner import Autotuner

import tracetool
from tests.tracetool.capturing.captured import count, events_of, summary_of
from tracetool.capturing import compiles
from tracetool.capturing.compiles import HostEvent
from tracetool.events import Category


class Compiling:
    """In place of a compilation by Triton, which needs a GPU: takes time, and tells of it as Triton does."""

    def __init__(self, name="kernel", *, hit=False):
        self._name, self._hit = name, hit
        self.us = 0

    def run(self):
        began = time.perf_counter_ns()
        torch.ones(3).add(1)
        self.us = (time.perf_counter_ns() - began) // 1000
        times = SimpleNamespace(
            ir_initialization=0, lowering_stages=[("ttir", 0), ("ptx", self.us)], store_results=0, total=self.us
        )
        knobs.compilation.listener(
            src=SimpleNamespace(
                name=self._name,
                signature={"x_ptr": "*fp32", "n": "i32"},
                attrs={(0,): [["tt.divisibility", 16]], (1,): [["tt.other", 16]]},
            ),
            metadata={"hash": "abc", "name": self._name, "num_warps": 4},
            metadata_group={},
            times=times,
            cache_hit=self._hit,
        )


def of_category(path, category):
    return [event for event in events_of(path) if event.get("cat") == category]


def test_a_compilation_is_counted_where_it_happened():
    compiled, hit = Compiling(), Compiling(hit=True)
    with tracetool.capture("x.json.gz"):
        with record_function("cold"):
            compiled.run()
        with record_function("warm"):
            hit.run()
        torch.ones(3)
    summary = summary_of("x.json.gz")
    metrics = ("compiles", "compile_cache_hits")
    assert [count(summary, name, "cold") for name in metrics] == [1, 0]
    assert [count(summary, name, "warm") for name in metrics] == [0, 1]
    assert count(summary, "compile_ns", "cold") == compiled.us * 1000
    assert sum(summary.totals.get(name, 0) for name in metrics) == 2


def test_what_is_told_of_a_compilation():
    with tracetool.capture("x.json.gz"):
        Compiling("decode_kernel").run()
    (event,) = of_category("x.json.gz", "compile")
    assert event["name"] == "decode_kernel"
    assert event["tid"] == threading.get_native_id()
    arguments = event["args"]
    assert {"backend": "triton", "cache_hit": False, "key": "abc", "num_warps": 4}.items() <= arguments.items()
    assert arguments["signature"] == "x_ptr: *fp32, n: i32"
    assert arguments["multiples_of_16"] == "x_ptr"
    assert list(arguments["stages_us"]) == ["make IR", "ttir", "ptx", "store"]
    assert arguments["stages_us"]["ptx"] * 1000 == round(event["dur"] * 1000)


def test_it_lies_inside_its_range_to_the_nanosecond():
    with tracetool.capture("x.json.gz"):
        for _ in range(20):
            with record_function("cold"):
                Compiling().run()
    events = tracetool.read("x.json.gz").events
    rows, ranges = events.of(Category.COMPILE).tolist(), events.of(Category.RANGE).tolist()
    assert len(rows) == len(ranges) == 20
    for row, around in zip(rows, ranges, strict=True):
        assert events.start[around] <= events.start[row] <= events.end[row] <= events.end[around]
    assert count(summary_of("x.json.gz"), "compiles", "cold") == 20


def test_a_compilation_on_another_thread():
    def work():
        with record_function("in a thread"):
            Compiling().run()

    with tracetool.capture("x.json.gz"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert count(summary_of("x.json.gz"), "compiles", "in a thread") == 1


def test_a_listener_of_the_program_is_told_too_and_stays(monkeypatch):
    heard = []
    monkeypatch.setattr(knobs.compilation, "listener", lambda **told: heard.append(told["metadata"]["name"]))
    before = knobs.compilation.listener
    with tracetool.capture("x.json.gz"):
        assert knobs.compilation.listener is not before
        Compiling().run()
    assert heard == ["kernel"]
    assert knobs.compilation.listener is before


def test_nobody_listens_before_and_after():
    before = Autotuner.run
    with tracetool.capture("x.json.gz"):
        torch.ones(3)
    assert knobs.compilation.listener is None
    assert Autotuner.run is before


def test_a_triton_that_tells_of_nothing_is_noted(monkeypatch):
    monkeypatch.setattr(compiles, "_triton_knobs", lambda: None)
    with tracetool.capture("x.json.gz"):
        torch.ones(3)
    assert summary_of("x.json.gz").metadata["tracetool"]["compiles"] is False


# torch.compile ------------------------------------------------------------------------------------------------


def test_torch_compile_is_counted_where_it_was_called():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x * 2 + 1, backend="eager")
    with tracetool.capture("x.json.gz"):
        for name in ("first", "second"):
            with record_function(name):
                compiled(torch.ones(3))
    summary = summary_of("x.json.gz")
    assert [count(summary, "compiles", name) for name in ("first", "second")] == [1, 0]
    assert 0 < count(summary, "compile_ns", "first") < count(summary, "cpu_ns", "first")
    torch._dynamo.reset()


def test_what_was_compiled_before_is_not_told():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x - 2, backend="eager")
    compiled(torch.ones(3))
    with tracetool.capture("x.json.gz"):
        compiled(torch.ones(3))
    assert of_category("x.json.gz", "compile") == []
    torch._dynamo.reset()


# Autotuning ---------------------------------------------------------------------------------------------------


class Config:
    """Stands for a `triton.Config`."""

    pre_hook = None

    def __init__(self, warps):
        self.warps = warps

    def __str__(self):
        return f"num_warps: {self.warps}"

    def all_kwargs(self):
        return {}


def a_tuner():
    """Triton's own tuner, whose kernel does nothing and whose times are made up."""

    def kernel(**_):
        pass

    tuner = Autotuner.__new__(Autotuner)
    kernel.run = lambda *_, **__: torch.ones(3)
    vars(tuner).update(
        fn=kernel,
        base_fn=kernel,
        arg_names=["n"],
        keys=["n"],
        configs=[Config(4), Config(8)],
        cache={},
        cache_results=False,
        early_config_prune=None,
        perf_model=None,
        pre_hook=lambda *_, **__: None,
        _bench=lambda *_, config, **__: [1.0 / config.warps] * 3,
    )
    return tuner


def test_autotuning_is_noted_where_it_happened():
    tuner = a_tuner()
    with tracetool.capture("x.json.gz"):
        for n in (5, 5, 6):
            with record_function(f"n = {n}"):
                tuner.run(n)
    tuned = of_category("x.json.gz", "autotune")
    assert [event["name"] for event in tuned] == ["kernel", "kernel"]
    assert tuned[0]["args"]["best"] == "num_warps: 8"
    assert tuned[0]["args"]["tried"] == {"num_warps: 4": [0.25] * 3, "num_warps: 8": [0.125] * 3}
    ranges = of_category("x.json.gz", "user_annotation")
    for event, around in zip(tuned, (ranges[0], ranges[2]), strict=True):
        assert around["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= around["ts"] + around["dur"]
    assert count(summary_of("x.json.gz"), "ops", "n = 5") == 2


# Times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "duration", "ts", "dur"),
    [
        (1_790_857_026_000_000_000, 0, "0.000", "0.000"),
        (1_790_857_026_000_000_001, 999, "0.001", "0.999"),
        (1_790_857_026_000_001_000, 1000, "1.000", "1.000"),
        (1_795_589_318_754_074_123, 12_345_678, "4732292754074.123", "12345.678"),
        (1_790_857_025_999_999_999, 1, "-0.001", "0.001"),
        (1_790_857_025_999_998_500, 1, "-1.500", "0.001"),
    ],
)
def test_all_three_decimals_are_kept(tmp_path, start, duration, ts, dur):
    event = HostEvent("compile", 'a "kernel"\n', start, duration, 7, {"key": "é"})
    text = event.as_chrome(1_790_857_026_000_000_000)
    assert f'"ts": {ts}, "dur": {dur},' in text
    (tmp_path / "t.json").write_text(f'{{"traceEvents": [{text}]}}')
    events = tracetool.read(str(tmp_path / "t.json")).events
    assert int(events.start[0]) == start - 1_790_857_026_000_000_000
    assert int(events.end[0] - events.start[0]) == duration
    assert events.names[events.name[0]] == 'a "kernel"\n'
