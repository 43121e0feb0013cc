"""A fixed corpus of spoilt files: each ends in a result or one clear error, within bounds of time and memory."""

import pytest

from .fuzz.__main__ import run

FEW = 40
MANY = 3000
FIRST = 0


def test_a_few_spoilt_files_end_in_a_result_or_one_clear_error():
    assert run(FIRST, FEW, tell=False) == (FEW, [])


@pytest.mark.slow
def test_thousands_of_spoilt_files_end_in_a_result_or_one_clear_error():
    assert run(FIRST + FEW, MANY, tell=False) == (MANY, [])
