"""How much of a file is taken before it is refused, so that no file takes all of the machine's memory.

Real traces are far below; who has a larger one, and the memory for it, sets the variable that the refusal names.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from tracetool.errors import SettingError

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """Each is the variable `TRACETOOL_` and its name in capitals.

    Attributes:
        max_events: that count, of one trace; each takes some 60 bytes of memory until it is counted.
        max_names_mib: of distinct names, threads and lines of one trace.
        max_piece_mib: of JSON in one event, or in all that stands before the events or after them; decoded it takes up
            to twenty times as much.
        max_paths_mib: of the paths of ranges, each with all names from the outermost on: what a thousand names within
            each other take is a thousand times a thousand.
        max_merge_mib: of JSON in one trace that is merged, which takes some six times as much.
    """

    max_events: int = 100_000_000
    max_names_mib: int = 2048
    max_piece_mib: int = 32
    max_paths_mib: int = 512
    max_merge_mib: int = 1024

    @classmethod
    def of_environment(cls) -> Limits:
        """The limits, as far as the environment does not set others.

        Raises:
            SettingError: one is set to something else than a whole number above 0.
        """
        names = {field.name: f"TRACETOOL_{field.name.upper()}" for field in fields(cls)}
        return cls(**{name: _number(variable) for name, variable in names.items() if variable in os.environ})

    @property
    def names_bytes(self) -> int:
        """`max_names_mib` in bytes."""
        return self.max_names_mib * _MIB

    @property
    def piece_bytes(self) -> int:
        """`max_piece_mib` in bytes."""
        return self.max_piece_mib * _MIB

    @property
    def paths_bytes(self) -> int:
        """`max_paths_mib` in bytes."""
        return self.max_paths_mib * _MIB

    @property
    def merge_bytes(self) -> int:
        """`max_merge_mib` in bytes."""
        return self.max_merge_mib * _MIB


def _number(variable: str) -> int:
    text = os.environ[variable]
    if not (text.isascii() and text.isdigit() and int(text[:18])):
        raise SettingError(f"{variable} is {text!r:.40}: set it to a whole number above 0, or not at all")
    return int(text[:18])
