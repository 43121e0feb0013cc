"""What can be captured: a workload, a script, a module, a callable; each becomes something to run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import record_function

from tracetool import stepping
from tracetool.errors import CaptureError, nearest
from tracetool.workloads import eager_twin, find_workloads, is_script, may_be_workload, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tracetool.workloads import Session, Workload


@dataclass
class Program:
    """Something that runs once, from its beginning to its end, and may call `tracetool.step()`.

    Attributes:
        title: What it is called in messages.
        facts: What the trace says of it.
        run: Runs it.
    """

    title: str
    facts: dict[str, Any]
    run: Callable[[], None]


@dataclass
class Stepper:
    """Something that is set up, and then does one step after another.

    Attributes:
        title: What it is called in messages.
        facts: What the trace says of it.
        start: Sets it up, before anything is recorded.
        eager: Settings of a workload's twin without CUDA graphs; None where it has or needs none.
        session: What `start` gave.
    """

    title: str
    facts: dict[str, Any]
    start: Callable[[], Session]
    eager: dict[str, str] | None = None
    session: Session | None = field(default=None)

    def set_up(self) -> Session:
        """Set it up, once."""
        if self.session is None:
            self.session = self.start()
        return self.session

    def result(self) -> Any:
        """What the steps came to, where the workload says so."""
        result = getattr(self.session, "result", None)
        return result() if result is not None else None

    def close(self) -> None:
        """Let go of what was set up."""
        close = getattr(self.session, "close", None)
        if close is not None:
            close()


def with_set_up(stepper: Stepper, steps: int) -> Program:
    """A program that sets something up, in a range `setup`, and then does so many steps."""

    def run() -> None:
        with record_function("setup"):
            session = stepper.set_up()
        stepping.step()
        for _ in range(steps):
            session.step()
            stepping.step()

    return Program(stepper.title, stepper.facts, run)


class _Calls:
    """A session whose step is a call."""

    def __init__(self, function: Callable[..., object], arguments: Sequence[str]) -> None:
        self._function = function
        self._arguments = arguments

    def step(self) -> None:
        """Call it."""
        self._function(*self._arguments)


def find_target(name: str, arguments: Sequence[str], *, module: bool, settings: Mapping[str, str]) -> Program | Stepper:
    """What a name on the command line stands for.

    Args:
        name: A script's path, `package.module:function`, a workload's name, or with `module` a module's name.
        arguments: The program's own.
        module: Whether it is run as `python -m` does.
        settings: Values of a workload's axes.

    Raises:
        CaptureError: there is no such thing, or it takes no settings or arguments.
        SettingError: a workload has no such axis or value, or workloads cannot be found.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if module:
        found: Program | Stepper = _module(name, arguments, here)
    elif may_be_workload(name):
        return _workload(name, arguments, settings)
    elif is_script(name):
        found = _script(Path(name), arguments)
    else:
        found = _callable(name, arguments)
    if settings:
        raise CaptureError(f"--set is for workloads; {name} is none, give it arguments of its own")
    return found


def _script(path: Path, arguments: Sequence[str]) -> Program:
    if not path.is_file():
        raise CaptureError(f"there is no script {path}")

    def run() -> None:
        with _as_python_would([str(path), *arguments], str(path.resolve().parent)):
            runpy.run_path(str(path), run_name="__main__")

    return Program(path.name, {"kind": "script", "script": str(path), "arguments": list(arguments)}, run)


def _module(name: str, arguments: Sequence[str], here: str) -> Program:
    try:
        known = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        known = False
    if not known:
        raise CaptureError(f"there is no module {name!r} here or in this environment")

    def run() -> None:
        with _as_python_would([name, *arguments], here):
            runpy.run_module(name, run_name="__main__", alter_sys=True)

    return Program(f"-m {name}", {"kind": "module", "module": name, "arguments": list(arguments)}, run)


@contextlib.contextmanager
def _as_python_would(arguments: list[str], folder: str) -> Iterator[None]:
    """The arguments and the first folder for imports that a program finds."""
    before = sys.argv, list(sys.path)
    sys.argv = arguments
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.argv, sys.path[:] = before


def _callable(name: str, arguments: Sequence[str]) -> Stepper:
    module, _, attribute = name.partition(":")
    try:
        thing: Any = importlib.import_module(module)
    except Exception as error:
        raise CaptureError(
            f"{name}: the module {module!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    owner = module
    for part in attribute.split("."):
        if not hasattr(thing, part):
            known = [one for one in dir(thing) if not one.startswith("_")]
            raise CaptureError(f"{name}: {owner} has no {part!r}: {nearest(part, known)}")
        thing, owner = getattr(thing, part), f"{owner}.{part}"
    if not callable(thing):
        raise CaptureError(f"{name} cannot be called: it is {thing!r:.60}")
    facts = {"kind": "callable", "callable": name, "arguments": list(arguments)}
    return Stepper(name, facts, lambda: _Calls(thing, arguments))


def _workload(name: str, arguments: Sequence[str], settings: Mapping[str, str]) -> Stepper:
    workloads = find_workloads(Path.cwd())
    if name not in workloads:
        raise CaptureError(
            f"{name!r} is no workload ({nearest(name, workloads)}), no script, and no package.module:function"
        )
    if arguments:
        raise CaptureError(f"a workload takes no arguments, but --set axis=value; {arguments[0]!r} is not understood")
    workload: Workload = workloads[name]
    axes = settle(workload, settings)
    facts = {"kind": "workload", "workload": name, "axes": axes}
    return Stepper(name, facts, lambda: workload.start(axes), eager_twin(workload, axes))
