"""One case: a spoilt file, some commands on it, and what is wrong with how they ended.

Every command ends with 0, 1 or 2 and, where it fails, with one sentence; it stays within bounds of time and memory,
prints nothing that steers a terminal, and leaves no litter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from tests.tracetool.fuzz import mutations
from tests.tracetool.traces import ROOT
from tracetool import read, snapshots
from tracetool.cli import main
from tracetool.errors import TraceReadError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tracetool.events import Trace

MOST_SECONDS = 20.0
"""Of processor time, for one command."""
MOST_BYTES = 300 << 20
"""Of memory, for one command, beyond what the process had."""
ADDRESS_SPACE = 6 << 30

_TRACES = sorted([*ROOT.glob("traces/*.json.gz"), *ROOT.glob("tests/tracetool/real/*.json.gz")])
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_INJECTED = ("<script>alert(1)", "<img src=x")
_BUDGETS = """
[[budgets]]
range = "**"
per = "call"
h2d_copies = "<= 4"
"self.syncs" = "<= 3"
allow = [{ op = "aten::copy_", line = "sampler.py:40", metric = "h2d_copies", reason = "because" }]

[[budgets]]
per = "trace"
kernel_launches = "<= baseline * 1.05"
h2d_bytes = "<= 64 KiB"

[budgets.op_calls]
"aten::copy_" = "<= 100"
"""
_PROJECT = """
[project]
name = "x"

[tool.tracetool]
workloads = ["tests.tracetool.fuzz"]

[[tool.tracetool.budgets]]
range = "a/*"
cpu_ns = "<= 2.5 ms"
"""
_WORDS = (
    *(
        "range",
        "per",
        "budgets",
        "[[budgets]]",
        "[tool]",
        "tool = 5",
        "[tool.tracetool]",
        "tracetool = 5",
        "allow",
        "=",
    ),
    *("tool.tracetool = [1]", "call", "step", "trace", "baseline", "environment", "records", "a", "..", "3..5", "5..3"),
    *("range \\", "range /", "range //", "\\x0", "\\xzz", "# tracetool snapshot 1", "# tracetool snapshot 2", "'''"),
    *("op_calls", '"op_calls[x]"', "h2d_copies", "  h2d_copies 1 a call", "  environment", "x = [" + "[" * 3000),
    *(
        "x = " + "{a=" * 3000,
        "workloads = 5",
        "workloads = [5]",
        'workloads = [""]',
        'workloads = ["..x"]',
        "budgets = 5",
    ),
)
_SUMMARY_OPTIONS: tuple[tuple[str, ...], ...] = (
    *((), (), ("--all",), ("--per", "call", "--all"), ("--per", "trace"), ("--depth", "2"), ("--fold", r"\d+")),
    *(("--ranges-as", "op:*"), ("--ranges-as", "python:*"), ("--ranges-as", "thread"), ("--ranges-as", "module")),
)


class Bases:
    """The real traces, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[Path, dict[str, Any]] = {}

    def any(self, rng: random.Random) -> tuple[Path, dict[str, Any]]:
        path = rng.choice(_TRACES)
        if path not in self._known:
            self._known[path] = json.loads(gzip.decompress(path.read_bytes()))
        return path, self._known[path]

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """An empty folder for a case."""
        place = self._folder / "case"
        place.mkdir()
        before = Path.cwd()
        os.chdir(place)
        try:
            yield place
        finally:
            os.chdir(before)
            shutil.rmtree(place)


def run_case(seed: int, bases: Bases) -> list[str]:
    """What is wrong with how a case ends; each begins with the command."""
    rng = random.Random(seed)
    with bases.place() as place:
        kind = rng.choices([_trace_case, _snapshot_case, _budgets_case, _project_case], [80, 8, 8, 4])[0]
        return kind(rng, bases, place)


def content_of(seed: int, bases: Bases) -> dict[str, bytes]:
    """The files of a case by their names, for whoever has to look at one."""
    with (
        mock.patch(f"{__name__}._Case.run", return_value=2),
        mock.patch(f"{__name__}._same_in_pieces", return_value=[]),
    ):
        kept: dict[str, bytes] = {}
        take = shutil.rmtree

        def keep(place: Path) -> None:
            kept.update({path.name: path.read_bytes() for path in place.iterdir() if path.is_file()})
            take(place)

        with mock.patch("shutil.rmtree", keep):
            run_case(seed, bases)
        return kept


# Kinds of cases ------------------------------------------------------------------------------------------------


class _Case:
    """Commands and what was found wrong with them."""

    def __init__(self, place: Path, length: int = 0) -> None:
        self.place = place
        self.length = length
        self.finds: list[str] = []

    def run(self, *arguments: object) -> int:
        """Run a command, and look at how it ends."""
        words = [str(one) for one in arguments]
        out, err = io.StringIO(), io.StringIO()
        before = set(self.place.iterdir())
        code, why = _bounded(lambda: _quietly(words, out, err))
        finds = [why] if why else _wrong(words, code, out.getvalue(), err.getvalue())
        litter = [path.name for path in set(self.place.iterdir()) - before if path.name.startswith(".")]
        finds += [f"left {litter}"] if litter else []
        self.finds += [f"{' '.join(words)}: {find}" for find in finds]
        return code


def _trace_case(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    base, content = bases.any(rng)
    target = place / rng.choice(["case.json", "case.json", "case.json.gz", "case \x1b[31m<b>.json"])
    spoilt, length = mutations.spoilt_trace(content, rng)
    target.write_bytes(spoilt)
    case = _Case(place, length)
    form = ("--format", rng.choice(["terminal", "markdown", "json"]))
    case.run("summary", target, *form, *rng.choice(_SUMMARY_OPTIONS))
    for _ in range(rng.choice([1, 1, 2])):
        rng.choices(*zip(*_MORE, strict=True))[0](case, rng, base, target)
    return case.finds


def _health(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    del base
    case.run("health", target, "--format", rng.choice(["terminal", "markdown", "json"]))


def _diff(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    sides = rng.choice([(base, target), (target, base), (target, target), (target, base, target)])
    form = rng.choice(["terminal", "markdown", "json"])
    case.run("diff", *sides, "--format", form, *rng.choice([(), ("--all",), ("--self",), ("--exit-code",)]))


def _given_back(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    traces = rng.choice([(target, base), (ROOT / "traces/toy_graph.json.gz", target), (target, target)])
    case.run("summary", traces[0], "--ranges-from", traces[1])


def _check(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    budgets = case.place / "budgets.toml"
    budgets.write_text(_BUDGETS)
    form = ("--format", rng.choice(["terminal", "markdown", "json", "github"]))
    baseline = ("--baseline", rng.choice([base, target]))
    case.run("check", rng.choice([base, target]), *baseline, *form, *rng.choice([(), ("--any-env",)]))
    case.run("check", target, "--budgets", budgets, *form)


def _snapshot(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    del rng, base
    text = case.place / "snapshot.txt"
    if case.run("snapshot", target, "-o", text) == 0:
        found = snapshots.parse(text.read_text(encoding="utf-8"), "snapshot.txt")
        if snapshots.to_text(found) != text.read_text(encoding="utf-8"):
            case.finds.append("snapshot: what it wrote reads as something else")
        if case.run("check", target, "--baseline", text) > 0:
            case.finds.append("check: a trace differs from its own snapshot")
        case.run("check", target, "--baseline", text, "--update")


def _report(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    page = case.place / "page.html"
    case.run("report", *rng.choice([(target,), (base, target)]), "-o", page)
    if page.exists():
        text = page.read_text(encoding="utf-8")
        case.finds += [f"report: {one} is in the page" for one in _INJECTED if one in text]


def _merge(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    merged = case.place / "merged.json"
    if case.run("merge", *rng.choice([(base, target), (target, target)]), "-o", merged) == 0:
        json.loads(merged.read_bytes(), parse_constant=_refuse)


def _breakdown(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    del rng, base
    case.run("breakdown", target)


def _open(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    traces = rng.choice([(target,), (base, target)])
    with mock.patch("tracetool.viewer.Viewer.wait"):
        case.run("open", *traces, "--no-browser", *rng.choice([(), ("--range", "**")]))


def _pieces(case: _Case, rng: random.Random, base: Path, target: Path) -> None:
    del base
    case.finds += _same_in_pieces(target, rng.choice([1, 7, 100, 5000]), case.length)


_MORE: tuple[tuple[Callable[..., None], int], ...] = (
    *((_health, 8), (_diff, 40), (_given_back, 12), (_check, 30), (_snapshot, 30), (_merge, 30), (_pieces, 40)),
    *((_open, 8), (_report, 3), (_breakdown, 1)),
)


def _same_in_pieces(target: Path, chunk_bytes: int, length: int) -> list[str]:
    """What is read does not depend on how much is read at a time."""
    found: list[Any] = []
    # The whole window is looked at anew for each: some hundred times are enough.
    chunk_bytes = max(chunk_bytes, length // 100)
    for size in (chunk_bytes, 1 << 20):
        try:
            found.append(read(str(target), chunk_bytes=size))
        except TraceReadError as error:
            found.append(str(error))
    if isinstance(found[0], str) or isinstance(found[1], str):
        return [] if type(found[0]) is type(found[1]) else [f"read: {chunk_bytes} bytes at a time: {found[0]!s:.200}"]
    one, other = (_told(trace) for trace in found)
    differing = [name for name, told in one.items() if told != other[name]]
    return [f"read: {chunk_bytes} bytes at a time give another {differing}"] if differing else []


def _told(trace: Trace) -> dict[str, Any]:
    """All that a trace says, without the numbers that its names happen to have."""
    told: dict[str, Any] = {"metadata": trace.metadata, "report": trace.report, "threads": trace.events.threads}
    names = trace.events.names
    for field in dataclasses.fields(trace.events):
        column = getattr(trace.events, field.name)
        if isinstance(column, np.ndarray):
            told[field.name] = [names[at] for at in column] if field.name == "name" else column.tolist()
        elif not isinstance(column, list):
            values = [names[at] for at in column.values] if field.name == "line" else column.values.tolist()
            told[field.name] = (column.rows.tolist(), values)
    return told


def _snapshot_case(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    base, _ = bases.any(rng)
    text = place / "snapshot.txt"
    case = _Case(place)
    _quietly(["snapshot", str(base), "-o", str(text)], io.StringIO(), io.StringIO())
    if not text.exists():
        return []
    text.write_bytes(mutations.spoilt_text(text.read_text(encoding="utf-8"), rng, _WORDS))
    form = rng.choice(["terminal", "markdown", "json", "github"])
    case.run("check", base, "--baseline", text, "--format", form, *rng.choice([(), ("--any-env",)]))
    case.run("snapshot", base, "-o", text, *rng.choice([(), ("--force",)]))
    return case.finds


def _budgets_case(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    base, _ = bases.any(rng)
    budgets = place / "budgets.toml"
    budgets.write_bytes(mutations.spoilt_text(_BUDGETS, rng, _WORDS))
    case = _Case(place)
    case.run("check", base, "--budgets", budgets, "--baseline", rng.choice([base, budgets]))
    case.run("check", base, "--budgets", budgets, "--format", rng.choice(["terminal", "json", "github"]))
    return case.finds


def _project_case(rng: random.Random, bases: Bases, place: Path) -> list[str]:
    base, _ = bases.any(rng)
    (place / "pyproject.toml").write_bytes(mutations.spoilt_text(_PROJECT, rng, _WORDS))
    case = _Case(place)
    case.run("check", base)
    case.run("workloads")
    return case.finds


# How a command ends --------------------------------------------------------------------------------------------


def _quietly(words: list[str], out: io.StringIO, err: io.StringIO) -> int:
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        return main(words)


class OverTimeError(BaseException):
    """No `except Exception` may swallow it."""


def _bounded(work: Callable[[], int]) -> tuple[int, str]:
    """What it gives, and which bound it broke."""

    def late(*_: object) -> None:
        raise OverTimeError

    before, began = _peak(forget=True), time.process_time()
    signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, MOST_SECONDS)
    try:
        code = work()
    except OverTimeError:
        return -1, f"took more than {MOST_SECONDS:.0f} s"
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    if time.process_time() - began > MOST_SECONDS:
        return code, f"took {time.process_time() - began:.1f} s"
    grown = _peak() - before
    return code, f"took {grown >> 20} MiB" if grown > MOST_BYTES else ""


def _peak(*, forget: bool = False) -> int:
    """The most memory that this process has had, in bytes; since the last time that it was to be forgotten."""
    if forget:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return 0


def limit_memory() -> None:
    """Let this process have no more than the bound."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


def _wrong(words: list[str], code: int, out: str, err: str) -> list[str]:
    finds = []
    said = err.strip("\n").split("\n") if err.strip() else []
    failures = [line for line in said if line.startswith("tracetool: ")]
    if code not in (0, 1, 2):
        finds.append(f"ended with {code}")
    if "a defect in tracetool" in err or "Traceback" in err:
        finds.append(err.strip()[:500])
    if "out of memory" in err:
        finds.append(f"memory: {err.strip()[:200]}")
    said = [line for line in said if not line.startswith("reading ")]
    if code == 2 and (len(failures) != 1 or len(said) > 1):
        finds.append(f"failed in {len(failures)} sentences: {err[:300]!r}")
    if code != 2 and failures:
        finds.append(f"ended with {code} and {failures[0][:200]}")
    for name, text in (("standard output", out), ("standard error", err)):
        if (odd := _CONTROL.search(text)) is not None:
            finds.append(f"{odd.group()!r} on {name}: {text[max(0, odd.start() - 60) : odd.end() + 20]!r}")
    if "json" in words[words.index("--format") + 1 :] if "--format" in words else False:
        finds += _no_json(out) if out else []
    return finds


def _no_json(text: str) -> list[str]:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        return [f"wrote what is no JSON: {error}"]
    return []


def _refuse(constant: str) -> None:
    raise ValueError(constant)
