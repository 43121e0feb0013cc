"""The wheel carries `tracetool` and nothing else: `kernels` is also the name of a package of Hugging Face."""

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from .traces import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in the wheel, and its metadata."""
    target = tmp_path_factory.mktemp("wheel")
    local = importlib.util.find_spec("hatchling") is not None
    command = ["wheel", "--quiet", "--no-deps", "--disable-pip-version-check", "--wheel-dir", str(target), str(ROOT)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, *(["--no-build-isolation"] if local else [])],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "PIP_NO_CACHE_DIR": "1"},
    )
    assert done.returncode == 0, done.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


pytestmark = pytest.mark.slow  # the build's own tools may have to be fetched


def test_the_wheel_holds_tracetool_only(wheel):
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tracetool"}
    packed = [name for name in wheel if name.endswith((".gz", ".pyc"))]
    assert packed == ["tracetool/render/report/assets/plotly-basic-4.1.1.min.js.gz"]
    assert not [name for name in wheel if "/test" in name]


def test_the_wheel_holds_all_of_tracetool(wheel):
    ours = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "tracetool").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel if name.startswith("tracetool/")} == ours
    assert "tracetool/py.typed" in ours
    assert {f"tracetool/schemas/{kind}-1.json" for kind in ("summary", "diff", "health", "metrics")} <= ours


def test_the_wheel_is_for_a_platform_where_it_holds_the_compiled_reader(wheel):
    (about,) = [text.decode() for name, text in wheel.items() if name.endswith(".dist-info/WHEEL")]
    compiled = "tracetool/chrome/quick.compiled" in wheel
    assert compiled == (shutil.which("cc") is not None)
    assert ("Tag: py3-none-any" in about) != compiled
    assert ("Root-Is-Purelib: true" in about) != compiled


def test_the_wheel_has_the_script_and_light_requirements(wheel):
    (points,) = [text.decode() for name, text in wheel.items() if name.endswith("entry_points.txt")]
    assert "tracetool = tracetool.cli:main" in points
    (metadata,) = [text.decode() for name, text in wheel.items() if name.endswith("/METADATA")]
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    names = {line.split()[1].split(">")[0] for line in required}
    assert names == {"click", "isal", "msgspec", "numpy", "rich"}
