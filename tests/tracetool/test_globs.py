"""Patterns over paths and names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracetool.errors import SettingError
from tracetool.globs import PathGlob, name_glob
from tracetool.render.view import View
from tracetool.render.words import path_text, pattern_of

CASES = [
    # pattern, path, fits
    ("train", ["train"], True),
    ("train", ["outer", "train"], True),  # a pattern begins at any depth
    ("train", ["train", "forward"], False),  # and ends at the end
    ("train", ["trainer"], False),
    ("/train", ["train"], True),
    ("/train", ["outer", "train"], False),
    ("train/forward", ["train", "forward"], True),
    ("train/forward", ["train", "x", "forward"], False),
    ("train/*", ["train", "forward"], True),
    ("train/*", ["train"], False),
    ("train/*", ["train", "a", "b"], False),
    ("tr*n", ["train"], True),
    ("*", ["anything/with a slash"], True),
    ("/*", ["a", "b"], False),
    ("train/**", ["train"], True),
    ("train/**", ["train", "a", "b"], True),
    ("/**", ["a", "b"], True),
    ("/**/b", ["b"], True),
    ("/**/b", ["a", "x", "b"], True),
    ("/a/**/b", ["a", "b"], True),
    ("/a/**/b", ["a", "x", "y", "b"], True),
    ("/a/**/b", ["a", "x", "y", "c"], False),
    ("a**c", ["abc"], True),  # beside other text, ** is any text in a name
    ("a**c", ["a", "c"], False),
    ("**c", ["abc"], True),
    (r"a\/b", ["a/b"], True),
    (r"a\/b", ["a", "b"], False),
    ("a/b", ["a/b"], False),
    (r"a\*", ["a*"], True),
    (r"a\*", ["ab"], False),
    (r"a\\", ["a\\"], True),
    ("f[0]|(x)?+.{}^$", ["f[0]|(x)?+.{}^$"], True),  # nothing else is special
    ("f[0]", ["f0"], False),
    ("a.c", ["abc"], False),
    ("*", ["two\nlines"], True),
    ("Optimizer.step#SGD.step", ["opt", "Optimizer.step#SGD.step"], True),
    ("(no range)", ["(no range)"], True),
]


@pytest.mark.parametrize(("pattern", "path", "fits"), CASES)
def test_patterns_over_paths(pattern, path, fits):
    assert PathGlob(pattern).matches(path) is fits


@pytest.mark.parametrize("pattern", ["", "/", "//"])
def test_an_empty_pattern_is_refused(pattern):
    with pytest.raises(SettingError, match="is empty: name a range"):
        PathGlob(pattern)


@pytest.mark.parametrize("make", [PathGlob, name_glob])
def test_a_lone_backslash_is_refused(make):
    with pytest.raises(SettingError, match="ends with a lone backslash"):
        make("train\\")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("aten::*", "aten::copy_", True),
        ("aten::*", "c10d::all_reduce", False),
        ("*.py(*): forward", "models/llama.py(70): forward", True),  # * passes slashes here
        ("a/b", "a/b", True),
        (r"\*", "*", True),
        (r"\*", "x", False),
        ("x.y", "x-y", False),
        ("*", "two\nlines", True),
    ],
)
def test_patterns_over_names(pattern, name, fits):
    assert (name_glob(pattern).fullmatch(name) is not None) is fits


PATHS = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1), min_size=1)


@given(PATHS, PATHS)
def test_a_path_as_text_fits_itself_and_nothing_else_of_its_depth(path, other):
    pattern = PathGlob("/" + path_text(path))
    assert pattern.matches(path)
    assert pattern.matches(other) is (path == other)


@given(PATHS)
def test_the_pattern_of_a_next_command_fits_its_range_and_can_be_typed(path):
    pattern = pattern_of(path)
    assert View(patterns=(PathGlob(pattern),)).shows(tuple(path))
    assert not re.search(r"[\x00-\x1f\x7f]", pattern)


def test_patterns_see_paths_with_and_without_steps():
    path = ("ProfilerStep", "train")
    for pattern in ("/train", "/ProfilerStep/train", "ProfilerStep/*", "train"):
        assert View(patterns=(PathGlob(pattern),)).shows(path)
    assert not View(patterns=(PathGlob("/ProfilerStep"),)).shows(path)
    assert View(patterns=(PathGlob("/ProfilerStep"),)).shows(("ProfilerStep",))


def test_depth_counts_names_without_steps():
    assert View(depth=1).shows(("ProfilerStep", "train"))
    assert not View(depth=1).shows(("ProfilerStep", "train", "forward"))
    assert not View(depth=1).shows(("train", "forward"))
