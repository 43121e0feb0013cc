"""What a capture costs a program: the time of a training step without one, under one, and with more recorded.

python tests/benchmarks/bench_capture.py

Everything is measured in turn in one process, and only ratios of one run are worth comparing. The step is small, so
that it has much to record for the time it takes: larger ones pay less.
"""

import platform
import statistics
import sys
import tempfile
import time
import timeit
from pathlib import Path

import torch
from torch import nn
from torch.profiler import record_function

import tracetool

MODES: dict[str, dict[str, bool] | None] = {
    "off": None,
    "on": {},
    "on, with shapes": {"shapes": True},
    "on, with memory": {"memory": True},
    "on, with stacks": {"stacks": True},
}
ROUNDS, WARM_STEPS, STEPS = 5, 3, 30
CALLS = 1_000_000


class Toy:
    """A small model that is trained."""

    def __init__(self) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self._model = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).to(device)
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._batch = torch.randn(8, 32, 64, device=device)

    def step(self) -> None:
        """Train a step, to its end."""
        with record_function("forward"):
            loss = self._model(self._batch).square().mean()
        with record_function("backward"):
            loss.backward()
        with record_function("optimizer"):
            self._optimizer.step()
            self._optimizer.zero_grad()
        loss.item()


def milliseconds(toy: Toy, options: dict[str, bool] | None, path: Path) -> tuple[float, float]:
    """The median time of a step, and how long the trace took to be saved."""
    if options is None:
        return statistics.median([_timed(toy) for _ in range(WARM_STEPS + STEPS)][WARM_STEPS:]), 0.0
    times = []
    with tracetool.capture(path, warmup=WARM_STEPS, active=STEPS, force=True, **options):
        for _ in range(WARM_STEPS + STEPS):
            times.append(_timed(toy))
            begun = time.perf_counter_ns()
            tracetool.step()
    return statistics.median(times[WARM_STEPS:]), (time.perf_counter_ns() - begun) / 1e6


def _timed(toy: Toy) -> float:
    begun = time.perf_counter_ns()
    toy.step()
    return (time.perf_counter_ns() - begun) / 1e6


def main() -> int:
    torch.set_num_threads(1)
    toy = Toy()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in MODES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.json.gz"
        for _ in range(ROUNDS):
            for name, options in MODES.items():
                found[name].append(milliseconds(toy, options, path))
        events = len(tracetool.read(str(path)).events)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
    print(f"python {platform.python_version()}, torch {torch.__version__}, {device}; medians of {ROUNDS} rounds")
    base = statistics.median(step for step, _ in found["off"])
    for name, rounds in found.items():
        step, saving = (statistics.median(column) for column in zip(*rounds, strict=True))
        saved = f", saved in {saving:.0f} ms" if saving else ""
        print(f"{name:16} {step:7.3f} ms a step, {step / base:.2f}x{saved}")
    print(f"the last trace has {events:,} events")
    idle = min(timeit.repeat(tracetool.step, number=CALLS, repeat=5)) / CALLS * 1e9
    print(f"tracetool.step() where nothing is captured: {idle:.0f} ns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
