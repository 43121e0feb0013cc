"""Captures the traces of this folder: small programs that do what makes attribution hard.

Needs torch and a CUDA device: `python tests/tracetool/real/capture.py FOLDER`.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS = 2
WEIGHT = torch.randn(256, 256, device="cuda", requires_grad=True)


def forward(layers: int = 3) -> torch.Tensor:
    """A few products, their input copied from pageable memory."""
    x = torch.randn(64, 256).to("cuda")
    for _ in range(layers):
        x = torch.relu(x @ WEIGHT)
    return x


def threads() -> None:
    """Three threads that have ended when the trace is written: their calls carry stale thread ids."""

    def body() -> None:
        with record_function("worker"):
            with record_function("inner"):
                y = forward(2)
            y.sum().item()

    workers = [threading.Thread(target=body) for _ in range(3)]
    with record_function("spawn"):
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def checkpointed() -> None:
    """Activation checkpointing of both kinds: forward ops run again on the autograd thread, in ranges of their own."""
    with record_function("forward"):
        x = torch.randn(64, 256, device="cuda", requires_grad=True)

        def block(x: torch.Tensor) -> torch.Tensor:
            with record_function("block"):
                return torch.relu(x @ WEIGHT)

        for number in range(5):
            x = checkpoint(block, x, use_reentrant=number > 2)
        loss = x.sum()
    with record_function("backward"):
        loss.backward()


def mixed() -> None:
    """A backward that runs partly on the CPU, on the calling thread."""
    with record_function("forward"):
        x = torch.tanh(torch.randn(32, 256, requires_grad=True) * 2)
        loss = (x.to("cuda") @ WEIGHT).sum() + x.sum().to("cuda")
    with record_function("backward"):
        loss.backward()


def hooks() -> None:
    """A gradient hook that opens a range on the autograd thread."""
    with record_function("forward"):
        x = forward()

    def hook(gradient: torch.Tensor) -> torch.Tensor:
        with record_function("gradient_hook"):
            return gradient * 2

    x.register_hook(hook)
    with record_function("backward"):
        x.sum().backward()


def graph() -> None:
    """A graph captured and replayed inside the window, and events queried and waited for."""
    with record_function("capture"), torch.no_grad():
        x = torch.zeros(64, 256, device="cuda")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            (x @ WEIGHT).relu()
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured), record_function("captured"):
            (x @ WEIGHT).relu() @ WEIGHT
    with record_function("replay"):
        captured.replay()
    with record_function("events"):
        event = torch.cuda.Event()
        event.record()
        event.query()
        event.synchronize()
        torch.cuda.current_stream().synchronize()


def copies() -> None:
    """Copies in every direction and of every kind, and the waits of `nonzero` and boolean indexing."""
    with record_function("copies"):
        x = torch.randn(1000, device="cuda")
        x.cpu()
        torch.empty_like(x).copy_(x)
        host = torch.empty(1000, pin_memory=True)
        host.copy_(x, non_blocking=True)
        x.copy_(host, non_blocking=True)
        x.zero_()
        torch.nonzero(x > 0)
        x[x > 0]


def data_parallel() -> Callable[[], None]:
    """DistributedDataParallel in one process: its hooks run on the autograd thread, outside any op."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    dist.init_process_group("nccl", rank=0, world_size=1)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(256, 64).cuda())

    def step() -> None:
        with record_function("ddp_step"):
            with record_function("forward"):
                loss = model(torch.randn(8, 256, device="cuda")).sum()
            with record_function("backward"):
                loss.backward()
            dist.all_reduce(torch.ones(100, device="cuda"))

    return step


def capture(path: Path, step: Callable[[], None], **options: object) -> None:
    """Profile two steps after one of warm-up, and save the trace."""
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    plan = schedule(wait=0, warmup=1, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=plan, **options) as profiler:
        for _ in range(STEPS + 1):
            step()
            torch.cuda.synchronize()
            profiler.step()
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.name.removesuffix(".gz")
        profiler.export_chrome_trace(str(plain))
        path.write_bytes(gzip.compress(plain.read_bytes(), mtime=0))


def main(folder: Path) -> None:
    """Capture them all."""
    programs: dict[str, tuple[Callable[[], None], dict[str, object]]] = {
        "threads_default": (threads, {}),
        "threads_all": (threads, {"experimental_config": _ExperimentalConfig(profile_all_threads=True)}),
        "checkpointed": (checkpointed, {}),
        "mixed_backward": (mixed, {}),
        "gradient_hook": (hooks, {}),
        "graph_capture": (graph, {}),
        "sync_events": (graph, {"experimental_config": _ExperimentalConfig(enable_cuda_sync_events=True)}),
        "copies": (copies, {}),
        "stacks": (hooks, {"with_stack": True}),
        "memory": (hooks, {"profile_memory": True, "record_shapes": True}),
        "ddp": (data_parallel(), {}),
    }
    for name, (step, options) in programs.items():
        step()
        capture(folder / f"{name}.json.gz", step, **options)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
