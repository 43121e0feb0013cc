"""What Holistic Trace Analysis (HTA) says of traces, as plain tables; the only module that imports it.

HTA is used as it is, past its known traps: it rounds nanoseconds away unless told not to, drops the last profiler
step, takes files by absolute paths only, and loses correlations with its ijson reader under pandas 3.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracetool import by_name
from tracetool.errors import SettingError, TraceReadError
from tracetool.events import DEVICE_WORK
from tracetool.metrics import op_calls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tracetool.differ import Side
    from tracetool.summary import TraceSummary

NOT_INSTALLED = (
    "Holistic Trace Analysis is not installed: pip install 'tracetool[hta]' && "
    "pip install --no-deps traceinsight==0.6.1"
)

_NUMBER = re.compile(r"(-?[\d,]+(\.\d+)?|nan|not counted)?")
_MOST_KERNELS = 20
_MOST_OPS = 30
_CRITICAL_NAMES = 15


@dataclass(frozen=True, slots=True)
class Table:
    """A table of HTA's, as text.

    Attributes:
        title: What it tells, with the unit where its columns do not name one.
        columns: Headings.
        rows: As many texts each.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns are numbers."""
        return tuple(
            all(_NUMBER.fullmatch(row[at]) for row in self.rows) and any(row[at] for row in self.rows)
            for at in range(len(self.columns))
        )


@dataclass(frozen=True, slots=True)
class Breakdown:
    """All tables of one trace, or of a baseline and a variant.

    Attributes:
        label: Of the side.
        tables: As far as HTA can make them of this trace.
        missing: A sentence for each that it cannot, with what the trace lacks.
    """

    label: str
    tables: tuple[Table, ...]
    missing: tuple[str, ...]


def installed() -> bool:
    """Whether HTA and what it needs are there; nothing is imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("hta", "pandas", "networkx", "plotly"))


def break_down(sides: Sequence[Side]) -> list[Breakdown]:
    """Break down each side, and diff the ops of each variant with the baseline's.

    Raises:
        SettingError: HTA is not installed.
        TraceReadError: HTA cannot read a trace.
    """
    if not installed():
        raise SettingError(NOT_INSTALLED)
    with _quiet():
        loaded = [(side, _loaded(side) if _lack(side) is None else None) for side in sides]
        found = [_of_one(side, analysis) for side, analysis in loaded]
        first, baseline = loaded[0]
        found += [
            _op_diff(first, baseline, side, analysis)
            for side, analysis in loaded[1:]
            if baseline is not None and analysis is not None
        ]
    return found


def _lack(side: Side) -> str | None:
    """Why HTA can say nothing of a trace."""
    if not len(side.summary.work.of(*DEVICE_WORK)):
        return f"'{side.label}' has no device work: HTA breaks down the GPU's time; capture it on a machine with one"
    if not side.summary.step_count:
        return f"'{side.label}' has no profiler steps, by which HTA cuts a trace: call tracetool.step() after each step"
    return None


def _loaded(side: Side) -> Any:
    try:
        return _load(side.summary)
    except Exception as error:
        message = f"HTA cannot read {side.summary.source}: {type(error).__name__}: {_sentence(error)}"
        raise TraceReadError(message) from error


def _load(found: TraceSummary) -> Any:
    os.environ["HTA_DISABLE_NS_ROUNDING"] = "1"
    from hta.common.trace_parser import set_default_trace_parsing_backend
    from hta.configs.parser_config import ParserBackend
    from hta.trace_analysis import TraceAnalysis

    set_default_trace_parsing_backend(ParserBackend.JSON)
    path = str(Path(found.source).resolve())
    return TraceAnalysis(trace_files={0: path}, trace_dir="/", include_last_profiler_step=True)


def _of_one(side: Side, analysis: Any) -> Breakdown:
    lack = _lack(side)
    if lack is not None:
        return Breakdown(side.label, (), (lack,))
    tables, missing = [], []
    parts: list[tuple[str, Callable[[Any], Table | None]]] = [
        ("the temporal breakdown", _temporal),
        ("idle reasons", _idle),
        ("the kernel breakdown", _kernels),
        ("queue lengths", _queue),
        ("communication overlap", _overlap),
        ("the critical path", _critical_path),
    ]
    for name, make in parts:
        try:
            table = make(analysis)
        except Exception as error:  # noqa: BLE001 (whatever HTA stumbles over, the rest is still worth having)
            missing.append(f"HTA could not work out {name} of '{side.label}': {_sentence(error)}")
            continue
        if table is None:
            missing.append(f"'{side.label}' has nothing for {name}.")
        else:
            tables.append(table)
    return Breakdown(side.label, tuple(tables), tuple(missing))


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _temporal(analysis: Any) -> Table | None:
    frame = analysis.get_temporal_breakdown(visualize=False)
    columns = {
        "idle_time(us)": "idle us",
        "compute_time(us)": "compute us",
        "non_compute_time(us)": "copies and memsets us",
        "idle_time_pctg": "idle %",
        "compute_time_pctg": "compute %",
        "non_compute_time_pctg": "copies and memsets %",
    }
    return _table("Temporal breakdown of the GPU", frame, columns)


def _idle(analysis: Any) -> Table | None:
    frame, _ = analysis.get_idle_time_breakdown(ranks=[0], visualize=False)
    columns = {"stream": "stream", "idle_category": "reason", "idle_time": "idle us", "idle_time_ratio": "ratio"}
    return _table("Idle reasons by stream", frame, columns)


def _kernels(analysis: Any) -> Table | None:
    _, frame = analysis.get_gpu_kernel_breakdown(visualize=False, num_kernels=_MOST_KERNELS)
    columns = {
        "name": "kernel",
        "kernel_type": "type",
        "sum (us)": "sum us",
        "mean (us)": "mean us",
        "min (us)": "least us",
        "max (us)": "most us",
    }
    return _table(f"Kernel breakdown (the {_MOST_KERNELS} longest of each type)", frame, columns)


def _queue(analysis: Any) -> Table | None:
    frame = analysis.get_queue_length_summary(ranks=[0])
    if frame is None or not len(frame):
        return None
    flat = frame["queue_length"].reset_index()
    columns = {"stream": "stream", "mean": "mean", "50%": "median", "max": "most"}
    return _table("Queue length: work that is launched and has not begun", flat, columns)


def _overlap(analysis: Any) -> Table | None:
    frame = analysis.get_comm_comp_overlap(visualize=False)
    frame = frame[frame["comp_comm_overlap_pctg"].notna()]
    return _table("Communication overlapped by computation", frame, {"comp_comm_overlap_pctg": "overlap %"})


def _critical_path(analysis: Any) -> Table | None:
    """Of the first step: time by what bounds it, and the ops and kernels with most of it."""
    graph, success = analysis.critical_path_analysis(rank=0, annotation="ProfilerStep", instance_id=0)
    if not success:
        return None
    frame = graph.get_critical_path_breakdown()
    whole = float(frame["duration"].sum())
    rows = [
        (str(bound).replace("_", " ") or "dependencies", "", _text(time), _text(100 * time / whole if whole else 0.0))
        for bound, time in frame.groupby("bound_by")["duration"].sum().sort_values(ascending=False).items()
        if time
    ]
    named = frame[frame["s_name"].notna()].groupby("s_name")["duration"].sum().sort_values(ascending=False)
    rows += [
        ("", str(name), _text(time), _text(100 * time / whole if whole else 0.0))
        for name, time in named.head(_CRITICAL_NAMES).items()
    ]
    return Table("Critical path of the first step", ("bound by", "op or kernel", "us", "%"), tuple(rows))


def _table(title: str, frame: Any, columns: dict[str, str]) -> Table | None:
    """Some columns of a data frame, renamed."""
    if frame is None or not len(frame):
        return None
    kept = [name for name in columns if name in frame.columns]
    rows = tuple(tuple(_text(value) for value in row) for row in frame[kept].itertuples(index=False, name=None))
    return Table(title, tuple(columns[name] for name in kept), rows)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    number = float(value)
    return f"{int(number):,}" if number == int(number) else f"{number:,.2f}"


def _op_diff(first: Side, baseline: Any, side: Side, analysis: Any) -> Breakdown:
    """HTA's diff of ops and kernels over all steps, with our counts beside its own."""
    from hta.trace_diff import LabeledTrace, TraceDiff

    before, after = LabeledTrace(label="before", t=baseline.t), LabeledTrace(label="after", t=analysis.t)
    frame = TraceDiff.compare_traces(
        before, after, control_iteration=before.iterations(), test_iteration=after.iterations()
    )
    ours = [_our_counts(one) for one in (first, side)]
    theirs = {
        str(name): (int(counts[0]), int(counts[1]))
        for name, *counts in frame[["before_counts", "after_counts"]].itertuples(name=None)
    }
    known = {name: tuple(counts.get(name, 0) for counts in ours) for name in theirs if any(name in c for c in ours)}
    agree = sum(theirs[name] == counts for name, counts in known.items())
    changed = sorted(
        (name for name, (one, other) in theirs.items() if one != other),
        key=lambda name: (-abs(theirs[name][1] - theirs[name][0]), name),
    )
    rows = tuple(
        (
            name,
            *(f"{count:,}" for count in theirs[name]),
            *(f"{count:,}" for count in known.get(name, ())),
            *(["not counted"] * (0 if name in known else 2)),
        )
        for name in changed[:_MOST_OPS]
    )
    columns = ("op or kernel", *(f"{one.label}, {by}" for by in ("HTA", "tracetool") for one in (first, side)))
    told = [f"Of {len(known):,} names that both count, {agree:,} have the same counts in both."]
    if len(changed) > _MOST_OPS:
        told.append(f"And {len(changed) - _MOST_OPS:,} more names whose counts differ.")
    tables = (Table("HTA's op diff, all steps, and tracetool's counts of the same", columns, rows),) if rows else ()
    return Breakdown(f"{side.label} vs {first.label}", tables, tuple(told))


def _our_counts(side: Side) -> dict[str, int]:
    """Ops and device work by name, in steps."""
    summary = side.summary
    counts = {
        name: int(sum(summary.step_samples(op_calls(name), row, "self").sum() for row in _rows(summary)))
        for name in summary.tally.op_names
    }
    steps = summary.step_count
    return counts | {one.name: int(one.counts[0] * steps) for one in by_name.device_work([side])}


def _rows(found: TraceSummary) -> range:
    return range(found.before_row)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """HTA logs and prints while it works; what it found is told by its tables."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
