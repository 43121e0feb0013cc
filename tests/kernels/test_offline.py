"""What is compiled, and how often: found out without a GPU, in processes without the interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.offline_cases import COMPILED, KEYS

HERE = Path(__file__).parent


def offline(what, tmp_path):
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": str(HERE.parents[1]),
        # The target is named, and no driver must be asked for one.
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, HERE / "offline_cases.py", what], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_number_of_compile_keys(tmp_path):
    assert offline("keys", tmp_path) == {name: expected for name, (_, *expected) in KEYS.items()}


def test_every_kernel_compiles_for_hopper(tmp_path):
    compiled = offline("compile", tmp_path)
    assert compiled.keys() == COMPILED.keys()
    for name, sizes in compiled.items():
        assert sizes, name
        assert all(size > 0 for size in sizes.values()), name
