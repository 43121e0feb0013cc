"""Every command block of the README is run, and shows what it says; so is what the engine's README has of Python."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tracetool.budgets import parse_toml
from tracetool.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
CONSOLE = [body for language, body in BLOCKS if language == "console"]
ENGINE_README = (ROOT / "engine" / "README.md").read_text(encoding="utf-8")
ENGINE_PYTHON = re.findall(r"^```python\n(.*?)^```", ENGINE_README, re.DOTALL | re.MULTILINE)
PYTHON = [body for language, body in BLOCKS if language == "python"] + ENGINE_PYTHON
SHELL = [line for language, body in BLOCKS if language == "sh" for line in body.splitlines()]
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    "COLUMNS": "100",
    "PYTHONPATH": str(ROOT),
}


def test_every_block_is_of_a_kind_that_is_run():
    assert {language for language, _ in BLOCKS} == {"console", "python", "sh", "toml", "yaml"}


@pytest.mark.parametrize("block", [body for language, body in BLOCKS if language == "toml"])
def test_toml_blocks_are_budgets(block):
    assert parse_toml(block, "README.md")


def test_the_yaml_block_is_the_workflow():
    [block] = [body for language, body in BLOCKS if language == "yaml"]
    assert block == (ROOT / ".github" / "workflows" / "trace-budgets.yml").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block.splitlines()[0][2:60])
def test_console_blocks_show_what_the_commands_print(block):
    command, _, shown = block.partition("\n")
    assert command.startswith("$ tracetool ")
    done = subprocess.run(
        ["bash", "-c", command[2:]], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == shown


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_run(block, tmp_path):
    if "import torch" in block and importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    (tmp_path / "traces").symlink_to(ROOT / "traces")
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "after.json.gz" in block:
        seen = subprocess.run(
            [sys.executable, "-m", "tracetool", "summary", "after.json.gz"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert seen.returncode == 0, seen.stderr
        assert "make_batch" in seen.stdout


@pytest.mark.parametrize("line", SHELL)
def test_shell_lines_run(line):
    # Targets of make are run by whoever runs this test; that they exist is what is checked here.
    command = re.sub(r"^make ", "make --dry-run ", line)
    done = subprocess.run(["bash", "-ec", command], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_is_in_the_readme():
    for name, command in cli.commands.items():
        assert f"tracetool {name}" in README
        for option in command.params:
            if isinstance(option, click.Option) and option.help:
                assert any(flag in README for flag in option.opts), (name, option.opts)
