"""Where and how a trace was captured: what has to be known to make it again, or to believe a comparison."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "triton", "transformers", "numpy")
_RELEVANT = re.compile(r"(CUDA|CUBLAS|CUDNN|TORCH|PYTORCH|TRITON|NCCL|OMP|MKL|HIP|ROCR|HF|TOKENIZERS|ROSELLM)_\w+")
_DRIVER = re.compile(r"\b\d+\.\d+(\.\d+)?\b")
_SECRET = re.compile(r"TOKEN$|KEY|SECRET|PASSWORD|CREDENTIAL")


def collect(folder: Path) -> dict[str, Any]:
    """Versions, GPU, host, repository around a folder and environment, as JSON has them."""
    return {
        "versions": _versions(),
        **_gpu(),
        "host": {"cpu": _cpu(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.release()}"},
        "git": _git(folder),
        "seed": torch.initial_seed(),
        "environment": {
            name: value
            for name, value in sorted(os.environ.items())
            if _RELEVANT.fullmatch(name) and not _SECRET.search(name)
        },
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    # The build, `+cu130`, is in torch's own version alone.
    found["torch"] = str(torch.__version__)
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    driver = _driver()
    return {"gpus": names} | ({"driver": driver} if driver else {})


def _driver() -> str | None:
    """The version of the NVIDIA driver; from the kernel where that tells, since nvidia-smi can take seconds."""
    try:
        told = _DRIVER.search(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    except OSError:
        told = None
    if told:
        return told.group()
    lines = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    return lines[0] if lines else None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - one line of a virtual file
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of the repository around a folder, and whether files differ from it."""
    commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": bool(changed)}


def _output(*command: str) -> str:
    """What a command prints; nothing where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
