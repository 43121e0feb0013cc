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


def assert_alike(one, other):
    """Traces that say the same, whatever the order in which their names and threads are numbered."""
    assert one.metadata == other.metadata
    assert one.report == other.report
    assert told(one.events) == told(other.events)


def told(events):
    """Every event with its names and its thread written out, and every value that few events have."""
    threads = [(thread.pid, thread.tid, thread.name) for thread in events.threads]
    columns = (events.category, events.start, events.end, events.correlation, events.external_id)
    few = (events.bytes, events.held_bytes, events.on_device, events.collective_bytes, events.cache_hit)
    return (
        [events.names[name] for name in events.name.tolist()],
        [threads[thread] for thread in events.thread.tolist()],
        [column.tolist() for column in columns],
        [(sparse.rows.tolist(), sparse.values.tolist()) for sparse in few],
        (events.line.rows.tolist(), [events.names[line] for line in events.line.values.tolist()]),
    )
