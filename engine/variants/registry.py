"""Named, documented implementations of one interface."""

import inspect
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """The values of one axis.

    Args:
        axis: The option that chooses among them.
        about: What the axis is about, in a line.
    """

    def __init__(self, axis: str, about: str) -> None:
        self.axis = axis
        self.about = about
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Make a class a value of this axis."""

        def add(entry: type[T]) -> type[T]:
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> type[T]:
        return self._entries[name]

    @property
    def names(self) -> tuple[str, ...]:
        """The values, in the order of registration."""
        return tuple(self._entries)

    def describe(self, name: str) -> str:
        """What a value does: the first line of its docstring."""
        return (inspect.getdoc(self._entries[name]) or "").partition("\n")[0]
