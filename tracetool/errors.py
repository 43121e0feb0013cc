"""Everything that tracetool raises.

TracetoolError          any failure that a user can mend; the message is one sentence for them
├── TraceReadError      a trace cannot be read: missing, not a trace, malformed, over a limit
├── SettingError        an option or a setting is wrong: a glob, a fold, a metric name
│   └── BudgetError     a budget or a snapshot is wrong: it cannot be read, or names what is not there
├── OutputError         a result cannot be written where it was asked for
└── CaptureError        a program cannot be captured, or nothing came of it
"""

import difflib
from collections.abc import Iterable


class TracetoolError(Exception):
    """A failure that a user can mend.

    The message names the file, the range or the setting, and what would mend it. It is printed as it is and
    the command ends with `exit_code`.
    """

    exit_code = 2


class TraceReadError(TracetoolError):
    """A trace cannot be read."""


class SettingError(TracetoolError):
    """An option or a setting is wrong."""


class BudgetError(SettingError):
    """A budget or a snapshot is wrong."""


class OutputError(TracetoolError):
    """A result cannot be written where it was asked for."""


class CaptureError(TracetoolError):
    """A program cannot be captured, or nothing came of it."""


def nearest(name: str, names: Iterable[str], otherwise: str = "") -> str:
    """What to say of a name that is not one of `names`: the nearest; where none is near `otherwise`, or all."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise or f"there are {', '.join(known) or 'none'}"
