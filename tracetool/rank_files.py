"""Which traces a folder or a pattern names, and which rank of a distributed program wrote each."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracetool.errors import TraceReadError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_ENDINGS = (".json", ".json.gz")
_TORCH_ENDINGS = (".pt.trace.json", ".pt.trace.json.gz")
"""What torch's `tensorboard_trace_handler` writes; other JSON beside it is no trace."""

_BY_NAME = (
    re.compile(r"rank[-_.=]?(\d+)", re.IGNORECASE),
    re.compile(r"(?<![a-z])(?:r|gpu|device|worker)[-_.=]?(\d+)(?![a-z])", re.IGNORECASE),
    re.compile(r"(?:^|[-_.])(\d{1,6})$"),
)


def names_several(text: str) -> bool:
    """Whether an argument is a folder, or a pattern of files and not a file's own name."""
    return text != "-" and (Path(text).is_dir() or (glob.has_magic(text) and not Path(text).exists()))


def traces_in(text: str) -> list[str]:
    """The traces that an argument names, sorted: those in a folder, those that fit a pattern, or itself.

    Raises:
        TraceReadError: there are none.
    """
    if not names_several(text):
        return [text]
    if not Path(text).is_dir():
        fits = glob.glob(text, recursive=True)  # noqa: PTH207 (a pattern may begin at the root)
        found = sorted(path for path in fits if not Path(path).is_dir())
        if not found:
            raise TraceReadError(
                f"{text}: no file fits this pattern; check it, and quote it so that the shell lets it be"
            )
        return found
    files = sorted(str(path) for path in Path(text).iterdir() if path.name.endswith(_ENDINGS) and path.is_file())
    found = [path for path in files if path.endswith(_TORCH_ENDINGS)] or files
    if not found:
        raise TraceReadError(f"{text} holds no traces: none of its files ends in .json or .json.gz")
    return found


def noted_rank(metadata: Mapping[str, Any]) -> int | None:
    """The rank that torch noted in a trace (`distributedInfo`)."""
    noted = metadata.get("distributedInfo")
    rank = noted.get("rank") if isinstance(noted, dict) else None
    return rank if isinstance(rank, int) and not isinstance(rank, bool) and rank >= 0 else None


def rank_of(metadata: Mapping[str, Any], path: str) -> int | None:
    """The rank that a trace is of: what torch noted in it (`distributedInfo`), else what the file's name says.

    Read from a name, in this order: `rank3`, `rank_3`; `r3`, `gpu3`, `device3`, `worker3`; a number at its end.
    """
    if (rank := noted_rank(metadata)) is not None:
        return rank
    name = Path(path).name
    for ending in (*reversed(_TORCH_ENDINGS), *reversed(_ENDINGS)):
        name = name.removesuffix(ending)
    for pattern in _BY_NAME:
        if numbers := pattern.findall(name):
            return int(numbers[-1])
    return None


def check_distinct(ranks: Iterable[tuple[int | None, str]]) -> None:
    """See that no two traces are of one rank.

    Raises:
        TraceReadError: two are.
    """
    known: dict[int, str] = {}
    for rank, path in ranks:
        if rank is not None and (other := known.setdefault(rank, path)) != path:
            raise TraceReadError(f"{other} and {path} are both of rank {rank}: name one trace a rank, with a pattern")
