"""What a project pays for the pytest plugin that it has installed and does not use.

python tests/benchmarks/bench_plugin.py

Whole runs of pytest on one empty test, with the plugin and with `-p no:tracetool`, in turn, by the CPU's time, which
others on the machine change less than a clock's; ratios of one run.
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 15
MODES = {"without": ["-p", "no:tracetool"], "with": []}


def seconds(folder: str, options: list[str]) -> float:
    """Of the CPU, for one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")
        for options in MODES.values():
            seconds(folder, options)
        pairs = [[seconds(folder, options) for options in MODES.values()] for _ in range(ROUNDS)]
    without, with_it = (statistics.median(column) for column in zip(*pairs, strict=True))
    more = statistics.median(after - before for before, after in pairs)
    print(f"pytest on an empty test: {without * 1e3:.0f} ms, with the plugin {with_it / without:.2f}x")
    print(f"the plugin's own: {more * 1e3:.0f} ms, the median difference of {ROUNDS} pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
