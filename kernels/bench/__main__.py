"""Runs the benchmarks that are named, or all, and prints their tables."""

import argparse
import sys

import torch
import triton

from kernels.bench import append, decode, fp8, launch, prefill
from kernels.bench.timing import read_bandwidth

SECTIONS = {
    "decode": ("Paged decode attention, us", decode.run),
    "prefill": ("Paged prefill attention, us", lambda _: prefill.run()),
    "append": ("KV append, one layer, us", lambda _: append.run()),
    "launch": ("Fixed and autotuned launches, us", lambda _: launch.run()),
    "fp8": ("Fused inverse RoPE + FP8", fp8.run),
}


def main() -> int:
    """Print one table a section."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all when none")
    sections = parser.parse_args().sections
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    if not torch.cuda.is_available():
        parser.error("no CUDA device: the benchmarks time a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}")
    bandwidth = read_bandwidth()
    print(f"reading alone: {bandwidth / 1e12:.2f} TB/s", flush=True)
    for name in sections or SECTIONS:
        title, run = SECTIONS[name]
        print(f"\n## {title}\n\n{run(bandwidth)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
