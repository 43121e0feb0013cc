"""What part of a result is shown: which ranges, which metrics, how deep, per what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracetool.folding import STEP

if TYPE_CHECKING:
    from tracetool.differ import Per
    from tracetool.globs import PathGlob
    from tracetool.summary import Path


@dataclass(frozen=True, slots=True)
class View:
    """A choice of ranges and metrics; empty means all."""

    patterns: tuple[PathGlob, ...] = ()
    metrics: tuple[str, ...] = ()
    depth: int | None = None
    everything: bool = False
    """Also what did not change, or is zero."""
    per: Per | None = None
    command: str = ""
    """The command that shows the next view, for the last line."""

    def shows(self, path: Path) -> bool:
        """Whether a range is shown: patterns see its path with and without the profiler's steps."""
        bare = tuple(name for name in path if name != STEP)
        if self.depth is not None and len(bare) > self.depth:
            return False
        return not self.patterns or any(
            pattern.matches(path) or (bare and pattern.matches(bare)) for pattern in self.patterns
        )
