"""A profiler trace of one run."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from engine.errors import ConfigError


def capture(serve: Callable[[], object], device: torch.device, folder: Path, name: str) -> Path:
    """Run once under torch's profiler.

    Args:
        serve: What is profiled.
        device: Where it runs.
        folder: Of the trace; it is there already.
        name: Of the trace, without its ending; a number is added where there is such a file already.

    Returns:
        The trace, a new file.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        serve()
    path = _new_path(folder, name)
    profiler.export_chrome_trace(str(path))
    return path


def make_folder(folder: Path) -> None:
    """Make the folder that traces go to, before any work is done for them.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--profile-dir {folder} cannot be made: {error.strerror}; name another folder") from None


def _new_path(folder: Path, name: str) -> Path:
    path, number = folder / f"{name}.json.gz", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.json.gz"
    return path
