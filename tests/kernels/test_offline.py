"""What is compiled, and how often: found out without a GPU, in processes without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.offline_cases import COMPILED, KEYS

HERE = Path(__file__).parent


def offline(what, tmp_path_factory):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": str(HERE.parents[1]),
        # The target is named, and no driver must be asked for one.
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, HERE / "offline_cases.py", what], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return offline("keys", tmp_path_factory)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    return offline("compile", tmp_path_factory)


@pytest.mark.parametrize("name", KEYS)
def test_number_of_compile_keys(keys, name):
    _, over_4096, with_a_very_large_one = KEYS[name]
    assert keys[name] == [over_4096, with_a_very_large_one]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_for_hopper(compiled, name):
    assert compiled[name]
    assert all(size > 0 for size in compiled[name].values())
