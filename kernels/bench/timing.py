"""How long a call takes on the GPU, and how fast the GPU can read."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Far more than the 60 MB of L2 on an H200, so that no input is still cached when its turn comes again.
ROTATION_BYTES = 512 * 2**20


class Time(NamedTuple):
    """Microseconds a call: the median, and the least and the most of the repeats."""

    us: float
    least: float
    most: float

    @property
    def spread(self) -> float:
        """Half the width of the repeats' middle range, as a share of the median."""
        return (self.most - self.least) / 2 / self.us


def copies_for(nbytes: int) -> int:
    """How many sets of inputs to rotate."""
    return max(1, math.ceil(ROTATION_BYTES / nbytes))


def graph_time(calls: Sequence[Callable[[], object]], *, launches: int = 20, repeats: int = 15) -> Time:
    """Replay the calls from one CUDA graph, in turn, and divide by their number.

    Args:
        calls: One call for each set of inputs.
        launches: At least so many calls a graph.
        repeats: Replays that are timed one by one; their median and middle half are given.
    """
    rounds = math.ceil(launches / len(calls))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / (rounds * len(calls)))
    quarter, _, three_quarters = statistics.quantiles(times, n=4)
    return Time(statistics.median(times), quarter, three_quarters)


def host_time(call: Callable[[], object], *, launches: int = 200, repeats: int = 9) -> Time:
    """Microseconds of CPU time until the call returns, the GPU kept out of the way by short queues."""
    for _ in range(10):
        call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(launches):
            call()
        times.append((time.perf_counter() - start) * 1e6 / launches)
    torch.cuda.synchronize()
    quarter, _, three_quarters = statistics.quantiles(times, n=4)
    return Time(statistics.median(times), quarter, three_quarters)


@triton.jit
def read_bandwidth_kernel(out_ptr, in_ptr, BLOCK: tl.constexpr):
    """Each program reads one block of floats and keeps their sum."""
    pid = tl.program_id(0).to(tl.int64)
    values = tl.load(in_ptr + pid * BLOCK + tl.arange(0, BLOCK))
    tl.store(out_ptr + pid, tl.sum(values, 0))


def read_bandwidth(nbytes: int = 4 * 2**30) -> float:
    """Bytes a second at which a kernel that does nothing else reads."""
    best = 0.0
    source = torch.randn(nbytes // 4, device="cuda")
    for block, warps in ((4096, 4), (8192, 8), (8192, 4), (16384, 8)):
        sums = torch.empty(source.numel() // block, device="cuda")

        def read(sums: Tensor = sums, block: int = block, warps: int = warps) -> None:
            read_bandwidth_kernel[(len(sums),)](sums, source, BLOCK=block, num_warps=warps)

        best = max(best, nbytes / graph_time([read], launches=3).us * 1e6)
    return best


@triton.jit
def empty_kernel():
    """Does nothing: what a launch costs by itself."""
