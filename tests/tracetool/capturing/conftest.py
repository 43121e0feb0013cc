"""Programs that are captured in this process, as the command line does it."""

import os
import sys
import textwrap

# What Kineto prints of itself; it asks when it is first used.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")

import pytest

from tests.device import CUDA, configure, skip_without_gpu
from tests.tracetool.capturing.captured import Captured
from tracetool import stepping


def pytest_configure(config):
    configure(config)


def pytest_collection_modifyitems(items):
    here = [item for item in items if "tests/tracetool/capturing/" in item.nodeid]
    skip_without_gpu(here)
    # After a CPU-only profile a process sees no device events any more (pytorch #197005).
    alone = pytest.mark.skip(reason="profiles the CPU alone, after which this process would see nothing of the GPU")
    for item in here:
        if CUDA and "gpu" not in item.keywords:
            item.add_marker(alone)


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """An empty folder to work in; what programs import from it, or set of this process, is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["tracetool"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    assert not stepping._listeners


@pytest.fixture
def write(tmp_path):
    """Writes a file of a program."""

    def to(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return name

    return to


@pytest.fixture
def capture(run, tmp_path):
    """Captures a target into a file, and gives what came of it."""

    def call(*arguments, to="t.json.gz"):
        return Captured(*run("capture", "-o", to, *arguments), tmp_path / to)

    return call
