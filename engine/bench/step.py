"""One decode step, and what it could not be faster than.

step        a step's launches alone, repeated on the device with nothing in between
engine      wall time of the engine's step, and how much of it the host works
bytes       all weights and the cached keys and values, once, at the rate at which a kernel that only reads reads
nodes       a CUDA graph of as many empty kernels as the step launches
products    the step's matrix products alone, with their biases, as torch's library makes them in a CUDA graph; their
weights are the model's own, so that they are read anew
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program uses
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from engine.bench.report import SCHEMA, versions_line
from engine.bench.results import device_name, versions
from engine.command import check_target, emit, write
from engine.errors import ConfigError
from engine.llm import LLM
from engine.models.decoder import Decoder
from engine.sampling_params import SamplingParams

# Steps of the engine before and while it is timed, and repetitions on the device.
_BEFORE, _STEPS, _REPEATS = 16, 64, 32


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What `step` is asked for."""

    model: str
    batch_sizes: tuple[int, ...]
    context: int
    json_target: str | None

    def __post_init__(self) -> None:
        """Check what can be checked without a GPU."""
        check_target(self.json_target)


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds of a step; see the module.

    Attributes:
        context: Tokens of each sequence, about, while the step was measured.
        launches: Kernels, copies and fills of a step.
        nbytes: What is read at least.
        bandwidth: Bytes a second of a kernel that only reads.
    """

    batch: int
    context: int
    step: float
    engine: float
    host: float
    launches: int
    nbytes: int
    bandwidth: float
    bytes_floor: float
    nodes_floor: float
    products_floor: float


def run(options: StepOptions, settings: dict[str, Any]) -> list[StepTimes]:
    """Measure a step for each batch size, and print or write it.

    Args:
        options: What is asked for.
        settings: The engine's options.

    Raises:
        ConfigError: There is no GPU, or the engine's steps do not stay on it.
    """
    if not torch.cuda.is_available():
        raise ConfigError("step times work on a GPU, and torch finds none here")
    from kernels.bench.timing import read_bandwidth  # noqa: PLC0415 - needs triton

    bandwidth = read_bandwidth()
    rows = [_measure(options, settings, batch, bandwidth) for batch in options.batch_sizes]
    if options.json_target is not None:
        text = json.dumps({"schema": SCHEMA, "versions": versions(), "steps": [asdict(row) for row in rows]}, indent=2)
        write(text + "\n", options.json_target)
    if options.json_target != "-":
        emit(_text(options, rows))
    return rows


def _measure(options: StepOptions, settings: dict[str, Any], batch: int, bandwidth: float) -> StepTimes:
    llm = LLM(options.model, **settings | {"max_num_seqs": batch, "prefix_cache": False})
    core, runner = llm.core, llm.core.runner
    if runner.variants.block_tables != "in_graph":
        raise ConfigError("step repeats steps that need nothing from the host, so it needs block_tables='in_graph'")
    more = _BEFORE + _STEPS + _REPEATS + 8
    if options.context + more > runner.max_model_len:
        raise ConfigError(
            f"--context {options.context} leaves no room for {more} steps in a context of {runner.max_model_len}"
        )
    params = SamplingParams(more, ignore_eos=True)
    vocab = runner.spec.vocab_size
    for i in range(batch):
        core.add([(i * 7919 + j) % vocab for j in range(options.context)], params)
    while core.stats.decodes < _BEFORE or core.scheduler.waiting:
        core.step()
    decodes, seconds, waited = core.stats.decodes, core.stats.decode_seconds, core.stats.wait_seconds
    start = time.perf_counter()
    for _ in range(_STEPS):
        core.step()
    wall = time.perf_counter() - start
    host = core.stats.decode_seconds - seconds - (core.stats.wait_seconds - waited)
    steps = core.stats.decodes - decodes
    core.settle()
    context = options.context + _BEFORE + _STEPS
    step = _time(runner.repeat_step, _REPEATS)
    launches = _count(runner.repeat_step)
    model = runner.model
    assert isinstance(model, Decoder)
    cached = runner.cache.nbytes // runner.cache.keys.shape[1] // runner.cache.keys.shape[2] * batch * context
    nbytes = model.weights.nbytes + cached
    return StepTimes(
        batch=batch,
        context=context,
        step=step,
        engine=wall / steps * 1e3,
        host=host / steps * 1e3,
        launches=launches,
        nbytes=nbytes,
        bandwidth=bandwidth,
        bytes_floor=nbytes / bandwidth * 1e3,
        nodes_floor=_nodes(launches),
        products_floor=_products(model, batch),
    )


def _time(call: Callable[[], object], repeats: int) -> float:
    """Milliseconds a call, the calls one after another."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / repeats


def _count(call: Callable[[], object]) -> int:
    """What a call makes the device do, in pieces."""
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiler.events())


def _nodes(count: int) -> float:
    """Milliseconds of so many kernels that do nothing, from one CUDA graph."""
    from kernels.bench.timing import empty_kernel, graph_time  # noqa: PLC0415 - needs triton

    return graph_time([empty_kernel[(1,)]], launches=count).us * count / 1e3


@torch.inference_mode()
def _products(model: Decoder, batch: int) -> float:
    """Milliseconds of a step's matrix products alone, from one CUDA graph."""
    from kernels.bench.timing import graph_time  # noqa: PLC0415 - needs triton

    weights = model.weights
    inputs: dict[int, Tensor] = {}

    def of(weight: Tensor) -> Tensor:
        width = weight.shape[1]
        if width not in inputs:
            inputs[width] = torch.randn(batch, width, dtype=weight.dtype, device=weight.device)
        return inputs[width]

    def all_of_them() -> None:
        for layer in weights.layers:
            for linear in (layer.qkv, layer.out, layer.up, layer.down):
                F.linear(of(linear.weight), linear.weight, linear.bias)
        F.linear(of(weights.head), weights.head)

    return graph_time([all_of_them], launches=1).us / 1e3


def _text(options: StepOptions, rows: list[StepTimes]) -> str:
    head = (
        f"{options.model} on {device_name(torch.device('cuda'))}, {versions_line(versions())}\n"
        f"milliseconds a step; bytes at a read rate of {rows[0].bandwidth / 1e12:.2f} TB/s\n\n"
        "batch  context  step    engine  host    launches  bytes   nodes   products\n"
    )
    return head + "".join(
        f"{row.batch:5}  {row.context:7}  {row.step:6.3f}  {row.engine:6.3f}  {row.host:6.3f}  {row.launches:8}  "
        f"{row.bytes_floor:6.3f}  {row.nodes_floor:6.3f}  {row.products_floor:6.3f}\n"
        for row in rows
    )
