"""Compiles `tracetool/chrome/quick.c` when tracetool is installed, where there is a C compiler.

Nothing depends on it but speed: without a compiler tracetool is installed without it, and says so.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_SOURCE = "tracetool/chrome/quick.c"
_LIBRARY = "tracetool/chrome/quick.compiled"
_FLAGS = ("-O3", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden")


class CompileQuick(BuildHookInterface[Any]):
    """Adds the compiled library to a wheel, which is then one for this platform, and to an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 (hatchling's interface)
        """Compile; on failure the wheel stays one for every platform."""
        if self.target_name != "wheel":
            return
        root = Path(self.root)
        if not compile_library(root / _SOURCE, root / _LIBRARY):
            self.app.display_warning("tracetool is installed without its compiled reader: large traces take longer")
            return
        build_data["artifacts"].append(f"/{_LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def compile_library(source: Path, library: Path) -> bool:
    """Compile a library of one file; says whether that worked. A library that is in use is replaced, not written to."""
    compiler = shlex.split(os.environ.get("CC") or "cc")
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        try:
            subprocess.run([*compiler, *_FLAGS, "-o", str(made), str(source)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{_SOURCE} is not compiled: {error}", file=sys.stderr)
            library.unlink(missing_ok=True)
            return False
        made.replace(library)
    return True
