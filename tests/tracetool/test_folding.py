"""Names with counters and hashes become one name."""

import pytest

import tracetool
from tracetool.errors import SettingError
from tracetool.folding import DEFAULT_FOLDS, fold, step_number, user_fold

from .small import Small


@pytest.mark.parametrize(
    ("name", "folded"),
    [
        ("ProfilerStep#3", "ProfilerStep"),
        ("ProfilerStep#x", "ProfilerStep#x"),
        ("my ProfilerStep#3", "my ProfilerStep#3"),
        ("## Call CompiledFxGraph f3s7k2m4n5p6q7r8t9u0vwxyz12 ##", "## Call CompiledFxGraph ##"),
        ("CompiledFxGraph fast", "CompiledFxGraph fast"),
        ("Torch-Compiled Region: 0/1", "Torch-Compiled Region"),
        ("Torch-Compiled Region: 12/3_1", "Torch-Compiled Region"),
        ("Torch-Compiled Region: main", "Torch-Compiled Region: main"),
        ("execute_8192_context_9(sq8192sk9)_generation_0(sq0sk0)", "execute_context"),
        ("execute_context_1(8)_generation_0(0)", "execute_context"),
        ("execute_query", "execute_query"),
        ("Optimizer.step#SGD.step", "Optimizer.step#SGD.step"),
        ("layer_3", "layer_3"),
    ],
)
def test_default_folds(name, folded):
    assert fold(name) == folded


@pytest.mark.parametrize(
    ("regex", "name", "folded"),
    [
        (r"\d+", "layer_3/head_12", "layer_*/head_*"),
        (r"(?<=layer_)\d+", "layer_3 of 4", "layer_* of 4"),
        (r"x", "nothing here", "nothing here"),
        (r"\\", "a\\b", "a*b"),
        ("[[x]", "[layer", "*layer"),  # Python warns of this one
    ],
)
def test_what_a_users_fold_matches_becomes_a_star(regex, name, folded):
    assert fold(name, [*DEFAULT_FOLDS, user_fold(regex)]) == folded


def test_folds_follow_one_another():
    assert fold("a1b2", [user_fold(r"\d"), user_fold(r"\*b\*")]) == "a*"


@pytest.mark.parametrize("regex", ["", "a*", ".*", "^", "x?"])
def test_a_fold_that_matches_nothing_at_all_is_refused(regex):
    with pytest.raises(SettingError, match="matches the empty text: name what is to be folded"):
        user_fold(regex)


@pytest.mark.parametrize("regex", ["(", "[a", "*x", "(?P<n>"])
def test_a_fold_that_is_no_regular_expression_is_refused(regex):
    with pytest.raises(SettingError, match="is no regular expression"):
        user_fold(regex)


@pytest.mark.parametrize(("name", "number"), [("ProfilerStep#12", 12), ("ProfilerStep#", None), ("x", None)])
def test_step_numbers(name, number):
    assert step_number(name) == number


def test_folded_ranges_are_one_row_that_keeps_the_raw_names(tmp_path):
    trace = Small()
    for layer in range(3):
        with trace.range(f"layer_{layer}"):
            trace.kernel()
    path = trace.write(tmp_path / "t.json")
    found = tracetool.summarize(tracetool.read(path), folds=[user_fold(r"\d+")])
    assert found.paths[0] == ("layer_*",)
    assert (int(found.calls[0]), int(found.own("kernels")[0])) == (3, 3)
    assert found.raw_names[0] == ["layer_0", "layer_1", "layer_2"]
