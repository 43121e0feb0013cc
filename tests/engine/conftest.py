"""Tiny checkpoints, made once in a run."""

import pytest

from tests.device import configure, skip_without_gpu
from tests.engine.checkpoints import Checkpoints


def pytest_configure(config):
    configure(config)


def pytest_collection_modifyitems(items):
    skip_without_gpu(item for item in items if "tests/engine/" in item.nodeid)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


def pytest_terminal_summary(terminalreporter):
    said = [dict(report.user_properties) for report in terminalreporter.getreports("passed")]
    outputs, unclear = (sum(properties.get(name, 0) for properties in said) for name in ("outputs", "unclear"))
    if outputs:
        parted = f"{unclear} of {outputs} outputs on the GPU part from Hugging Face's"
        terminalreporter.write_line(f"{parted}, where float64 finds the choice unclear")
    for properties in said:
        if "bf16" in properties:
            terminalreporter.write_line(f"relative error of bf16 logits, {properties['bf16']}")
