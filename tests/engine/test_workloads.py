"""The engine as something to capture: what each workload's steps do, in traces of their own and without."""

import importlib.util
import subprocess
import sys

import pytest

import tracetool
from engine.errors import ConfigError
from engine.workloads import WORKLOADS, lengths_of
from tests.device import CUDA
from tests.pairwise import pairwise
from tests.tracetool.capturing.captured import ROOT, one_sentence, process
from tracetool.cli import main

BY_NAME = {workload.name: workload for workload in WORKLOADS}
TOY = {"model": "tiny-gpt2", "device": "cpu"}
DECODE = {**TOY, "batch_size": "5", "context": "32"}
SERVE = {**TOY, "batch_size": "3", "prompt_tokens": "5", "new_tokens": "6"}
# After a CPU-only profile a process sees no device events any more (pytorch #197005).
cpu_only = pytest.mark.skipif(CUDA, reason="profiles the CPU alone, which would spoil this process for the GPU")


def start(name, settings):
    axes = BY_NAME[name].axes
    assert settings.keys() <= axes.keys()
    return BY_NAME[name].start({axis: settings.get(axis, about.default) for axis, about in axes.items()})


def after(name, steps, **settings):
    """What the steps of a workload come to."""
    session = start(name, settings)
    for _ in range(steps):
        session.step()
    return session.result()


@pytest.fixture
def capture(tmp_path, monkeypatch, capsys):
    """Captures a workload as the command line does; gives exit code, standard error and the summary."""
    monkeypatch.chdir(ROOT)

    def call(name, *options, **settings):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.json.gz"
        chosen = [word for axis, value in settings.items() for word in ("--set", f"{axis}={value}")]
        code = main(["capture", name, "-o", str(path), *options, *chosen])
        err = capsys.readouterr().err
        return code, err, tracetool.summarize(tracetool.read(str(path))) if path.exists() else None

    return call


def in_steps(summary, metric, *path):
    """A metric of a range in each step."""
    return summary.step_samples(metric, summary.paths.index(("ProfilerStep", *path))).tolist()


# Lengths ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "batch", "context", "block_size", "lengths"),
    [
        ("equal", 3, 64, 16, [66, 66, 66]),
        ("equal", 3, 70, 16, [66, 66, 66]),
        ("equal", 2, 1, 16, [34, 34]),
        ("equal", 2, 64, 4, [66, 66]),
        ("ragged", 5, 64, 16, [50, 67, 84, 53, 66]),
        ("ragged", 3, 64, 4, [62, 67, 72]),
        ("crossing", 4, 64, 16, [65, 64, 63, 62]),
        ("crossing", 6, 64, 4, [65, 64, 63, 62, 65, 64]),
    ],
)
def test_lengths(kind, batch, context, block_size, lengths):
    assert lengths_of(kind, batch, context, block_size) == lengths


def entering(lengths, block_size, step):
    """How many sequences enter a block in a step: the first token of a block is computed in it."""
    return sum((length + step) % block_size == 1 for length in lengths)


@pytest.mark.parametrize(
    ("kind", "batch", "block_size", "steps"),
    [("equal", 8, 16, 15), ("ragged", 8, 16, 12), ("equal", 8, 4, 3), ("ragged", 3, 4, 1)],
)
def test_steady_lengths_enter_no_block_for_so_many_steps(kind, batch, block_size, steps):
    lengths = lengths_of(kind, batch, 64, block_size)
    entered = [entering(lengths, block_size, step) for step in range(steps + 1)]
    assert entered[:-1] == [0] * steps
    assert entered[-1] > 0


@pytest.mark.parametrize(("batch", "block_size", "each"), [(16, 16, 1), (4, 4, 1), (8, 4, 2), (32, 16, 2)])
def test_crossing_lengths_enter_a_block_in_every_step(batch, block_size, each):
    lengths = lengths_of("crossing", batch, 64, block_size)
    assert [entering(lengths, block_size, step) for step in range(20)] == [each] * 20


def test_crossing_lengths_of_few_sequences_end():
    lengths = lengths_of("crossing", 3, 64, 16)
    assert [entering(lengths, 16, step) for step in range(5)] == [1, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("lengths", "block_size", "grown"),
    [
        ("equal", "16", [0] * 5),
        ("ragged", "16", [0] * 5),
        ("crossing", "16", [1] * 5),
        ("equal", "4", [0, 0, 0, 5, 0]),
        ("crossing", "4", [2, 1, 1, 1, 2]),
    ],
)
def test_block_tables_grow_as_lengths_say(lengths, block_size, grown):
    session = start("decode", {**DECODE, "lengths": lengths, "block_size": block_size})

    def blocks():
        return sum(len(seq.block_table) for seq in session._seqs)

    found = []
    for _ in grown:
        before = blocks()
        session.step()
        found.append(blocks() - before)
    assert found == grown


# Through a capture --------------------------------------------------------------------------------------------

BUILD, SEND = ("decode_step", "build_block_tables"), ("decode_step", "h2d_block_tables")


@cpu_only
@pytest.mark.parametrize("lengths", ["equal", "ragged"])
def test_a_steady_window_is_steady(capture, lengths):
    code, err, summary = capture("decode", **DECODE, lengths=lengths)
    assert (code, err) == (0, "")
    assert summary.step_count == 3
    assert in_steps(summary, "ops", *BUILD) == [0, 0, 0]
    assert len(set(in_steps(summary, "ops", "decode_step"))) == 1
    assert in_steps(summary, "calls", "decode_step") == [1, 1, 1]
    assert not any("prefill" in path for path in summary.paths)


@cpu_only
def test_every_step_of_a_crossing_window_crosses(capture):
    code, err, summary = capture("decode", **DECODE, lengths="crossing")
    assert (code, err) == (0, "")
    for path in (BUILD, SEND):
        ops = in_steps(summary, "ops", *path)
        assert len(ops) == 3
        assert min(ops) > 1
        assert len(set(ops)) == 1


@cpu_only
def test_requests_come_and_go(capture):
    code, err, summary = capture("serve", "--active", "12", **SERVE)
    assert (code, err) == (0, "")
    assert in_steps(summary, "calls", "decode_step") == [1] * 12
    # Each request lives for six steps, and three are there at a time.
    prefills = in_steps(summary, "calls", "prefill")
    assert sum(prefills) == 6
    assert max(prefills) == 1


@cpu_only
def test_lines_are_those_of_the_engine(capture):
    code, err, summary = capture("decode", "--lines", **DECODE)
    assert (code, err) == (0, "")
    told = summary.metadata["tracetool"]["lines"]
    assert told["known"] == told["ops"] > 0
    row = summary.paths.index(("ProfilerStep", "decode_step", "sample"))
    files = {name.partition(":")[0] for name in summary.contributors(row, "line")}
    assert files == {"engine/variants/sampler.py", "engine/variants/inputs.py"}


@cpu_only
def test_a_trace_knows_its_axes(capture):
    _, _, summary = capture("decode", **DECODE, kv_append="torch_indexed")
    about = summary.metadata["tracetool"]
    assert about["workload"] == "decode"
    assert about["axes"].keys() == BY_NAME["decode"].axes.keys()
    assert about["axes"].items() >= {**DECODE, "kv_append": "torch_indexed"}.items()


@cpu_only
def test_more_steps_than_the_context_has(capture):
    code, err, summary = capture("decode", "--active", "40", **{**DECODE, "context": "224"})
    assert code == 2
    assert "a sequence has come to the end of the model's context; run fewer steps, or lower context" in err
    # From 226 tokens to 256, two steps of which warm up; the one that failed is cut.
    assert summary.step_count == 30 - 2 + 1


# Results ------------------------------------------------------------------------------------------------------

# Those that need the compiler are compared where kernels are tested.
ON_A_CPU = {
    "block_tables": list(BY_NAME["decode"].axes["block_tables"].values),
    "inputs": ["per_tensor", "packed_pinned", "on_device"],
    "sampler": ["item_loop", "batched", "on_device"],
    "kv_append": ["torch_indexed", "slot_mapping", "fused"],
}


@pytest.fixture(scope="module")
def expected():
    """What the defaults come to: 20 steps, over the edge of a block."""
    return {
        "decode": after("decode", 20, **DECODE),
        "serve": after("serve", 20, **SERVE),
    }


@pytest.mark.parametrize("chosen", pairwise(ON_A_CPU), ids=lambda chosen: "-".join(chosen.values()))
def test_variants_come_to_the_same(expected, chosen):
    if chosen["inputs"] == "on_device" and chosen["sampler"] == "item_loop":
        with pytest.raises(ConfigError):
            after("decode", 1, **DECODE, **chosen)
        chosen = {**chosen, "inputs": "packed_pinned"}
    if chosen["block_tables"] == "in_graph":
        fits = {"inputs": {"on_device"}, "sampler": {"on_device"}, "kv_append": {"slot_mapping", "fused"}}
        if any(chosen[axis] not in values for axis, values in fits.items()):
            with pytest.raises(ConfigError):
                after("decode", 1, **DECODE, **chosen)
        append = "fused" if chosen["kv_append"] == "torch_indexed" else chosen["kv_append"]
        chosen = {**chosen, "inputs": "on_device", "sampler": "on_device", "kv_append": append}
        assert after("decode", 20, **DECODE, **chosen, overlap="on") == expected["decode"]
    assert after("decode", 20, **DECODE, **chosen) == expected["decode"]
    assert after("serve", 20, **SERVE, **chosen) == expected["serve"]


@pytest.mark.parametrize("change", [{"seed": "1"}, {"temperature": "0.8"}, {"context": "48"}, {"lengths": "ragged"}])
def test_other_work_comes_to_something_else(expected, change):
    assert after("decode", 20, **{**DECODE, **change}) != expected["decode"]


def test_results_say_how_much_was_done(expected):
    # The first token comes with the prefill.
    assert expected["decode"]["length"] == 21
    assert expected["serve"]["requests"] >= 20 * 3 // 6


def test_lengths_of_a_step_are_those_asked_for():
    for lengths in ("equal", "ragged", "crossing"):
        session = start("decode", {**DECODE, "lengths": lengths})
        assert [len(seq.tokens) for seq in session._seqs] == lengths_of(lengths, 5, 32, 16)


# Settings that are wrong --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("decode", {"batch_size": "0"}, " cannot be set up: batch_size must be a number of at least 1, but is '0'"),
        ("decode", {"batch_size": "x"}, " cannot be set up: batch_size must be a number of at least 1, but is 'x'"),
        ("decode", {"context": "-5"}, " cannot be set up: context must be a number of at least 1, but is '-5'"),
        (
            "decode",
            {"context": "300"},
            " cannot be set up: context 300 leaves no room to decode in the model's 256 positions",
        ),
        ("decode", {"seed": "x"}, " cannot be set up: seed must be an integer, but is 'x'"),
        ("decode", {"lengths": "odd"}, ": lengths cannot be 'odd': there are equal, ragged, crossing"),
        ("decode", {"kv_append": "fusd"}, ": kv_append cannot be 'fusd': did you mean 'fused'?"),
        ("decode", {"batch": "3"}, " has no axis 'batch': did you mean 'batch_size'?"),
        ("serve", {"new_tokens": "0"}, " cannot be set up: new_tokens must be a number of at least 1, but is '0'"),
    ],
)
def test_wrong_settings(capture, name, settings, sentence):
    code, err, summary = capture(name, **{**(DECODE if name == "decode" else SERVE), **settings})
    assert (code, summary) == (2, None)
    assert one_sentence(err) == name + sentence


ALONE = ("prefill_shapes", "inverse_rope_fp8", "kv_append")


@pytest.mark.skipif(CUDA, reason="there is a GPU")
@pytest.mark.parametrize("name", ALONE)
def test_kernels_alone_need_a_gpu(capture, name):
    code, err, summary = capture(name)
    assert (code, summary) == (2, None)
    assert one_sentence(err) == (
        f"{name} cannot be set up: this workload launches kernels alone, and torch finds no GPU here"
    )


def test_every_workload_is_tested_here():
    assert set(BY_NAME) == {"decode", "serve", *ALONE}


def test_descriptions_are_one_line_each():
    for workload in WORKLOADS:
        assert "\n" not in workload.about
        for axis in workload.axes.values():
            assert axis.about
            assert not axis.values or axis.default in axis.values


PRELOADED = """
import importlib, sys, threading
from tests.engine.test_workloads import BY_NAME, DECODE, SERVE, after

for name in sorted({one for workload in BY_NAME.values() for one in workload.preload}):
    importlib.import_module(name)
before, threads = set(sys.modules), threading.active_count()
for model in ("tiny-gpt2", "tiny-qwen3"):
    after("decode", 1, **DECODE | {"model": model})
    after("serve", 1, **SERVE | {"model": model})
print(threads, sorted(set(sys.modules) - before))
"""


def test_what_is_preloaded_is_there():
    assert all(importlib.util.find_spec(name) for workload in WORKLOADS for name in workload.preload)


@pytest.mark.slow
def test_a_set_up_imports_nothing_that_was_not_preloaded():
    done = subprocess.run(
        [sys.executable, "-c", PRELOADED], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "1 []\n"


@pytest.mark.parametrize("name", ["decode", "serve"])
def test_the_twin_without_graphs_differs_in_nothing_else(name):
    settings = {axis: one.default for axis, one in BY_NAME[name].axes.items()}
    assert BY_NAME[name].eager(settings | {"cuda_graph": "off"}) is None
    asked = settings | {"cuda_graph": "buckets", "graph_sampling": "inside", "block_tables": "in_graph"}
    assert BY_NAME[name].eager(asked) == asked | {"cuda_graph": "off", "graph_sampling": "outside"}


# On a GPU, each in a process of its own -----------------------------------------------------------------------


def on_gpu(tmp_path, name, *options, **settings):
    path = tmp_path / "t.json.gz"
    chosen = [word for axis, value in settings.items() for word in ("--set", f"{axis}={value}")]
    done = process("capture", name, "-o", path, *options, *chosen, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    return tracetool.summarize(tracetool.read(str(path)))


@pytest.mark.gpu
@pytest.mark.parametrize("form", list(BY_NAME["kv_append"].axes["form"].values))
def test_an_append_by_itself(tmp_path, form):
    summary = on_gpu(tmp_path, "kv_append", form=form, batch_size=8, heads=2, block_size=16)
    launches = in_steps(summary, "kernel_launches")
    assert min(launches) >= 1
    assert len(set(launches)) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("specialize", ["default", "num_tokens", "complete"])
def test_new_numbers_of_tokens(tmp_path, specialize):
    summary = on_gpu(tmp_path, "prefill_shapes", "--active", "6", specialize=specialize, tokens=64, heads=8)
    assert min(in_steps(summary, "kernel_launches")) >= 1


@pytest.mark.gpu
def test_one_number_of_tokens_is_compiled_once(tmp_path):
    summary = on_gpu(tmp_path, "inverse_rope_fp8", tokens=64, heads=8)
    assert sum(in_steps(summary, "compiles")) == 0
    assert len(set(in_steps(summary, "kernel_launches"))) == 1


@pytest.mark.gpu
@pytest.mark.parametrize(("lengths", "copies"), [("equal", 0), ("crossing", 1)])
def test_copies_of_block_tables(tmp_path, lengths, copies):
    summary = on_gpu(tmp_path, "decode", model="tiny-gpt2", batch_size=8, lengths=lengths)
    assert in_steps(summary, "h2d_copies", *SEND) == [copies] * 3
