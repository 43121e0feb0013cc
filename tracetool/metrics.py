"""The one registry of metrics: every name, unit and meaning that tracetool knows."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from tracetool.errors import SettingError, nearest


class Unit(enum.StrEnum):
    """What a metric's numbers are."""

    COUNT = "count"
    BYTES = "bytes"
    NS = "ns"


class Needs(enum.StrEnum):
    """What a trace must hold for a metric to be checked in it at all."""

    NOTHING = "nothing"
    DEVICE = "device activity (calls of the CUDA, HIP or another runtime)"
    MEMORY = "memory profiling"
    COMPILES = "compiles, which `tracetool capture` records"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as it is written everywhere; the family `op_calls["NAME"]` has one for each op.
        unit: of its numbers.
        exact: a count that is the same on every machine, against a statistic of times.
        additive: a range's total is the sum of the selfs in it.
        needs: what a trace must hold for it.
        meaning: one sentence.
    """

    name: str
    unit: Unit
    exact: bool
    additive: bool
    needs: Needs
    meaning: str


def _exact(name: str, meaning: str, unit: Unit = Unit.COUNT, needs: Needs = Needs.DEVICE) -> Metric:
    return Metric(name, unit, exact=True, additive=True, needs=needs, meaning=meaning)


def _time(name: str, meaning: str, needs: Needs = Needs.DEVICE, *, additive: bool = True) -> Metric:
    return Metric(name, Unit.NS, exact=False, additive=additive, needs=needs, meaning=meaning)


DIRECTIONS = {
    "h2d": "host to device",
    "d2h": "device to host",
    "d2d": "device to device",
    "p2p": "device to another device",
    "other": "any other or an unknown direction",
}
HOST_MEMORY = {"pageable": "pageable", "pinned": "pinned (page-locked)"}
HOST_DIRECTIONS = ("h2d", "d2h")

PEAK = "peak_bytes"
"""The one metric whose parts do not add up to it: the largest of them is it."""

OP_CALLS = "op_calls"
_OP_CALLS = re.compile(r'op_calls\["(.+)"\]', re.DOTALL)


def _copies() -> list[Metric]:
    found = []
    for direction, words in DIRECTIONS.items():
        found.append(
            _exact(
                f"{direction}_copies",
                f"Copies from {words}." if direction != "other" else f"Copies in {words}.",
            )
        )
        found.append(_exact(f"{direction}_bytes", f"Bytes of the {direction}_copies.", Unit.BYTES))
    for direction in HOST_DIRECTIONS:
        for memory, words in HOST_MEMORY.items():
            name = f"{direction}_{memory}"
            found.append(_exact(f"{name}_copies", f"The {direction}_copies whose host memory is {words}."))
            found.append(_exact(f"{name}_bytes", f"Bytes of the {name}_copies.", Unit.BYTES))
    return found


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in [
        Metric(
            "calls",
            Unit.COUNT,
            exact=True,
            additive=False,
            needs=Needs.NOTHING,
            meaning="Times the range ran.",
        ),
        _exact("kernel_launches", "Calls, other than graph launches, that own at least one kernel."),
        _exact("graph_launches", "CUDA graph launches that own device work."),
        _exact("kernels", "Kernels that ran, those of graphs included."),
        _exact("graph_kernels", "Kernels that a graph launch owns."),
        _exact(
            "unlinked_launches",
            "Launch calls whose id owns no device work: made while a graph was captured, or cut off by the "
            "window's edge. Not counted as launches.",
        ),
        _exact("copies", "Copies by the device's copy engines (gpu_memcpy), in every direction."),
        _exact("copy_bytes", "Bytes of all copies.", Unit.BYTES),
        *_copies(),
        _exact("memsets", "Memsets on the device."),
        _exact(
            "syncs",
            "Calls on which the CPU waits for the device: *Synchronize*, and copies that are not asynchronous.",
        ),
        _exact("collectives", "Kernels of collective communication, as their arguments name them."),
        _exact(
            "collective_bytes",
            "Bytes of the collectives: the larger of a kernel's input and output message.",
            Unit.BYTES,
        ),
        _exact("compiles", "Kernels compiled just in time.", needs=Needs.COMPILES),
        _exact(
            "compile_cache_hits",
            "Kernels that the disk cache had, so that nothing was compiled.",
            needs=Needs.COMPILES,
        ),
        _exact(
            "autotunes",
            "Runs of an autotuner that had to try launch parameters, because it did not know these arguments yet.",
            needs=Needs.COMPILES,
        ),
        _exact(
            "ops",
            "Ops (cpu_op) with no other op around them inside the same innermost range; autograd's "
            "evaluate_function wrappers are transparent.",
            needs=Needs.NOTHING,
        ),
        _exact("allocs", "Allocations by PyTorch's allocators.", needs=Needs.MEMORY),
        _exact("alloc_bytes", "Bytes of the allocs.", Unit.BYTES, needs=Needs.MEMORY),
        Metric(
            PEAK,
            Unit.BYTES,
            exact=True,
            additive=False,
            needs=Needs.MEMORY,
            meaning="The most that PyTorch's allocator held of one device, or in a trace without any of the host, "
            "right after an allocation.",
        ),
        _exact(
            "device_mallocs",
            "Calls that take memory from the device's driver (cudaMalloc and its like).",
            needs=Needs.MEMORY,
        ),
        _time("cpu_ns", "Wall time of the range on its thread.", Needs.NOTHING),
        _time("gpu_ns", "Time of the device work that the range owns, summed."),
        _time(
            "gpu_busy_ns",
            "Time in which at least one piece of that device work ran, on each device, summed over devices.",
            additive=False,
        ),
        _time("launch_ns", "CPU time inside launch calls."),
        _time("sync_wait_ns", "CPU time inside syncs, refined by cuda_sync events where the trace has them."),
        _time("compile_ns", "CPU time spent compiling.", Needs.COMPILES),
        _time("autotune_ns", "CPU time of the autotunes, the compiles in them included.", Needs.COMPILES),
    ]
}

OP_CALLS_METRIC = Metric(
    f'{OP_CALLS}["NAME"]',
    Unit.COUNT,
    exact=True,
    additive=True,
    needs=Needs.NOTHING,
    meaning='Ops of one name at any depth: op_calls["aten::copy_"]. What a machine without a GPU can compare.',
)


ALL = (*METRICS.values(), OP_CALLS_METRIC)
"""The registry as it is explained: `op_calls` stands for all of its family."""


def op_calls(op: str) -> str:
    """The name of the metric that counts one op."""
    return f'{OP_CALLS}["{op}"]'


def op_of(name: str) -> str | None:
    """The op that an `op_calls["..."]` metric counts; None for any other metric."""
    match = _OP_CALLS.fullmatch(name)
    return match.group(1) if match else None


def lookup(name: str) -> Metric:
    """The metric of that name.

    Raises:
        SettingError: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    if op_of(name) is not None:
        return Metric(name, Unit.COUNT, exact=True, additive=True, needs=Needs.NOTHING, meaning=OP_CALLS_METRIC.meaning)
    raise SettingError(f"'{name}' is no metric: {nearest(name, METRICS, '`tracetool metrics` lists them')}")
