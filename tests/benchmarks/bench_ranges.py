"""What a range of the engine costs when no profiler runs, beside a bare `record_function`.

python tests/benchmarks/bench_ranges.py
"""

import platform
import sys
import timeit

import torch
from torch.profiler import record_function

from engine.ranges import annotate

REPEATS, CALLS = 9, 50_000


def microseconds(statement: str) -> float:
    """The least of several means: what is slower was disturbed."""
    scope = {"annotate": annotate, "record_function": record_function}
    return min(timeit.repeat(statement, globals=scope, number=CALLS, repeat=REPEATS)) / CALLS * 1e6


def main() -> int:
    guarded = microseconds("with annotate('decode_step'): pass")
    bare = microseconds("with record_function('decode_step'): pass")
    print(f"python {platform.python_version()}, torch {torch.__version__}")
    print(f"annotate {guarded:.3f} us, record_function {bare:.2f} us: {bare / guarded:.0f} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
