"""Where a program's step ends: a call that programs can leave in, for it does nothing unless something is captured."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_listeners: list[Callable[[], None]] = []


def step() -> None:
    """Say that a step of the program ends here and the next begins."""
    for listener in tuple(_listeners):
        listener()


def listen(listener: Callable[[], None]) -> None:
    """Call a function at the end of each step, until `unlisten`."""
    _listeners.append(listener)


def unlisten(listener: Callable[[], None]) -> None:
    """Call it no more."""
    _listeners.remove(listener)
