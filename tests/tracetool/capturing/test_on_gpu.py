"""Captures of programs that use a GPU, each in a process of its own: one of the CPU alone would spoil the next."""

import subprocess
import sys

import pytest

from tests.tracetool.capturing.captured import Captured, count, environment, process, summary_of

pytestmark = pytest.mark.gpu

WORK = """
    import torch
    from torch.profiler import record_function

    x = torch.ones(1024, device="cuda")
    for _ in range(3):
        with record_function("work"):
            x = x * 2
    torch.cuda.synchronize()
"""


@pytest.fixture
def capture(workplace):
    """Captures into a file, in another process."""

    def call(*arguments, to="t.json.gz", **variables):
        done = process("capture", "-o", to, *arguments, env=environment(**variables))
        return Captured(done.returncode, done.stdout, done.stderr, workplace / to)

    return call


# Device events ------------------------------------------------------------------------------------------------


def test_a_small_program(capture, write):
    done = capture(write("work.py", WORK))
    assert (done.code, done.err) == (0, "")
    assert done.count("kernel_launches", "work") == 3
    assert done.count("kernels", "work") == 3
    assert done.summary.health.verdict == "ok"
    assert done.about["expects_device"] is True
    assert done.about["gpus"]
    assert done.about["driver"]
    assert done.about["versions"]["cuda"]


def test_steps_of_a_window(capture, write):
    write("calls.py", WORK + "\ndef step():\n    x.add_(1)\n".replace("\n", "\n    "))
    done = capture("calls:step", "--active", "2")
    assert (done.code, done.err) == (0, "")
    assert done.count("kernel_launches", "ProfilerStep") == 2


def test_a_program_that_leaves_the_gpu_alone(capture, write):
    write("idle.py", "import torch\ntorch.ones(3).add(1)\n")
    done = capture("idle.py")
    assert done.code == 2
    assert done.sentence.startswith("t.json.gz: there is a GPU, and the trace has not one device event")
    assert done.path.exists()
    done = capture("idle.py", "--cpu", "--force")
    assert (done.code, done.err) == (0, "")


FALSE_ZEROS = """
    import torch, tracetool
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]):
        torch.ones(3)
    with tracetool.capture("t.json.gz") as one:
        torch.ones(3, device="cuda").mul(2)
        torch.cuda.synchronize()
    print(one.result.warning)
"""


def test_no_zero_is_silent(write, workplace):
    write("zeros.py", FALSE_ZEROS)
    done = subprocess.run(
        [sys.executable, "zeros.py"], capture_output=True, text=True, timeout=120, check=True, env=environment()
    )
    summary = summary_of(workplace / "t.json.gz")
    # Whether this torch still forgets the GPU after a CPU-only profile or not: nothing is lost without a word.
    assert ("not one device event" in done.stdout) is (count(summary, "kernels", "(no range)") == 0)


def test_memory_of_the_gpu(capture, write):
    text = """
        import torch
        from torch.profiler import record_function

        with record_function("work"):
            torch.empty(1024, device="cuda").fill_(1)
    """
    done = capture(write("work.py", text), "--memory")
    assert done.code == 0
    assert done.count("allocs", "work") == 1
    assert done.count("alloc_bytes", "work") >= 4096


def test_threads_that_launch(capture, write):
    text = """
        import threading, torch
        from torch.profiler import record_function

        x = torch.ones(1024, device="cuda")

        def work():
            with record_function("in a thread"):
                x.mul(2)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        torch.cuda.synchronize()
    """
    done = capture(write("threads.py", text))
    assert done.code == 0
    assert done.count("kernel_launches", "in a thread") == 1


# Lines --------------------------------------------------------------------------------------------------------

TRAIN = """
import torch, tracetool

weight = torch.ones(64, 64, device="cuda", requires_grad=True)
for number in range(6):
    x = torch.tensor([[1.0] * 64] * 64, device="cuda")
    y = x @ weight
    loss = y.square().sum()
    loss.backward()
    tracetool.step()
"""


def test_lines_of_copies_and_of_the_autograd_thread(capture, write):
    done = capture(write("train.py", TRAIN), "--lines", "--active", "2")
    assert (done.code, done.err) == (0, "")
    row = done.summary.paths.index(("ProfilerStep",))
    by_line = done.summary.contributors(row, "line")
    assert by_line["train.py:6"]["h2d_copies"] == 2
    # Forward and backward of the matrix product, and of what follows it.
    assert by_line["train.py:7"]["kernel_launches"] >= 4
    assert by_line["train.py:8"]["kernel_launches"] >= 4
    told = sum(counts.get("kernel_launches", 0) for counts in by_line.values())
    assert told == done.count("kernel_launches", "ProfilerStep")


# Triton -------------------------------------------------------------------------------------------------------

TRITON = """
    import torch, triton
    import triton.language as tl
    from torch.profiler import record_function

    @triton.jit
    def double(x_ptr, n, BLOCK: tl.constexpr):
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offs, mask=offs < n)
        tl.store(x_ptr + offs, x * 2, mask=offs < n)

    x = torch.ones(1024, device="cuda")
    for name in ("first", "second"):
        with record_function(name):
            double[(8,)](x, 1024, BLOCK=128)
    torch.cuda.synchronize()
"""
COMPILES = ("compiles", "compile_cache_hits")


def test_compilations_with_a_cold_and_with_a_warm_cache(capture, write, workplace):
    write("kernel.py", TRITON)
    cache = {"TRITON_CACHE_DIR": str(workplace / "cache")}
    cold = capture("kernel.py", **cache)
    assert (cold.code, cold.err) == (0, "")
    assert [cold.count(name, "first") for name in COMPILES] == [1, 0]
    assert [cold.count(name, "second") for name in COMPILES] == [0, 0]
    assert 0 < cold.count("compile_ns", "first") < cold.count("cpu_ns", "first")
    warm = capture("kernel.py", "--force", **cache)
    assert [warm.count(name, "first") for name in COMPILES] == [0, 1]
    again = capture("kernel.py", "--force", "--cold", **cache)
    assert [again.count(name, "first") for name in COMPILES] == [1, 0]
    # Inside the range around it, and as it was called.
    (event,) = [event for event in again.events if event.get("cat") == "compile"]
    assert event["name"] == "double"
    assert event["args"]["backend"] == "triton"
    assert {"ttir", "ttgir", "llir", "ptx", "cubin"} <= event["args"]["stages_us"].keys()


TUNED = TRITON.replace(
    "@triton.jit\n",
    '@triton.autotune([triton.Config({"BLOCK": 128}), triton.Config({"BLOCK": 256})], key=["n"])\n    @triton.jit\n',
).replace("double[(8,)](x, 1024, BLOCK=128)", "double[(8,)](x, 1024)")


def test_autotuning(capture, write, workplace):
    done = capture(write("tuned.py", TUNED), TRITON_CACHE_DIR=str(workplace / "cache"))
    assert (done.code, done.err) == (0, "")
    (event,) = [event for event in done.events if event.get("cat") == "autotune"]
    assert event["name"] == "double"
    assert len(event["args"]["tried"]) == 2
    assert event["args"]["best"] in event["args"]["tried"]
    (first,) = [event for event in done.events if event.get("name") == "first" and event["cat"] == "user_annotation"]
    assert first["ts"] <= event["ts"] <= event["ts"] + event["dur"] <= first["ts"] + first["dur"]
    assert [done.count("compiles", name) for name in ("first", "second")] == [2, 0]
