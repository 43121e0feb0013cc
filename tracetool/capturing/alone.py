"""Keeps other profilers out while ours runs: torch lets a second one take the place of the first, and then crashes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import profiler

from tracetool.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable

_BEGINNINGS = ("_prepare_trace", "_start_trace")
_TWO = (
    "only one profiler can run in a process, and another one runs or was about to: leave out the program's own "
    "torch.profiler.profile or tracetool.capture, or run the program without tracetool capture"
)


class Alone:
    """While entered, every profiler but one is refused where it begins.

    Args:
        is_ours: Which profiler is not; `torch.profiler.profile` makes them as it goes.

    Raises:
        CaptureError: another profiler runs; it is also raised in the program that begins one.
    """

    def __init__(self, is_ours: Callable[[profiler.profile], bool]) -> None:
        self._is_ours = is_ours
        self._before: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Alone:
        if torch._C._autograd._profiler_enabled():  # noqa: SLF001 - there is no public way to know
            raise CaptureError(_TWO)
        for name in _BEGINNINGS:
            self._before[name] = getattr(profiler.profile, name)
            setattr(profiler.profile, name, self._guarded(self._before[name]))
        return self

    def __exit__(self, *_: object) -> None:
        for name, method in self._before.items():
            setattr(profiler.profile, name, method)

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def begin(one: profiler.profile) -> Any:
            if not self._is_ours(one):
                raise CaptureError(_TWO)
            return method(one)

        return begin
