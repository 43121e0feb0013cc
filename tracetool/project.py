"""The project that a command runs in."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from tracetool.errors import SettingError

if TYPE_CHECKING:
    from pathlib import Path

MOST_TEXT = 64 << 20


def nearest_pyproject(folder: Path) -> Path | None:
    """The pyproject.toml of a folder, or of the nearest around it that has one."""
    return next((path for one in (folder, *folder.parents) if (path := one / "pyproject.toml").is_file()), None)


def parsed(text: str, source: str, error: type[SettingError] = SettingError) -> dict[str, Any]:
    """The content of a TOML text, which messages call `source`.

    Raises:
        SettingError: it is no TOML; or what `error` names.
    """
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as failure:  # an integer of thousands of digits is no TOMLDecodeError
        raise error(f"{source} is not TOML: {failure}") from None


def ours(content: dict[str, Any]) -> dict[str, Any]:
    """The table `[tool.tracetool]` of a pyproject.toml, empty where there is none."""
    tool = content.get("tool")
    table = tool.get("tracetool") if isinstance(tool, dict) else None
    return table if isinstance(table, dict) else {}


def text_of(path: Path, error: type[SettingError] = SettingError) -> str:
    """The content of a file with settings, budgets or counts.

    Args:
        path: the file.
        error: what is raised.

    Raises:
        SettingError: it cannot be read, is no text, or has more than `MOST_TEXT` of it.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MOST_TEXT + 1)
    except OSError as failure:
        raise error(f"{path} cannot be read: {failure.strerror}") from None
    except UnicodeDecodeError:
        raise error(f"{path} cannot be read: it is not UTF-8 text") from None
    if len(text) > MOST_TEXT:
        raise error(f"{path} has more than {MOST_TEXT >> 20} MiB, which is refused: name a file of budgets or counts")
    return text
