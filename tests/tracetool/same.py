"""Whether two traces are read alike."""

from __future__ import annotations

import dataclasses

import numpy as np


def assert_same(one, other):
    """Equal traces: the same columns, names, threads, metadata and report."""
    assert one.metadata == other.metadata
    assert one.report == other.report
    for field in dataclasses.fields(one.events):
        mine, theirs = getattr(one.events, field.name), getattr(other.events, field.name)
        if isinstance(mine, list):
            assert mine == theirs
        elif isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        else:
            np.testing.assert_array_equal(mine.rows, theirs.rows, err_msg=field.name)
            np.testing.assert_array_equal(mine.values, theirs.values, err_msg=field.name)
