"""Time and peak memory of `tracetool summary` on large traces, beside peers, in one run.

Run by `make bench`. Every figure is of a whole run, over all its processes (on Linux); runs of the peers take turns, so
that a busy machine is busy for all; medians are printed, with ratios to tracetool's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from million import replicate

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "traces" / "train_pageable.json.gz"
_POLL_S = 0.05
"""Watching memory takes a core too: seldom enough not to be what is measured."""

PEERS = {
    "tracetool summary": [sys.executable, "-m", "tracetool", "summary", "{path}"],
    "gunzip alone (isal)": [
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
}


@dataclass(frozen=True, slots=True)
class Run:
    """One process: wall seconds, and the most memory that it and its children held at once, MB."""

    seconds: float
    megabytes: float


def measure(command: list[str]) -> Run:
    """Run a command and watch its memory; raises if it fails."""
    environment = {**os.environ, "HTA_DISABLE_NS_ROUNDING": "1"}
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    watched, peak = psutil.Process(process.pid), 0.0
    while process.poll() is None:
        peak = max(peak, memory(watched))
        time.sleep(_POLL_S)
    seconds = time.perf_counter() - began
    if process.returncode:
        sys.exit(f"{command} failed: {process.stderr.read().decode()[-2000:] if process.stderr else ''}")
    return Run(seconds, peak / 1e6)


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


def compare(path: Path, names: list[str], rounds: int) -> dict[str, Run]:
    """Medians of the runs of each peer, taken in turns after one warm-up."""
    commands = {name: [part.replace("{path}", str(path)) for part in PEERS[name]] for name in names}
    measure(commands[names[0]])
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            runs[name].append(measure(commands[name]))
    return {
        name: Run(statistics.median(run.seconds for run in all_), statistics.median(run.megabytes for run in all_))
        for name, all_ in runs.items()
    }


def report(title: str, found: dict[str, Run]) -> None:
    """Print a table with ratios to the first row."""
    own = next(iter(found.values()))
    print(f"\n{title}\n{'':26}{'seconds':>9}{'MB':>8}{'time':>9}{'memory':>9}")
    for name, run in found.items():
        time_ratio, memory_ratio = run.seconds / own.seconds, run.megabytes / own.megabytes
        print(f"{name:26}{run.seconds:9.2f}{run.megabytes:8.0f}{time_ratio:8.2f}x{memory_ratio:8.2f}x")


def main() -> None:
    """Make the traces, measure, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--events", type=int, default=1_000_000)
    options.add_argument("--skip", nargs="*", default=[], choices=list(PEERS), help="peers to leave out")
    chosen = options.parse_args()
    names = [name for name in PEERS if name not in chosen.skip]
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.json.gz", Path(folder) / "large.json.gz"
        events = replicate(SOURCE, small, chosen.events)
        report(f"{events:,} events, {small.stat().st_size / 1e6:.0f} MB gzip", compare(small, names, chosen.rounds))
        events_large = replicate(SOURCE, large, 3 * chosen.events)
        found = {
            f"{count:,} events": compare(path, names[:1], chosen.rounds)[names[0]]
            for count, path in ((events, small), (events_large, large))
        }
        report("tracetool summary, growing", found)
    helps = sorted(measure([sys.executable, "-m", "tracetool", "--help"]).seconds for _ in range(5))
    print(f"\ntracetool --help: median {helps[2]:.2f} s, most {helps[-1]:.2f} s")


if __name__ == "__main__":
    main()
