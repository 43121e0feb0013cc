"""The project that a command runs in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def nearest_pyproject(folder: Path) -> Path | None:
    """The pyproject.toml of a folder, or of the nearest around it that has one."""
    return next((path for one in (folder, *folder.parents) if (path := one / "pyproject.toml").is_file()), None)
