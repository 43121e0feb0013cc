"""Captures the pairs of this folder anew: `python traces/findings/capture.py FOLDER [--cpu] [NAME...]`.

Each pair is a small program with a fault that a rule of `tracetool lint` finds (`NAME.fault.json.gz`), and the same
program without it (`NAME.mend.json.gz`). `decode_fastest` is the engine's decode step in its fastest form, in which
nothing is to be found. All are captured in one process, on one GPU. With `--cpu` they run at a toy size without one,
and those that need a GPU are left out. Every step ends by reading a number back, so that the time of a step is that of
its work.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - its name everywhere
from torch.profiler import record_function

import tracetool
from tracetool.cli import main as command

if TYPE_CHECKING:
    from collections.abc import Callable

    Step = Callable[[], None]

WARMUP, ACTIVE = 4, 5
CPU = "--cpu" in sys.argv
DEVICE = "cpu" if CPU else "cuda"
WIDTH = 32 if CPU else 256


def pinned(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Host memory that the device can copy from on its own."""
    return torch.zeros(shape, dtype=dtype, pin_memory=not CPU)


def on_device(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers near 1 on the device."""
    return torch.ones(shape, device=DEVICE, dtype=dtype) + 0.01 * torch.randn(shape, device=DEVICE, dtype=dtype)


def weights(layers: int, width: int = 0) -> list[torch.Tensor]:
    """Square matrices that neither blow up nor vanish in a product."""
    width = width or WIDTH
    return [torch.eye(width, device=DEVICE) + 0.001 * torch.randn(width, width, device=DEVICE) for _ in range(layers)]


def read(x: torch.Tensor) -> None:
    """The end of a step: its result goes to the host."""
    with record_function("read"):
        x.sum().item()


def work(x: torch.Tensor, layers: list[torch.Tensor]) -> torch.Tensor:
    """Something to do with what was brought."""
    with record_function("forward"):
        for weight in layers:
            x = x @ weight
        return x


# Rule by rule -----------------------------------------------------------------------------------------------------


def pageable_copy(*, mended: bool) -> Step:
    """Two inputs of 4 MiB from pageable memory, or from pinned memory without waiting."""
    rows = 64 if CPU else 4096
    make = pinned if mended else torch.zeros
    hosts = [make(rows, WIDTH), make(rows, WIDTH)]
    places, layers = [torch.empty(rows, WIDTH, device=DEVICE) for _ in hosts], weights(4)

    def step() -> None:
        with record_function("load"):
            for place, host in zip(places, hosts, strict=True):
                place.copy_(host, non_blocking=mended)
        read(work(places[0] + places[1], layers))

    return step


def pinned_but_strided(*, mended: bool) -> Step:
    """A slice of a pinned buffer that is not dense, or one that is."""
    layers, capacity, batch, blocks = 12, 16, 8, 64
    shape = (capacity, layers, blocks) if mended else (layers, capacity, blocks)
    host, place = pinned(*shape, dtype=torch.int32), torch.zeros(shape, device=DEVICE, dtype=torch.int32)
    matrices, x = weights(4), on_device(8, WIDTH)

    def step() -> None:
        with record_function("load"):
            if mended:
                place[:batch].copy_(host[:batch], non_blocking=True)
            else:
                place[:, :batch].copy_(host[:, :batch], non_blocking=True)
        read(work(x, matrices) + place.sum())

    return step


def small_copies(*, mended: bool) -> Step:
    """24 small tensors sent one by one, or one buffer with all of them."""
    many = 24
    packed = pinned(many, 256)
    place, layers = torch.empty(many, 256, device=DEVICE), weights(4)
    hosts = [torch.zeros(256) for _ in range(many)]

    def step() -> None:
        with record_function("load"):
            if mended:
                place.copy_(packed, non_blocking=True)
            else:
                for row, host in enumerate(hosts):
                    place[row].copy_(host)
        read(work(place[:, :WIDTH], layers))

    return step


def index_lists(*, mended: bool) -> Step:
    """Index tensors made from lists in every layer, or sent once a step."""
    layers, batch = 8, 16
    cache, rows = on_device(layers, 64, WIDTH), list(range(batch))
    staged, place = pinned(2, batch, dtype=torch.int64), torch.empty(2, batch, device=DEVICE, dtype=torch.int64)

    def step() -> None:
        total = torch.zeros((), device=DEVICE)
        if mended:
            with record_function("indices"):
                staged.copy_(torch.tensor([rows, rows]))
                place.copy_(staged, non_blocking=True)
        for layer in range(layers):
            with record_function("gather"):
                if mended:
                    first, second = place
                else:
                    first = torch.tensor(rows, device=DEVICE)
                    second = torch.tensor(rows, device=DEVICE)
                total = total + cache[layer].index_select(0, first).index_select(0, second).sum()
        read(total)

    return step


def sync_in_loop(*, mended: bool) -> Step:
    """The host asks the device in every layer, or once for all of them."""
    layers, x = weights(8, 32 if CPU else 1024), on_device(*((16, 32) if CPU else (1024, 1024)))

    def step() -> None:
        y, largest = x, []
        for weight in layers:
            with record_function("layer"):
                y = y @ weight
                largest.append(y.abs().amax())
                if not mended and largest[-1].item() > 1e4:
                    raise OverflowError
        if not mended:
            read(y)
            return
        with record_function("read"):
            *told, _ = torch.stack([*largest, y.sum()]).tolist()
            if max(told) > 1e4:
                raise OverflowError

    return step


def boolean_index(*, mended: bool) -> Step:
    """Boolean indexing, whose size the host must know, or a product with the mask."""
    layers, x = weights(6), on_device(256, WIDTH)

    def step() -> None:
        total, y = torch.zeros((), device=DEVICE), x
        for weight in layers:
            with record_function("layer"):
                y = y @ weight
                kept = y > 1
                total = total + ((y * kept).sum() if mended else y[kept].sum())
        read(total)

    return step


def recompiles(*, mended: bool) -> Step:
    """A Triton kernel compiled anew for sizes of 1 and for multiples of 16, or one for all."""
    import triton  # noqa: PLC0415 - only on a GPU
    import triton.language as tl  # noqa: PLC0415

    def scale_kernel(x_ptr, y_ptr, num_tokens, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, N803
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < num_tokens
        tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=mask) * 2, mask=mask)

    scale_kernel.__globals__["tl"] = tl
    kernel = triton.jit(scale_kernel, do_not_specialize=["num_tokens"] if mended else None)
    x, y = on_device(4096), torch.empty(4096, device=DEVICE)
    sizes = iter([33, 33, 33, 33, 33, 35, 48, 1, 37, 41, 41, 41])

    def step() -> None:
        with record_function("scale"):
            kernel[(4,)](x, y, next(sizes), BLOCK=1024)
        read(y)

    return step


def autotune_key(*, mended: bool) -> Step:
    """An autotuner keyed by a size that changes, or by a class of sizes."""
    import triton  # noqa: PLC0415 - only on a GPU
    import triton.language as tl  # noqa: PLC0415

    def shift_kernel(x_ptr, y_ptr, num_tokens, size_class, BLOCK: tl.constexpr):  # noqa: ANN001, ANN202, ARG001, N803
        offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        mask = offs < num_tokens
        tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=mask) + 1, mask=mask)

    shift_kernel.__globals__["tl"] = tl
    kernel = triton.autotune(
        configs=[triton.Config({"BLOCK": 512}), triton.Config({"BLOCK": 1024})],
        key=["size_class" if mended else "num_tokens"],
        do_bench=briefly,
    )(triton.jit(shift_kernel, do_not_specialize=["num_tokens", "size_class"]))
    x, y = on_device(4096), torch.empty(4096, device=DEVICE)
    sizes = iter([33, 33, 33, 33, 33, 33, 35, 35, 35, 35, 35, 35])

    def step() -> None:
        size = next(sizes)
        with record_function("shift"):
            kernel[lambda meta: (triton.cdiv(4096, meta["BLOCK"]),)](x, y, size, 64)
        read(y)

    return step


def briefly(call: Callable[[], None], quantiles: tuple[float, ...]) -> list[float]:
    """Milliseconds of a kernel, from few runs, so that the trace stays small."""
    begun = time.monotonic()
    for _ in range(10):
        call()
    torch.cuda.synchronize()
    return [(time.monotonic() - begun) * 100] * len(quantiles)


def launch_bound(*, mended: bool) -> Step:
    """Many small layers launched one by one, or as one CUDA graph."""
    layers, x = weights(24), on_device(8, WIDTH)

    def body() -> torch.Tensor:
        y = x
        for weight in layers:
            y = F.relu(y @ weight)
        return y

    run = replayed(body) if mended else body

    def step() -> None:
        with record_function("forward"):
            y = run()
        read(y)

    return step


def replayed(body: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """A function as a CUDA graph; its result is always the same tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        body()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = body()

    def run() -> torch.Tensor:
        graph.replay()
        return result

    return run


def elementwise_run(*, mended: bool) -> Step:
    """GELU written out as eight small ops in each layer, or the one op."""
    layers, x = weights(6), on_device(64, WIDTH)

    def written_out(y: torch.Tensor) -> torch.Tensor:
        return 0.5 * y * (1 + torch.tanh(0.7978845608 * (y + 0.044715 * y * y * y)))

    def step() -> None:
        y = x
        for weight in layers:
            with record_function("layer"):
                y = y @ weight
                with record_function("activation"):
                    y = F.gelu(y, approximate="tanh") if mended else written_out(y)
        read(y)

    return step


def device_malloc(*, mended: bool) -> Step:
    """The cache of device memory emptied in each step, or left alone."""
    layers, x = weights(4), on_device(256, WIDTH)

    def step() -> None:
        with record_function("prepare"):
            if not mended:
                torch.cuda.empty_cache()
            scratch = [torch.empty(8 << 20, device=DEVICE) for _ in range(4)]
        read(work(x, layers) + scratch[0].numel())

    return step


def zeroed_buffers(*, mended: bool) -> Step:
    """16 buffers zeroed one by one in each step, or one that holds them all."""
    whole, layers, x = torch.empty(16, 4096, device=DEVICE), weights(4), on_device(8, WIDTH)
    parts = [torch.empty(4096, device=DEVICE) for _ in range(16)]

    def step() -> None:
        with record_function("clear"):
            if mended:
                whole.zero_()
            else:
                for part in parts:
                    part.zero_()
        read(work(x, layers) + whole[0, 0] * 0)

    return step


def layout_churn(*, mended: bool) -> Step:
    """A transposed input made contiguous in each layer, or kept in the layout that is needed."""
    layers, x = weights(8), on_device(64 if CPU else 2048, WIDTH)
    turned = x.T.contiguous()

    def step() -> None:
        total = torch.zeros((), device=DEVICE)
        for weight in layers:
            with record_function("layer"):
                y = turned if mended else x.T.contiguous()
                total = total + (weight @ y).sum()
        read(total)

    return step


def dtype_churn(*, mended: bool) -> Step:
    """Weights cast to bfloat16 at each use, or once."""
    layers = weights(8, 64 if CPU else 1024)
    x = on_device(8, 64 if CPU else 1024, dtype=torch.bfloat16)
    cast = [weight.to(torch.bfloat16) for weight in layers]

    def step() -> None:
        y = x
        for weight, ready in zip(layers, cast, strict=True):
            with record_function("layer"):
                y = y @ (ready if mended else weight.to(torch.bfloat16))
        read(y)

    return step


def serial_copy(*, mended: bool) -> Step:
    """The next batch copied on the stream that computes, or on one of its own meanwhile."""
    rows, width = 8192, 1024
    hosts, places = [pinned(rows, width) for _ in range(2)], [torch.empty(rows, width, device=DEVICE) for _ in range(2)]
    layers, stream = weights(8, width), torch.cuda.Stream()
    turn = 0

    def step() -> None:
        nonlocal turn
        turn = 1 - turn
        if mended:
            with record_function("prefetch"), torch.cuda.stream(stream):
                places[1 - turn].copy_(hosts[1 - turn], non_blocking=True)
        else:
            with record_function("load"):
                places[turn].copy_(hosts[turn], non_blocking=True)
        y = work(places[turn], layers)
        torch.cuda.current_stream().wait_stream(stream)
        read(y)

    return step


def graph_recapture(*, mended: bool) -> Step:
    """A graph captured anew in each step, or once."""
    layers, x = weights(12), on_device(8, WIDTH)

    def body() -> torch.Tensor:
        y = x
        for weight in layers:
            y = F.relu(y @ weight)
        return y

    kept = replayed(body)

    def step() -> None:
        with record_function("forward"):
            if mended:
                y = kept()
            else:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    y = body()
                graph.replay()
        read(y)

    return step


def small_graphs(*, mended: bool) -> Step:
    """A graph for each layer, or one for all."""
    layers, x = weights(16), on_device(8, WIDTH)
    places = [torch.empty_like(x) for _ in range(len(layers) + 1)]
    places[0].copy_(x)

    def layer(number: int) -> torch.Tensor:
        return places[number + 1].copy_(F.relu(places[number] @ layers[number]))

    def body() -> torch.Tensor:
        return [layer(number) for number in range(len(layers))][-1]

    runs = [replayed(body)] if mended else [replayed(lambda number=n: layer(number)) for n in range(len(layers))]

    def step() -> None:
        with record_function("forward"):
            for run in runs:
                y = run()
        read(y)

    return step


def eager_remainder(*, mended: bool) -> Step:
    """Half of the layers in a graph and half beside it, or all in it."""
    layers, x = weights(32), on_device(8, WIDTH)

    def body(first: int, last: int, y: torch.Tensor) -> torch.Tensor:
        for weight in layers[first:last]:
            y = F.relu(y @ weight)
        return y

    half = replayed(lambda: body(0, 32 if mended else 16, x))

    def step() -> None:
        with record_function("forward"):
            y = half()
            if not mended:
                y = body(16, 32, y)
        read(y)

    return step


def input_wait(*, mended: bool) -> Step:
    """A batch prepared while the device waits, or by a thread while it works."""
    rows, width = (64, 64) if CPU else (1024, 1024)
    layers, ready = weights(32, width), queue.Queue(2)

    def prepare() -> torch.Tensor:
        until = time.monotonic() + 0.001
        while time.monotonic() < until:
            time.sleep(0.0002)  # as a disk or a tokenizer of its own would
        return pinned(rows, width)

    def ahead() -> None:
        while True:
            ready.put(prepare())

    if mended:
        threading.Thread(target=ahead, daemon=True).start()
    place = torch.empty(rows, width, device=DEVICE)

    def step() -> None:
        with record_function("load_batch"):
            batch = ready.get() if mended else prepare()
        place.copy_(batch, non_blocking=True)
        read(work(place, layers))

    return step


def rank_step(*, alone: bool) -> Step:
    """A step that, on one rank, also checks and logs."""
    layers, x = weights(6), on_device(64, WIDTH)

    def step() -> None:
        y = work(x, layers)
        with record_function("log"):
            for _ in range(4 if alone else 0):
                y.amax().item()
        read(y)

    return step


PAIRS: dict[str, Callable[..., Step]] = {
    one.__name__: one
    for one in (
        pageable_copy,
        pinned_but_strided,
        small_copies,
        index_lists,
        sync_in_loop,
        boolean_index,
        recompiles,
        autotune_key,
        launch_bound,
        elementwise_run,
        device_malloc,
        zeroed_buffers,
        layout_churn,
        dtype_churn,
        serial_copy,
        graph_recapture,
        small_graphs,
        eager_remainder,
        input_wait,
    )
}
NEED_A_GPU = {
    "recompiles",
    "autotune_key",
    "launch_bound",
    "device_malloc",
    "serial_copy",
    "graph_recapture",
    "small_graphs",
    "eager_remainder",
    "decode_fastest",
}
COLD = {"recompiles", "autotune_key"}


def capture(path: Path, step: Step, *, cold: bool = False) -> None:
    """Capture some steps of a program, and the lines that call its ops."""
    with (
        torch.no_grad(),
        tracetool.capture(path, warmup=WARMUP, active=ACTIVE, lines=not cold, cold=cold, cpu=CPU, force=True),
    ):
        for _ in range(WARMUP + ACTIVE + 1):
            step()
            tracetool.step()


def ranks(folder: Path) -> None:
    """Two ranks, one after the other, each in a process group that sends nothing."""
    import torch.distributed as dist  # noqa: PLC0415 - not in every build
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC0415

    for what in ("fault", "mend"):
        for rank in range(2):
            dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
            try:
                step = rank_step(alone=what == "fault" and rank == 1)
                capture(folder / f"ranks_{rank}.{what}.json.gz", step)
            finally:
                dist.destroy_process_group()


FASTEST = {"block_tables": "in_graph", "cuda_graph": "exact", "graph_sampling": "inside", "overlap": "on"}


def decode_fastest(folder: Path) -> None:
    """The engine's decode step in its fastest form."""
    settings = [word for axis, value in FASTEST.items() for word in ("--set", f"{axis}={value}")]
    window = ["--wait", "0", "--warmup", str(WARMUP), "--active", str(ACTIVE)]
    code = command(["capture", "decode", *window, *settings, "-o", str(folder / "decode_fastest.json.gz"), "--force"])
    if code:
        raise RuntimeError(f"exit code {code}")


OTHERS = {"ranks": ranks, "decode_fastest": decode_fastest}


def main(arguments: list[str]) -> int:
    """Capture them all, or those that are named; how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="of pairs; all of them if none is named")
    parser.add_argument("--cpu", action="store_true", help="at a toy size, without a GPU")
    options = parser.parse_intermixed_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    failed = 0
    for name in options.names or [*PAIRS, *OTHERS]:
        if CPU and name in NEED_A_GPU:
            sys.stderr.write(f"{name}: left out, it needs a GPU\n")
            continue
        began = time.monotonic()
        try:
            if name in OTHERS:
                OTHERS[name](options.folder)
            else:
                for what in ("fault", "mend"):
                    step = PAIRS[name](mended=what == "mend")
                    capture(options.folder / f"{name}.{what}.json.gz", step, cold=name in COLD)
        except Exception as error:  # noqa: BLE001 - the others are captured all the same
            failed += 1
            sys.stderr.write(f"{name}: {type(error).__name__}: {error}\n")
        sys.stderr.write(f"{name}: {time.monotonic() - began:.1f} s\n")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
