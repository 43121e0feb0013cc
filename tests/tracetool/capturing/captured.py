"""What came of a capture, and how it is looked at."""

import gzip
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tracetool

ROOT = Path(__file__).parents[3]


@dataclass
class Captured:
    """How a command ended, what it printed, and the trace that it was to write."""

    code: int
    out: str
    err: str
    path: Path

    @property
    def sentence(self):
        """The one line on standard error."""
        return one_sentence(self.err)

    @cached_property
    def summary(self):
        return summary_of(self.path)

    @property
    def about(self):
        """What the trace says of itself."""
        return self.summary.metadata["tracetool"]

    def count(self, metric, *path):
        return count(self.summary, metric, *path)

    @property
    def steps(self):
        return [number for number, _ in self.summary.steps]

    @property
    def events(self):
        return events_of(self.path)


def events_of(path):
    """Events as they stand in a file."""
    return json.loads(gzip.decompress(Path(path).read_bytes()))["traceEvents"]


def summary_of(path):
    return tracetool.summarize(tracetool.read(str(path)))


def count(summary, metric, *path):
    """The total of a metric in a range; 0 where there is no such range."""
    return int(summary.total(metric)[summary.paths.index(path)]) if path in summary.paths else 0


def files_in(folder):
    """The names of all files and folders in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def one_sentence(err):
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("tracetool: ")
    return lines[0].removeprefix("tracetool: ")


def environment(**more):
    """For a process of its own, which finds tracetool wherever it runs."""
    before = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])]), **more}


def process(*arguments, **settings):
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tracetool", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **{"stdin": subprocess.DEVNULL, "env": environment(), **settings},
    )
