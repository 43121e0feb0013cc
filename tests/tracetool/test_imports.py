"""What is imported when: a pytest plugin loads in every run of every project, and --help must answer at once."""

import subprocess
import sys

import pytest

import tracetool

from .traces import PAGEABLE, PINNED

NUMBERS_AND_TABLES = {"numpy", "rich", "msgspec", "isal"}
HEAVY = {"torch", "triton", "transformers", "pandas", "plotly", "jinja2", "hta", "matplotlib", "IPython"}


def imported(program):
    """Top-level modules that are loaded when a program ends, in a Python of its own."""
    text = f"import sys\n{program}\nprint('\\nloaded', *{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    last = done.stdout.splitlines()[-1].split()
    assert last[0] == "loaded"
    return set(last[1:])


@pytest.mark.parametrize(
    "program",
    [
        "import tracetool; tracetool.__version__",
        "from tracetool.cli import main; assert main(['--help']) == 0",
        "from tracetool.cli import main; assert main(['diff', '--help']) == 0",
        "from tracetool.cli import main; assert main(['--version']) == 0",
        "from tracetool.cli import main; assert main(['nonsense']) == 2",
        "import tracetool.metrics, tracetool.errors, tracetool.globs, tracetool.folding",
    ],
)
def test_mentioning_tracetool_costs_nothing(program):
    assert not imported(program) & (NUMBERS_AND_TABLES | HEAVY)


@pytest.mark.parametrize("form", ["terminal", "markdown", "json"])
def test_a_diff_loads_nothing_heavy(form):
    arguments = ["diff", PAGEABLE, PINNED, "--format", form]
    loaded = imported(f"from tracetool.cli import main; assert main({arguments!r}) == 0")
    assert not loaded & HEAVY
    assert "numpy" in loaded
    assert ("rich" in loaded) is (form == "terminal")


LIGHT = {"alignment", "jobs", "options"}


def test_every_module_but_those_that_capture_loads_nothing_heavy():
    program = (
        "import pkgutil, importlib, tracetool\n"
        "for module in pkgutil.walk_packages(tracetool.__path__, 'tracetool.'):\n"
        "    last = module.name.rpartition('.')[2]\n"
        f"    captures = '.capturing.' in module.name and last not in {LIGHT!r}\n"
        "    if last != '__main__' and not captures:\n"
        "        importlib.import_module(module.name)\n"
    )
    assert not imported(program) & HEAVY


def test_the_library_is_reached_lazily():
    assert "numpy" in imported("import tracetool; tracetool.read, tracetool.summarize, tracetool.diff")
    program = "import tracetool\nfrom tracetool import read\nassert 'tracetool.differ' not in sys.modules"
    assert "msgspec" in imported(program)
    assert set(tracetool.__all__) == {"__version__", "capture", "diff", "read", "step", "summarize"}
    summary = tracetool.summarize(tracetool.read(PAGEABLE))
    assert not tracetool.diff(summary, summary).differs


def test_an_unknown_attribute():
    with pytest.raises(AttributeError, match=r"module 'tracetool' has no attribute 'sumarize'"):
        tracetool.sumarize  # noqa: B018 (looking is what raises)
    assert not hasattr(tracetool, "__path_of_nothing__")
