"""Where the real traces are, and how the tests run commands on them."""

from pathlib import Path

from click.testing import CliRunner

from tracetool.cli import cli

ROOT = Path(__file__).parents[2]
TRACES = ROOT / "traces"
PAGEABLE = str(TRACES / "train_pageable.json.gz")
PINNED = str(TRACES / "train_pinned.json.gz")
GRAPH = str(TRACES / "manual_graph.json.gz")


def invoke(*arguments, **settings):
    """Run a command in this process; failures are raised as they are."""
    return CliRunner(catch_exceptions=False).invoke(cli, [str(one) for one in arguments], **settings)
