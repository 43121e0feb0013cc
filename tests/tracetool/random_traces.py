"""Hypothesis strategies for traces that are as tangled as real ones, and worse.

Times are few and whole nanoseconds, so that events touch, coincide, overlap and contain each other often.
"""

from __future__ import annotations

from decimal import Decimal

from hypothesis import strategies as st

from .traces_by_hand import PAGEABLE, PINNED

LATE = 4_387_790_454_594_384
"""A time stamp (ns) of a machine that has been up for weeks: a float of its microseconds holds no nanoseconds."""

THREADS = ((9, 1), (9, 2), (9, 3), (8, 1))
RANGE_NAMES = ("a", "b", "ProfilerStep#1", "ProfilerStep#2")
OP_NAMES = ("aten::add", "aten::copy_", "autograd::engine::evaluate_function: AddBackward0", "AddBackward0")
CALL_NAMES = (
    "cudaLaunchKernel",
    "cuLaunchKernelEx",
    "cudaGraphLaunch",
    "hipExtModuleLaunchKernel",
    "cudaMemcpyAsync",
    "cudaMemcpy",
    "hipMemcpyWithStream",
    "cudaStreamSynchronize",
    "cudaEventQuery",
    "cudaMalloc",
    "cudaHostAlloc",
    "INVALID",
)
CALL_CATEGORIES = ("cuda_runtime", "cuda_driver", "xpu_runtime", "mtia_runtime", "privateuse1_runtime")
COPY_NAMES = (
    PAGEABLE,
    PINNED,
    "Memcpy DtoH (Device -> Pageable)",
    "Memcpy DtoH (Device -> Pinned)",
    "Memcpy DtoD (Device -> Device)",
    "Memcpy PtoP (Device -> Device)",
    "Memcpy HtoD (Host -> Device)",
    "Memcpy HtoH (Pageable -> Pinned)",
)

moments = st.integers(0, 40)
lengths = st.one_of(st.integers(0, 30), st.sampled_from([0, 1, 40]))
ids = st.integers(1, 5)
external_ids = st.one_of(st.none(), ids)


def _complete(cat, names, threads=THREADS, **args):
    """A strategy for complete events; args are strategies, and None leaves one out."""

    def build(name, thread, start, length, values):
        kept = {key.replace("_", " "): value for key, value in values.items() if value is not None}
        return _timed({"ph": "X", "cat": cat, "name": name, "args": kept}, thread, start, length)

    return st.builds(build, names, st.sampled_from(threads), moments, lengths, st.fixed_dictionaries(args))


def _timed(event, thread, start, length):
    return {**event, "pid": thread[0], "tid": thread[1], "ts": start, "dur": length}


def _moved_to(event, name):
    return {**event, "cat": name}


STREAMS = ((0, 7), (0, 8), (1, 7))
correlation = st.one_of(st.none(), ids)

ranges = _complete("user_annotation", st.sampled_from(RANGE_NAMES), External_id=external_ids)
ops = _complete("cpu_op", st.sampled_from(OP_NAMES), External_id=external_ids)
calls = st.builds(
    _moved_to,
    _complete("", st.sampled_from(CALL_NAMES), External_id=external_ids, correlation=correlation),
    st.sampled_from(CALL_CATEGORIES),
)
kernels = _complete("kernel", st.just("k"), STREAMS, correlation=correlation)
collectives = _complete(
    "kernel",
    st.just("ncclDevKernel_AllReduce_Sum_f32_RING_LL"),
    STREAMS,
    correlation=correlation,
    Collective_name=st.just("allreduce"),
    In_msg_nelems=st.integers(0, 9),
    Out_msg_nelems=st.integers(0, 9),
    dtype=st.sampled_from(["Float", "BFloat16", "Long"]),
)
copies = _complete(
    "gpu_memcpy", st.sampled_from(COPY_NAMES), STREAMS, correlation=correlation, bytes=st.integers(0, 99)
)
memsets = _complete("gpu_memset", st.just("Memset (Device)"), STREAMS, correlation=correlation, bytes=ids)
compiles = _complete("compile", st.just("triton_poi_fused_0"), cache_hit=st.booleans())
memory = _complete(
    "cpu_instant_event",
    st.just("[memory]"),
    Bytes=st.sampled_from([-8, 8, 512]),
    Total_Allocated=ids,
    Device_Type=st.integers(0, 1),
).map(lambda event: {key: value for key, value in event.items() if key != "dur"} | {"ph": "i", "s": "t"})
ignored = st.one_of(
    _complete("gpu_user_annotation", st.sampled_from(RANGE_NAMES), STREAMS),
    _complete("overhead", st.just("Lazy Function Loading")),
    _complete("cuda_sync", st.just("Event Sync"), STREAMS, correlation=correlation),
    st.just({"ph": "M", "name": "process_name", "pid": 9, "tid": 0, "ts": 0, "args": {"name": "python"}}),
)


@st.composite
def flows(draw, threads):
    """The two ends of a `fwdbwd` flow; its number comes later, so that no two share one."""
    source, target = draw(st.sampled_from(threads)), draw(st.sampled_from(threads))
    return [
        {"ph": ph, "cat": "fwdbwd", "name": "fwdbwd", "pid": pid, "tid": tid, "ts": draw(moments), "bp": "e"}
        for ph, (pid, tid) in (("s", source), ("f", target))
    ]


def _some(kind, most):
    """As many as chosen, since Hypothesis by itself keeps lists short."""
    return st.integers(0, most).flatmap(lambda many: st.lists(kind, min_size=many, max_size=many))


@st.composite
def traces(draw, largest=10):
    """The events of a trace, in any order, with exact times: up to `largest` of each kind."""
    threads = THREADS[: draw(st.integers(1, len(THREADS)))]
    device = st.one_of(kernels, kernels, copies, memsets, collectives)
    others = st.one_of(compiles, memory, ignored)
    events = draw(_some(ranges, largest)) + draw(_some(ops, largest // 2)) + draw(_some(calls, largest))
    events += draw(_some(device, largest)) + draw(_some(others, largest // 3))
    links = draw(st.one_of(st.just([]), _some(flows(threads), 6)))
    events += [{**end, "id": number} for number, pair in enumerate(links) for end in pair]
    events = [one if one["pid"] in (0, 1) or "tid" not in one else _on_one_of(threads, one) for one in events]
    draw(st.randoms()).shuffle(events)
    base = draw(st.sampled_from([0, LATE]))
    return [exact(one, base) for one in events]


def _on_one_of(threads, event):
    place = (event["pid"], event["tid"])
    pid, tid = place if place in threads else threads[hash(place) % len(threads)]
    return {**event, "pid": pid, "tid": tid}


def exact(event, base=0):
    """The event with times of whole nanoseconds as microseconds."""
    times = {"ts": Decimal(base + event["ts"]) / 1000}
    if "dur" in event:
        times["dur"] = Decimal(event["dur"]) / 1000
    return {**event, **times}
