"""The pytest plugin: budgets as markers, traces as fixtures.

pytest loads this in every run of every project that has tracetool installed, so nothing but pytest and the standard
library is imported before a test asks for something.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import TracebackType

    from tracetool.budgets import Budget
    from tracetool.capturing.session import Capture
    from tracetool.checking import Check, Outcome
    from tracetool.queries import RangeCounts, Trace

MARKER = "trace_budget"
_ABOUT = (
    f"{MARKER}(range, *, per='call', allow=[...], **metrics): capture the test's body under the profiler, and fail it "
    "where a metric of the range breaks its bound, as in h2d_copies=1 or kernel_launches='<= 140'. May be repeated."
)
_FOLDER = "__trace_snapshots__"
_PROPERTY = "tracetool"


class BudgetBrokenError(AssertionError):
    """A test broke a budget, or could not be held against it: all that there is to say are these sentences."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options, each with a twin in the ini file."""
    group = parser.getgroup("tracetool", "budgets on what torch programs do (tracetool)")
    group.addoption(
        "--trace-update",
        action="store_true",
        default=None,
        help="Accept the counts of this run into the snapshots of trace_snapshot.",
    )
    group.addoption(
        "--trace-dir",
        metavar="DIR",
        default=None,
        help="Keep the traces of failed tests in DIR, and say how to open them.",
    )
    group.addoption(
        "--trace-off",
        action="store_true",
        default=None,
        help="Capture nothing: tests with budgets run as they are, tests that ask for a trace are skipped.",
    )
    parser.addini("trace_update", "As --trace-update.", type="bool", default=False)
    parser.addini("trace_dir", "As --trace-dir, from the ini file's folder.", default="")
    parser.addini("trace_off", "As --trace-off.", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line("markers", _ABOUT)


def _flag(config: pytest.Config, name: str) -> bool:
    given = config.getoption(name)
    return bool(config.getini(name) if given is None else given)


def _trace_folder(config: pytest.Config) -> Path | None:
    given = config.getoption("trace_dir")
    if given is not None:
        return config.invocation_params.dir / str(given)
    written = str(config.getini("trace_dir"))
    return config.rootpath / written if written else None


# A test's budgets and traces ---------------------------------------------------------------------------------------


class _Session:
    """What a test is held against, and what it captured."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self.traces: list[Path] = []
        self.asked: list[Trace] = []
        self.budgets: list[Budget] = []

    def new_trace(self) -> Path:
        """Where the next trace goes."""
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="tracetool-pytest-")
        self.traces.append(Path(self._temporary.name) / f"{len(self.traces) + 1}.json.gz")
        return self.traces[-1]

    def keep(self, folder: Path) -> Iterator[Path]:
        """Move the traces to a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        there = [path for path in self.traces if path.exists()]
        for number, path in enumerate(there, 1):
            ending = f"-{number}" if len(there) > 1 else ""
            target = folder / f"{_file_name(self._item.nodeid)}{ending}.json.gz"
            shutil.move(path, target)
            yield target

    def close(self) -> None:
        """Delete what is left."""
        if self._temporary is not None:
            self._temporary.cleanup()


_SESSION = pytest.StashKey[_Session]()


def _session(item: pytest.Item) -> _Session:
    if _SESSION not in item.stash:
        item.stash[_SESSION] = _Session(item)
    return item.stash[_SESSION]


def _file_name(text: str) -> str:
    """A name for a file, one for each text: with a digest where something had to be left out."""
    name = re.sub(r"[^\w.=-]+", "_", text).strip("_")[-100:]
    return name if name == text else f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def _markers(item: pytest.Item) -> list[pytest.Mark]:
    """The test's budgets, those of its class and module before its own."""
    return list(item.iter_markers(MARKER))[::-1]


def _budgets(item: pytest.Item) -> list[Budget]:
    """What the markers say.

    Raises:
        TracetoolError: one of them is no budget.
    """
    from tracetool.budgets import parse_table
    from tracetool.errors import BudgetError

    found = []
    for mark in _markers(item):
        if len(mark.args) > 1 or "range" in mark.kwargs:
            raise BudgetError(f"{MARKER} takes one range, in quotes, and then metrics by name: repeat it for another")
        found += parse_table({**({"range": mark.args[0]} if mark.args else {}), **mark.kwargs}, MARKER)
    return found


def _require_torch(what: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.fail(
            f"{what} captures with torch, which is not installed: pip install 'tracetool[capture]'", pytrace=False
        )


def _has_device() -> bool:
    from tracetool.capturing.device import has_device

    return has_device()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Delete a test's traces when it is over."""
    try:
        return (yield)
    finally:
        if _SESSION in item.stash:
            item.stash[_SESSION].close()
            del item.stash[_SESSION]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Read a test's budgets before anything runs for it; skip it where they need a device that is not there."""
    if item.get_closest_marker(MARKER) is None or _flag(item.config, "trace_off"):
        return
    from tracetool.checking import device_metrics
    from tracetool.errors import TracetoolError

    wrong = ""
    try:
        budgets = _budgets(item)
    except TracetoolError as error:
        wrong, budgets = str(error), []
    if wrong:
        pytest.fail(wrong, pytrace=False)
    _require_torch(MARKER)
    if (names := device_metrics(budgets)) and not _has_device():
        pytest.skip(f"{', '.join(names)} cannot be counted: there is no GPU")
    _session(item).budgets = budgets


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Capture the body of a test with budgets (unless it captures itself), and hold it against them."""
    session = item.stash.get(_SESSION, None)
    if session is None:
        return (yield)
    from tracetool.errors import TracetoolError
    from tracetool.queries import NotRecordedError

    itself = "trace_capture" in getattr(item, "fixturenames", ())
    try:
        if itself or not session.budgets:
            result = yield
        else:
            with _capture(session.new_trace(), stacks=True) as one:
                result = yield
            session.asked.append(_ask(one.path))
    except NotRecordedError as error:
        if not _has_device():
            pytest.skip(f"{error}")
        raise
    except _Refused as error:
        raise BudgetBrokenError(str(error)) from None
    if session.budgets:
        try:
            _hold(session)
        except TracetoolError as error:
            raise BudgetBrokenError(str(error)) from None
    return result


class _Refused(Exception):  # noqa: N818 - it never leaves this module
    """A capture around a test's body failed, and not the test."""


class _capture:  # noqa: N801 - used like a function
    """`tracetool.capture` around a test's body, whose own failures are told apart from the body's."""

    def __init__(self, path: Path, **settings: Any) -> None:
        # What Kineto prints of itself would be shown as a test's output; it asks when it is first used.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        from tracetool.capturing.block import capture

        self._one: Capture = capture(path, **settings)

    def __enter__(self) -> Capture:
        from tracetool.errors import TracetoolError

        try:
            return self._one.__enter__()
        except TracetoolError as error:
            raise _Refused(str(error)) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from tracetool.errors import TracetoolError

        try:
            self._one.__exit__(kind, error, traceback)
        except TracetoolError as failure:
            if kind is None:
                raise _Refused(str(failure)) from None
            raise


def _ask(path: Path) -> Trace:
    from tracetool.queries import Trace

    return Trace(path)


def _hold(session: _Session) -> None:
    """Hold what a test captured against its budgets."""
    from tracetool import checking
    from tracetool.render.sentences import sentence

    if not session.asked:
        raise BudgetBrokenError(f"the test has a {MARKER} and asks for trace_capture, but captured nothing with it")
    outcomes: list[Outcome] = []
    for trace in session.asked:
        trace.require_health(needs_device=checking.needs_device(session.budgets))
        outcomes += checking.check(trace.summary, session.budgets)
    broken = [sentence(one) for one in outcomes if one.result is checking.Result.BROKEN]
    if broken:
        raise BudgetBrokenError("\n".join(broken))
    unchecked = [sentence(one) for one in outcomes if one.result is checking.Result.NOT_CHECKED]
    if unchecked:
        pytest.skip("; ".join(unchecked))


# Reports -----------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A broken budget is reported in its own words, in the short summary too; traces of failed tests are kept."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and report.longrepr[0] == __file__:
        path, line, _ = item.location
        report.longrepr = (path, (line or 0) + 1, report.longrepr[2])
    session = item.stash.get(_SESSION, None)
    if session is None or call.when != "call":
        return report
    if call.excinfo is not None and isinstance(call.excinfo.value, BudgetBrokenError):
        report.longrepr = _in_words(item, call.excinfo)
    folder = _trace_folder(item.config)
    if folder is not None and report.failed:
        report.sections.append(("tracetool", _kept(session, folder)))
    return report


def _in_words(item: pytest.Item, excinfo: pytest.ExceptionInfo[BaseException]) -> Any:
    told: Any = excinfo.getrepr(style="value")
    path, line, _ = item.location
    first, *others = str(excinfo.value).split("\n")
    message = f"{first} (and {len(others)} more)" if others else first
    told.reprcrash = type(told.reprcrash)(path, (line or 0) + 1, message)
    told.chain = [(told.reprtraceback, told.reprcrash, None)]  # what xdist sends to its controller
    return told


def _kept(session: _Session, folder: Path) -> str:
    try:
        paths = list(session.keep(folder))
    except OSError as error:
        return f"the trace cannot be kept in {folder}: {error.strerror}"
    commands = [shlex.join(["tracetool", "open", os.path.relpath(path)]) for path in paths]
    return "\n".join(["the trace is kept, to look at it:", *commands]) if paths else "the test ended before any trace"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say which counts were accepted."""
    told = [
        value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, value in report.user_properties
        if name == _PROPERTY
    ]
    if told:
        terminalreporter.section("trace snapshots")
        for line in told:
            terminalreporter.write_line(line)


# Fixtures ----------------------------------------------------------------------------------------------------------


class TraceCapture:
    """Captures a block of a test.

    with trace_capture(warmup=2, steps=3) as trace:
        for _ in trace:
            decode()
    assert trace.range("decode_step").kernel_launches == 36
    """

    def __init__(self, session: _Session) -> None:
        self._session = session

    def __call__(
        self,
        *,
        steps: int | None = None,
        warmup: int | None = None,
        lines: bool | None = None,
        stacks: bool = False,
        shapes: bool = False,
        memory: bool = False,
        cold: bool = False,
    ) -> Block:
        """Capture a `with` block.

        Args:
            steps: iterations over the block that are recorded; without it all of the block is.
            warmup: iterations before those, which are not (2, where there are steps).
            lines: note the line that calls each op, in one more iteration; by default where there are steps.
            stacks: record Python frames, so that a count is told by function.
            shapes: record shapes of ops' inputs.
            memory: record allocations.
            cold: compile anew what is compiled just in time.
        """
        if steps is None and (warmup is not None or lines):
            raise ValueError("trace_capture: warmup and lines are for a capture by steps: say how many, steps=3")
        settings: dict[str, Any] = {"stacks": stacks, "shapes": shapes, "memory": memory, "cold": cold}
        if steps is not None:
            settings |= {"wait": 0, "warmup": warmup, "active": steps, "lines": lines is not False}
        return Block(self._session, settings)


class Block:
    """A `with` block that is captured, and afterwards the trace of it, which can be asked."""

    def __init__(self, session: _Session, settings: dict[str, Any]) -> None:
        self._session = session
        self._settings = settings
        self._capture: Capture | None = None
        self._trace: Trace | None = None

    def __enter__(self) -> Block:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        from tracetool.capturing.block import capture

        self._capture = capture(self._session.new_trace(), **self._settings)
        self._capture.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        __tracebackhide__ = True
        assert self._capture is not None
        self._capture.__exit__(kind, error, traceback)
        if kind is None:
            self._trace = _ask(self._capture.path)
            self._session.asked.append(self._trace)

    def __iter__(self) -> Iterator[int]:
        """Count the iterations that the capture needs, each of which is a step."""
        needed = None if self._capture is None else self._capture.steps_needed
        if self._capture is None or needed is None:
            raise ValueError("iterate inside the with block, and say how many are recorded: trace_capture(steps=3)")
        for number in range(needed):
            yield number
            self._capture.step()

    @property
    def trace(self) -> Trace:
        """The trace.

        Raises:
            ValueError: the block has not ended.
        """
        if self._trace is None:
            raise ValueError("the trace can be asked after the with block has ended")
        return self._trace

    def range(self, pattern: str) -> RangeCounts:
        """The counts of a range; see `tracetool.queries.Trace.range`."""
        __tracebackhide__ = True
        return self.trace.range(pattern)

    @property
    def whole(self) -> RangeCounts:
        """The counts of the whole trace."""
        return self.trace.whole

    def check(self, pattern: str = "", /, **settings: Any) -> None:
        """Hold the trace against budgets; see `tracetool.queries.Trace.check`."""
        __tracebackhide__ = True
        self.trace.check(pattern, **settings)


@pytest.fixture
def trace_capture(request: pytest.FixtureRequest) -> TraceCapture:
    """Captures a `with` block under the profiler; what it gives can be asked afterwards."""
    if _flag(request.config, "trace_off"):
        pytest.skip("--trace-off: nothing is captured")
    _require_torch("trace_capture")
    return TraceCapture(_session(request.node))


@pytest.fixture
def trace_snapshot(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compares what `trace_capture` gave with the counts that are committed."""
    item, config = request.node, request.config
    module = item.path
    names = item.nodeid.split("::")[1:]

    def compare(trace: Block | Trace, name: str = "") -> None:
        """Compare, or with `--trace-update` accept.

        Args:
            trace: of `trace_capture`.
            name: tells several snapshots of one test apart.
        """
        __tracebackhide__ = True
        asked = trace.trace if isinstance(trace, Block) else trace
        file = f"{_file_name('.'.join([*names, *([name] if name else [])]))}.txt"
        path = module.parent / _FOLDER / module.stem / file
        asked.require_health(needs_device=_has_device_work(asked))
        if _flag(config, "trace_update"):
            _accept(item, asked, path)
        else:
            _compare(asked, path)

    return compare


def _has_device_work(trace: Trace) -> bool:
    """Whether a snapshot of it would be about a device."""
    return trace.summary.holds("kernels")


def _accept(item: pytest.Item, trace: Trace, path: Path) -> None:
    from tracetool import baselines
    from tracetool.render.sentences import accepted, telling

    check, snapshot = baselines.accept(trace.summary, [], path)
    for one in telling(check.accepted or ())[0]:
        item.user_properties.append((_PROPERTY, f"{item.nodeid}: {accepted(one)}"))
    if check.accepted or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        baselines.write_snapshot(snapshot, path)


def _compare(trace: Trace, path: Path) -> None:
    __tracebackhide__ = True
    from tracetool import baselines

    shown = os.path.relpath(path)
    if not path.exists():
        raise AssertionError(f"there is no snapshot {shown}: run pytest --trace-update, look at it and commit it")
    check: Check = baselines.judge(trace.summary, [], baselines.Reference(path))
    if check.not_comparable:
        pytest.skip(f"{check.not_comparable}; pytest --trace-update adds a section for this one")
    _raise_broken(check, shown)


def _raise_broken(check: Check, shown: str) -> None:
    __tracebackhide__ = True
    from tracetool.render.sentences import sentence, telling

    broken, left = telling(check.outcomes)
    if broken:
        more = [f"and {left} more counts that follow from these"] if left else []
        lines = [*map(sentence, broken), *more, f"pytest --trace-update accepts this into {shown}"]
        raise AssertionError("\n".join(lines))
    unchecked = [sentence(one) for one in check.not_checked]
    if unchecked:
        pytest.skip("; ".join(unchecked))
