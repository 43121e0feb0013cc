"""Time and peak memory of `tracetool summary` and `diff` on large traces, beside peers, in one run.

Run by `make bench`. Every figure is of a whole run, over all its processes (on Linux); runs of the peers take turns, so
that a busy machine is busy for all; medians are printed, with ratios to the first line.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from million import replicate
from shapes import SHAPES, write

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "traces" / "train_pageable.json.gz"
_POLL_S = 0.05
"""Watching memory takes a core too: seldom enough not to be what is measured."""

SUMMARY = [sys.executable, "-m", "tracetool", "summary"]
OWN = "tracetool summary"
GUNZIP = "gunzip alone (isal)"

PEERS = {
    OWN: [*SUMMARY, "{path}"],
    "without its compiled part": ["env", "TRACETOOL_PURE_PYTHON=1", *SUMMARY, "{path}"],
    GUNZIP: [
        sys.executable,
        "-c",
        "import sys; from isal import igzip\nf = igzip.open(sys.argv[1])\nwhile f.read(1 << 21): pass",
        "{path}",
    ],
    "orjson.loads": [
        sys.executable,
        "-c",
        "import sys, orjson; from isal import igzip; orjson.loads(igzip.open(sys.argv[1]).read())",
        "{path}",
    ],
    "json.loads": [
        sys.executable,
        "-c",
        "import sys, json; from isal import igzip; json.loads(igzip.open(sys.argv[1]).read())",
        "{path}",
    ],
    "HTA load (traceinsight)": [
        sys.executable,
        "-c",
        (
            "import sys; from hta.trace_analysis import TraceAnalysis\n"
            "TraceAnalysis(trace_files={0: sys.argv[1]}, trace_dir='/', include_last_profiler_step=True)"
        ),
        "{path}",
    ],
    "trace_processor (wasm)": [
        sys.executable,
        "-c",
        (
            f"import sys; sys.path.insert(0, {str(ROOT / 'tests' / 'tracetool' / 'oracles')!r})\n"
            "from isal import igzip; from trace_processor import TraceProcessor\n"
            "with TraceProcessor() as tp:\n"
            "    tp.load(igzip.open(sys.argv[1]).read()); tp.query('SELECT count(*) FROM slice')"
        ),
        "{path}",
    ],
}


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wall and CPU seconds, and the most memory that all its processes held at once, MB."""

    seconds: float
    cpu: float
    megabytes: float


def measure(command: list[str]) -> Run:
    """Run a command and watch its memory; ends where it fails."""
    environment = {**os.environ, "HTA_DISABLE_NS_ROUNDING": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it would have our modules, alone, compiled in each run
    before, began = _cpu(), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment, cwd=ROOT)
    watched, peak = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        peak = max(peak, memory(watched))
        time.sleep(_POLL_S)
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{command} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    return Run(seconds, _cpu() - before, peak / 1e6)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(process: psutil.Process) -> float:
    """Resident bytes of a process and its children."""
    total = 0.0
    for one in [process, *children(process)]:
        try:
            total += one.memory_info().rss
        except psutil.Error:
            continue
    return total


def children(process: psutil.Process) -> list[psutil.Process]:
    """The children that are there now, without the look at every process of the machine that psutil takes."""
    try:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [psutil.Process(int(pid)) for pid in listed.split()]
    except (OSError, psutil.Error):
        return []


def in_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, Run]:
    """Medians of the runs of each command, taken in turns after one warm-up."""
    measure(next(iter(commands.values())))
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            runs[name].append(measure(command))
    return {
        name: Run(*(statistics.median(getattr(run, part) for run in all_) for part in ("seconds", "cpu", "megabytes")))
        for name, all_ in runs.items()
    }


def report(title: str, found: dict[str, Run]) -> None:
    """Print a table with ratios to the first row."""
    own = next(iter(found.values()))
    print(f"\n{title}\n{'':28}{'seconds':>9}{'CPU s':>8}{'MB':>8}{'time':>9}{'CPU':>9}{'memory':>9}")
    for name, run in found.items():
        ratios = (run.seconds / own.seconds, run.cpu / own.cpu, run.megabytes / own.megabytes)
        print(
            f"{name:28}{run.seconds:9.2f}{run.cpu:8.2f}{run.megabytes:8.0f}",
            *(f"{ratio:8.2f}x" for ratio in ratios),
            sep="",
            flush=True,
        )


def peers(path: Path, events: int, names: list[str], rounds: int) -> None:
    """Beside what others need for the same file."""
    commands = {name: [part.replace("{path}", str(path)) for part in PEERS[name]] for name in names}
    report(f"{events:,} events, {path.stat().st_size / 1e6:.0f} MB gzip", in_turns(commands, rounds))


def growing(paths: dict[int, Path], rounds: int) -> None:
    """More of the same."""
    commands = {f"{events:,} events": [*SUMMARY, str(path)] for events, path in paths.items()}
    report("tracetool summary, growing", in_turns(commands, rounds))


def shapes(folder: Path, size: int, rounds: int) -> None:
    """Three times as much of one thing: what it takes beyond the start, which a trace of few events shows."""
    start = in_turns({"start": [*SUMMARY, str(SOURCE)]}, rounds)["start"]
    print(
        f"\nthree times as many, beyond the start of {start.seconds:.2f} s ({start.cpu:.2f} s of CPU): 3.00x is linear"
    )
    print(f"{'':28}{'seconds':>9}{'CPU s':>8}{'MB':>8}{'time':>9}{'CPU':>9}{'memory':>9}")
    for shape in SHAPES:
        commands, counts = {}, []
        for times in (1, 3):
            path = folder / f"{shape}{times}.json.gz"
            counts.append(write(shape, path, times * size))
            commands[str(times)] = [*SUMMARY, str(path)]
        one, three = in_turns(commands, rounds).values()
        ratios = [
            (getattr(three, part) - getattr(start, part)) / max(1e-3, getattr(one, part) - getattr(start, part))
            for part in ("seconds", "cpu", "megabytes")
        ]
        print(
            f"{shape + f', {counts[1]:,} events':28}{three.seconds:9.2f}{three.cpu:8.2f}{three.megabytes:8.0f}",
            *(f"{ratio:8.2f}x" for ratio in ratios),
            sep="",
            flush=True,
        )


def two(path: Path, folder: Path, rounds: int) -> None:
    """A diff beside the two summaries that it takes, one after the other."""
    other = folder / "other.json.gz"
    shutil.copy(path, other)
    both = " && ".join(" ".join([*SUMMARY, str(one)]) for one in (path, other))
    commands = {
        "two summaries": ["sh", "-c", both],
        "tracetool diff": [sys.executable, "-m", "tracetool", "diff", str(path), str(other)],
    }
    report("diff of two", in_turns(commands, rounds))


def stacks(folder: Path, size: int, rounds: int) -> None:
    """Python frames, which only contributors by function look at."""
    path = folder / "stacks.json.gz"
    events = write("stacks", path, size)
    commands = {
        OWN: [*SUMMARY, str(path)],
        "  as JSON, with functions": [*SUMMARY, str(path), "--format", "json"],
        GUNZIP: [part.replace("{path}", str(path)) for part in PEERS[GUNZIP]],
        "msgspec, to skip it": [
            sys.executable,
            "-c",
            (
                "import sys, msgspec; from isal import igzip\n"
                "class Trace(msgspec.Struct): schemaVersion: int\n"
                "msgspec.json.decode(igzip.open(sys.argv[1]).read(), type=Trace)"
            ),
            str(path),
        ],
    }
    report(f"stacks: {events:,} events without a device", in_turns(commands, rounds))


def ranks(path: Path, folder: Path, rounds: int) -> None:
    """A folder of ranks beside one of them."""
    several = folder / "ranks"
    several.mkdir()
    for rank in range(4):
        (several / f"rank{rank}.json.gz").symlink_to(path)
    report("ranks", in_turns({"1 rank": [*SUMMARY, str(path)], "4 ranks": [*SUMMARY, str(several)]}, rounds))


PARTS = ("peers", "growing", "shapes", "two", "stacks", "ranks", "help")


def main() -> None:
    """Make the traces, measure, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--largest", type=int, default=10, help="times as many events in the largest trace")
    options.add_argument("--skip", nargs="*", default=[], choices=list(PEERS), help="peers to leave out")
    options.add_argument("--only", nargs="*", default=PARTS, choices=PARTS, help="parts to run")
    chosen = options.parse_args()
    names = [name for name in PEERS if name not in chosen.skip]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        million = folder / "million.json.gz"
        events = replicate(SOURCE, million, chosen.events)
        if "peers" in chosen.only:
            peers(million, events, names, chosen.rounds)
        if "two" in chosen.only:
            two(million, folder, chosen.rounds)
        if "ranks" in chosen.only:
            ranks(million, folder, chosen.rounds)
        if "stacks" in chosen.only:
            stacks(folder, chosen.events, chosen.rounds)
        if "shapes" in chosen.only:
            shapes(folder, chosen.events * 3 // 10, chosen.rounds)
        if "growing" in chosen.only:
            paths = {events: million}
            for times in (3, chosen.largest):
                path = folder / f"times{times}.json.gz"
                paths[replicate(SOURCE, path, times * chosen.events)] = path
            growing(paths, chosen.rounds)
    if "help" in chosen.only:
        helps = sorted(measure([sys.executable, "-m", "tracetool", "--help"]).seconds for _ in range(5))
        print(f"\ntracetool --help: median {helps[2]:.2f} s, most {helps[-1]:.2f} s")


if __name__ == "__main__":
    main()
