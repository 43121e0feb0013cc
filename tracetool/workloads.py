"""Programs that can be captured by name, and how they are found.

A workload is an object with

    name         what it is called on the command line
    about        one line
    axes         its settings: a mapping from names to objects with `about` (one line), `values` (a mapping from each
                 value to what it does; empty where any text will do) and `default`
    start(settings: Mapping[str, str]) -> session
                 set up, for these settings (all axes, defaults included)

    eager(settings) -> settings or None
                 optional: what to set for the same work without CUDA graphs, so that a comparison can give graphs' work
                 back to its ranges; None where these settings use no graphs
    preload      optional: a list of names of modules that take long to import, and that start no thread and use no
                 device by being imported, nor does the module that offers the workload; a comparison imports them once
                 and forks its processes (on Linux), so what they hold is alike in all

and a session an object with

    step()       one step of the work that is to be captured
    result()     optional: what the steps came to, as JSON has it; equal results say that two variants did the same
    close()      optional: let go of what was set up

Nothing of tracetool needs to be imported for that. A module offers workloads as a list `WORKLOADS`, and is named in the
entry-point group `tracetool.workloads` of an installed package, or in the nearest pyproject.toml:

    [tool.tracetool]
    workloads = ["mypackage.workloads"]
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from tracetool.errors import SettingError, nearest
from tracetool.project import nearest_pyproject, ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

GROUP = "tracetool.workloads"


class Axis(Protocol):
    """A setting of a workload; see the module."""

    @property
    def about(self) -> str:
        """One line."""
        ...

    @property
    def values(self) -> Mapping[str, str]:
        """What each value does; empty where any text will do."""
        ...

    @property
    def default(self) -> str:
        """The value that is taken where none is set."""
        ...


class Session(Protocol):
    """A workload that has been set up; see the module."""

    def step(self) -> None:
        """One step."""
        ...


class Workload(Protocol):
    """A program that can be captured by name; see the module."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def about(self) -> str:
        """One line."""
        ...

    @property
    def axes(self) -> Mapping[str, Axis]:
        """Its settings."""
        ...

    def start(self, settings: Mapping[str, str]) -> Session:
        """Set it up."""
        ...


def is_script(target: str) -> bool:
    """Whether a target is the path of a script."""
    return target.endswith(".py") or Path(target).is_file()


def may_be_workload(target: str) -> bool:
    """Whether a target, if it is anything, is a workload's name: neither a script nor `package.module:function`."""
    return not is_script(target) and ":" not in target


def find_workloads(folder: Path) -> dict[str, Workload]:
    """All workloads of installed packages and of the nearest pyproject.toml, by name.

    Args:
        folder: Where the search for pyproject.toml begins; it goes on upwards.

    Raises:
        SettingError: a module cannot be imported, offers no workloads, or two have one name.
    """
    found: dict[str, Workload] = {}
    for source, offered in _sources(folder):
        for workload in offered:
            missing = [name for name in ("name", "about", "axes", "start") if not hasattr(workload, name)]
            if missing:
                raise SettingError(f"{source} offers a workload without {missing[0]!r}: {workload!r:.80}")
            if workload.name in found:
                raise SettingError(f"{source} offers a workload {workload.name!r}, and so does another: rename one")
            found[workload.name] = workload
    return found


def _sources(folder: Path) -> Iterable[tuple[str, Iterable[Workload]]]:
    for point in importlib.metadata.entry_points(group=GROUP):
        source = f"the entry point {point.name!r} of {GROUP}"
        yield source, _offered(source, _load(source, point.load))
    project = nearest_pyproject(folder)
    if project is None:
        return
    for name in _named_in(project):
        source = f"{name}, which {project} names,"
        # As `python -m` would in that folder.
        if str(project.parent) not in sys.path:
            sys.path.insert(0, str(project.parent))
        yield source, _offered(source, _load(source, lambda name=name: importlib.import_module(name)))


def _load(source: str, load: Any) -> Any:
    try:
        return load()
    except Exception as error:
        raise SettingError(f"{source} cannot be imported: {type(error).__name__}: {error}") from error


def _offered(source: str, thing: Any) -> Iterable[Workload]:
    """What a module's `WORKLOADS`, a list, or a workload itself offers."""
    if hasattr(thing, "start"):
        return [cast("Workload", thing)]
    offered = getattr(thing, "WORKLOADS", thing)
    if not isinstance(offered, list | tuple):
        raise SettingError(f"{source} has no list WORKLOADS")
    return offered


def _named_in(project: Path) -> list[str]:
    try:
        settings = tomllib.loads(project.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError(f"{project} cannot be read: {error}") from None
    names = ours(settings).get("workloads", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SettingError(f"{project}: tool.tracetool.workloads must be a list of module names, but is {names!r:.60}")
    return names


def eager_twin(workload: Workload, settings: Mapping[str, str]) -> dict[str, str] | None:
    """Settings for the same work without CUDA graphs; None where a workload does not say, or uses none.

    Args:
        workload: Which.
        settings: As `settle` gives them.

    Raises:
        SettingError: what the workload says cannot be set.
    """
    eager = getattr(workload, "eager", None)
    twin = None if eager is None else eager(settings)
    return None if twin is None else settle(workload, twin)


def settle(workload: Workload, asked: Mapping[str, str]) -> dict[str, str]:
    """A value for each axis of a workload.

    Args:
        workload: Which.
        asked: Values that are set; the other axes have their defaults.

    Raises:
        SettingError: there is no such axis, or it has no such value.
    """
    for name, value in asked.items():
        if name not in workload.axes:
            raise SettingError(f"{workload.name} has no axis {name!r}: {nearest(name, workload.axes)}")
        values = workload.axes[name].values
        if values and value not in values:
            raise SettingError(f"{workload.name}: {name} cannot be {value!r}: {nearest(value, values)}")
    return {name: asked.get(name, axis.default) for name, axis in workload.axes.items()}
