"""Many cases, in processes that are ended where they do not end themselves.

    python -m tests.tracetool.fuzz --cases 20000 --first 0

Prints each find with its seed, and how many cases came to what. `--show SEED FOLDER` writes the files of one case.
"""

from __future__ import annotations

import argparse
import json
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from tests.tracetool.fuzz import drive

_AT_A_TIME = 500
MOST_WALL_SECONDS = 300.0
"""For one case, whatever it does: a process that is stuck in one call cannot end itself."""


def work(first: int, cases: int) -> None:
    """Run cases in this process; a line before each, and one with the finds after it."""
    out = sys.stdout
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        bases = drive.Bases(Path(folder))
        drive.limit_memory()
        for seed in range(first, first + cases):
            print("begin", seed, file=out, flush=True)
            try:
                finds = drive.run_case(seed, bases)
            except Exception as error:  # noqa: BLE001 (the driver's own failure is a find too)
                finds = [f"the case itself: {type(error).__name__}: {error}"]
            print("end", seed, json.dumps(finds), file=out, flush=True)


def run(first: int, cases: int, *, tell: bool = True) -> tuple[int, list[tuple[int, str]]]:
    """Run cases in child processes; how many ended, and what was found, by seed."""
    finds: list[tuple[int, str]] = []
    seed, last, done = first, first + cases, 0
    while seed < last:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.tracetool.fuzz", "--work", str(seed), str(min(last - seed, _AT_A_TIME))],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        lines: queue.Queue[str] = queue.Queue()
        reader = threading.Thread(target=_hand_on, args=(child, lines), daemon=True)
        reader.start()
        seed = _follow(child, lines, seed, min(last, seed + _AT_A_TIME), finds, tell=tell)
        reader.join()
        assert child.stdout is not None
        child.stdout.close()
        done = seed - first
        if tell:
            print(f"{done:,} cases", flush=True)
    return done, finds


def _hand_on(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


def _follow(
    child: subprocess.Popen[str],
    lines: queue.Queue[str],
    seed: int,
    last: int,
    finds: list[tuple[int, str]],
    *,
    tell: bool,
) -> int:
    """Read what a child tells until it ends; the seed to go on with."""
    while True:
        try:
            line = lines.get(timeout=MOST_WALL_SECONDS)
        except queue.Empty:
            child.kill()
            _find(finds, seed, f"did not end in {MOST_WALL_SECONDS:.0f} s", tell=tell)
            child.wait()
            return seed + 1
        if not line:
            code = child.wait()
            if seed < last:
                _find(finds, seed, f"the process ended with {code}", tell=tell)
                return seed + 1
            return seed
        word, number, *rest = line.split(" ", 2)
        if word == "end":
            for find in json.loads(rest[0]):
                _find(finds, int(number), find, tell=tell)
            seed = int(number) + 1


def _find(finds: list[tuple[int, str]], seed: int, find: str, *, tell: bool) -> None:
    finds.append((seed, find))
    if tell:
        print(f"{seed}: {find}", flush=True)


def show(seed: int, target: Path) -> None:
    """Write the files of one case."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, content in drive.content_of(seed, drive.Bases(Path(folder))).items():
            (target / name).write_bytes(content)
            print(target / name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tracetool.fuzz")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--show", nargs=2, metavar=("SEED", "FOLDER"))
    parser.add_argument("--work", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return 0
    if options.show:
        show(int(options.show[0]), Path(options.show[1]))
        return 0
    began = time.monotonic()
    done, finds = run(options.first, options.cases)
    kinds = Counter(find.split(": ", 1)[-1][:60] for _, find in finds)
    print(f"{done:,} cases in {time.monotonic() - began:.0f} s: {len(finds)} finds")
    for kind, count in kinds.most_common():
        print(f"{count:6} {kind}")
    return 1 if finds else 0


if __name__ == "__main__":
    sys.exit(main())
