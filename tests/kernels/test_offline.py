"""What is compiled, and how often: found out without a GPU, in processes without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.offline_cases import COMPILED, KEYS, LARGE

HERE = Path(__file__).parent


def offline(what, which, tmp_path):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(HERE.parents[1]),
        # The target is named, and no driver must be asked for one.
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, HERE / "offline_cases.py", what, which], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("most", ["1024", pytest.param("4096", marks=pytest.mark.slow)])
def test_number_of_compile_keys(tmp_path, most):
    assert offline("keys", most, tmp_path) == {name: expected for name, (_, *expected) in KEYS.items()}


@pytest.mark.parametrize(
    ("which", "cases"),
    [("usual", COMPILED), pytest.param("large", LARGE, marks=pytest.mark.slow)],
    ids=["usual", "large"],
)
def test_every_kernel_compiles_for_hopper(tmp_path, which, cases):
    compiled = offline("compile", which, tmp_path)
    assert compiled.keys() == cases.keys()
    for name, sizes in compiled.items():
        assert sizes, name
        assert all(size > 0 for size in sizes.values()), name
