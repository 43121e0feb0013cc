"""Traces of several ranks: which file is of which rank, who differs, who straggles, and what is printed of it."""

import json
from importlib import resources

import jsonschema
import pytest

import tracetool
from tracetool.chrome import read_head
from tracetool.errors import TraceReadError
from tracetool.rank_files import rank_of, traces_in

from .small import Small
from .traces import PAGEABLE, ROOT, invoke


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Room for paths of any length in one line."""
    monkeypatch.setenv("COLUMNS", "400")


def program(*, launches=2, us=10.0, wait=5.0, **metadata):
    """Two steps of a forward range with `launches` kernels of `us` and a collective that waits."""
    trace = Small(**metadata)
    for number in range(2):
        with trace.step(number), trace.range("forward"):
            for _ in range(launches):
                trace.kernel("gemm", us=us)
            trace.kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL", us=wait)
    return trace


def ranks_in(folder, *programs):
    folder.mkdir(exist_ok=True)
    for rank, one in enumerate(programs):
        one.metadata["distributedInfo"] = {"backend": "nccl", "rank": rank, "world_size": len(programs)}
        one.write(folder / f"worker_{rank}.pt.trace.json")
    return str(folder)


def as_json(*arguments):
    done = invoke(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    kind = found["schema"].removeprefix("tracetool.").replace("/", "-")
    schema = json.loads(resources.files(tracetool).joinpath(f"schemas/{kind}.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(found)
    return found


@pytest.mark.parametrize(
    ("metadata", "name", "rank"),
    [
        ({"distributedInfo": {"rank": 3}}, "rank7.json", 3),
        ({"distributedInfo": {"rank": "x"}}, "rank7.json", 7),
        ({"distributedInfo": 5}, "trace_rank_12_step5.json.gz", 12),
        ({}, "run2-r04.pt.trace.json", 4),
        ({}, "gpu5.trace.json", 5),
        ({}, "host_17.pt.trace.json.gz", 17),
        ({}, "step5_of_worker1.json", 1),
        ({}, "before.json", None),
        ({}, "host_1234567890.json", None),
        ({}, "h100.json", None),
        ({}, "0.json", 0),
    ],
)
def test_the_rank_is_what_the_trace_says_else_what_its_name_does(metadata, name, rank):
    assert rank_of(metadata, f"/rank9/{name}") == rank


def test_a_folder_names_its_traces_and_of_torchs_no_other_json(tmp_path):
    for name in ("b.json", "a.json.gz", "notes.txt"):
        (tmp_path / name).write_text("[]")
    assert traces_in(str(tmp_path)) == [str(tmp_path / "a.json.gz"), str(tmp_path / "b.json")]
    (tmp_path / "h_1.pt.trace.json").write_text("[]")
    assert traces_in(str(tmp_path)) == [str(tmp_path / "h_1.pt.trace.json")]
    assert traces_in(str(tmp_path / "*.json")) == [str(tmp_path / "b.json"), str(tmp_path / "h_1.pt.trace.json")]
    assert traces_in("-") == ["-"]


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    odd = tmp_path / "trace[0].json"
    odd.write_text("[]")
    (tmp_path / "trace0.json").write_text("[]")
    assert traces_in(str(odd)) == [str(odd)]


@pytest.mark.parametrize("argument", ["", "none*.json"])
def test_a_folder_or_a_pattern_without_traces_is_refused(tmp_path, argument):
    with pytest.raises(TraceReadError, match=r"holds no traces|no file fits"):
        traces_in(str(tmp_path / argument))


def test_ranks_that_agree(tmp_path):
    found = as_json("summary", ranks_in(tmp_path / "run", program(), program(), program()))
    assert [one["rank"] for one in found["ranks"]] == [0, 1, 2]
    assert found["per"] == "step"
    assert found["spread"]["kernel_launches"] == {"min": 3, "median": 3, "max": 3}
    assert found["differences"] == []
    assert found["verdict"] == "3 ranks: the same counts in every range; none straggles."


def test_a_rank_whose_counts_differ_comes_first_and_is_named_with_what_it_has(tmp_path):
    folder = ranks_in(tmp_path / "run", program(), program(), program(launches=3), program())
    found = as_json("summary", folder)
    assert [(one["rank"], one["differs"]) for one in found["ranks"]][:2] == [(2, True), (0, False)]
    [forward] = [
        one for one in found["differences"] if one["range"][-1] == "forward" and one["metric"] == "kernel_launches"
    ]
    # Two steps of 2 kernels and a collective, against 3 kernels and one.
    assert (forward["usual"], [(one["rank"], one["value"]) for one in forward["others"]]) == (6, [(2, 8)])
    assert found["spread"]["kernel_launches"] == {"min": 3, "median": 3, "max": 4}
    text = invoke("summary", folder).stdout
    assert text.startswith("rank 2 differs: ProfilerStep/forward: kernel_launches 8, not 6;")
    assert "4 ranks: rank 2 differs from the rest; rank 2 straggles." in text


def test_a_straggler_is_who_works_longer_not_who_waits(tmp_path):
    late = program(us=14, wait=1)
    found = as_json("summary", ranks_in(tmp_path / "run", program(wait=9), late, program(wait=9)))
    first, *others = found["ranks"]
    assert (first["rank"], first["straggles"]) == (1, 1.4)
    assert (first["working_ns"], first["collective_ns"]) == (28_000, 1_000)
    assert [(one["working_ns"], one["collective_ns"], one["straggles"]) for one in others] == [
        (20_000, 9_000, None)
    ] * 2


def test_without_a_device_steps_tell_the_straggler(tmp_path):
    def on_cpu(idle):
        trace = Small(gpu=None)
        with trace.step(0), trace.range("forward", idle=idle), trace.op("aten::mm"):
            pass
        return trace

    found = as_json("summary", ranks_in(tmp_path / "run", on_cpu(10), on_cpu(40), on_cpu(10)))
    assert [one["rank"] for one in found["ranks"] if one["straggles"]] == [1]


def test_where_no_value_is_usual_all_are_told(tmp_path):
    folder = ranks_in(tmp_path / "run", program(), program(launches=3))
    found = as_json("summary", folder)
    assert all(one["usual"] is None and len(one["others"]) == 2 for one in found["differences"])
    assert "no value is usual for ProfilerStep: kernel_launches" in invoke("summary", folder).stdout


def test_ranges_and_metrics_can_be_chosen(tmp_path, run):
    folder = ranks_in(tmp_path / "run", program(), program(launches=3), program())
    found = as_json("summary", folder, "--metric", "kernels", "--range", "forward", "--per", "trace")
    assert [(one["rank"], one["metrics"]) for one in found["ranks"]] == [
        (1, {"kernels": 8}),
        (0, {"kernels": 6}),
        (2, {"kernels": 6}),
    ]
    code, _, told = run("summary", folder, "--range", "nowhere")
    assert (code, "no range fits 'nowhere'" in told) == (2, True)


@pytest.mark.parametrize("per", ["call", "step"])
def test_numbers_that_ranks_do_not_have_are_refused(tmp_path, run, per):
    stepless = Small()
    with stepless.range("forward"):
        stepless.kernel()
    code, _, told = run("summary", ranks_in(tmp_path / "run", stepless, program()), "--per", per)
    assert code == 2
    assert ("per call" if per == "call" else "no profiler steps") in told


def test_an_unhealthy_rank_comes_first_and_decides_the_exit_code(tmp_path):
    sick = Small()
    with sick.range("forward"):
        sick.lost_launch()
    done = invoke("summary", ranks_in(tmp_path / "run", program(), program(), sick))
    assert done.exit_code == 2
    assert done.stdout.startswith(f"{tmp_path}/run/worker_2.pt.trace.json is not healthy: ")
    assert "worker_2.pt.trace.json is not healthy: " in done.stderr


def test_two_traces_of_one_rank_are_refused(tmp_path, run):
    folder = ranks_in(tmp_path / "run", program(), program())
    (tmp_path / "run" / "again.pt.trace.json").write_bytes((tmp_path / "run" / "worker_1.pt.trace.json").read_bytes())
    for arguments in (("summary", folder), ("diff", folder, folder)):
        code, _, told = run(*arguments)
        assert code == 2
        assert "are both of rank 1: name one trace a rank, with a pattern" in told


def test_a_pattern_and_several_files_are_ranks_too(tmp_path):
    folder = ranks_in(tmp_path / "run", program(), program(), program())
    by_pattern = as_json("summary", f"{folder}/worker_[01]*")
    by_name = as_json("summary", f"{folder}/worker_0.pt.trace.json", f"{folder}/worker_1.pt.trace.json")
    assert by_pattern == by_name
    assert len(by_name["ranks"]) == 2


def test_traces_without_a_rank_are_called_by_their_files(tmp_path):
    program().write(tmp_path / "before.json")
    program(launches=3).write(tmp_path / "after.json")
    found = as_json("summary", str(tmp_path))
    assert [(one["rank"], one["path"]) for one in found["ranks"]] == [
        (None, f"{tmp_path}/after.json"),
        (None, f"{tmp_path}/before.json"),
    ]


def test_two_runs_rank_by_rank_those_that_differ_first(tmp_path):
    before = ranks_in(tmp_path / "before", program(), program(), program())
    after = ranks_in(tmp_path / "after", program(), program(), program(launches=3), program())
    found = as_json("diff", before, after, "--metric", "kernel_launches")
    assert [(one["rank"], one["differs"]) for one in found["ranks"]] == [(2, True), (0, False), (1, False)]
    assert found["ranks"][0]["changes"] == [
        {"range": [name], "metric": "kernel_launches", "per": "call", "baseline": 3, "variant": 4}
        for name in ("ProfilerStep", "forward")
    ]
    assert found["alone"] == {"baseline": [], "variant": [f"{after}/worker_3.pt.trace.json"]}
    assert found["verdict"] == "3 ranks: rank 2 differs, the others are the same."
    done = invoke("diff", before, after, "--exit-code", "--name", "old", "--name", "new")
    assert done.exit_code == 1
    assert done.stdout.startswith(f"only new has {after}/worker_3.pt.trace.json\n")
    assert "rank 2  forward: 3 kernel launches a call became 4" in done.stdout
    assert invoke("diff", before, before, "--exit-code").exit_code == 0


def test_runs_whose_names_tell_no_rank_are_paired_by_file_name(tmp_path):
    for run, launches in (("before", 2), ("after", 3)):
        (tmp_path / run).mkdir()
        program(launches=launches).write(tmp_path / run / "decode.json")
    found = as_json("diff", str(tmp_path / "before"), str(tmp_path / "after"))
    assert [(one["rank"], one["differs"]) for one in found["ranks"]] == [(None, True)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("{a}", "{b}", "{b}"), "compared two at a time"),
        (("{a}", "{b}", "--html", "x.html"), "without --html"),
        (("{a}", "{b}", "--name", "one"), "1 names for 2 runs"),
        (("{a}", "{c}"), "no rank in common"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, run, arguments, words):
    runs = {"a": ranks_in(tmp_path / "a", program()), "b": ranks_in(tmp_path / "b", program())}
    (tmp_path / "c").mkdir()
    program().write(tmp_path / "c" / "decode.json")
    runs["c"] = str(tmp_path / "c")
    code, _, told = run("diff", *(one.format(**runs) for one in arguments))
    assert (code, words in told) == (2, True), told


def test_markdown_has_the_same_rows(tmp_path):
    folder = ranks_in(tmp_path / "run", program(), program(), program(launches=3))
    lines = invoke("summary", folder, "--format", "markdown").stdout.splitlines()
    assert lines[0] == "**3 ranks: rank 2 differs from the rest; rank 2 straggles.**"
    assert lines[-6].startswith("| rank 2 (differs, straggles) |")
    assert lines[-1].startswith("| most |")
    diff = invoke("diff", folder, folder, "--format", "markdown").stdout
    assert "| rank 1 | no count of launches, copies, syncs or ops differs | ok |" in diff


def test_the_head_of_a_real_trace_tells_its_rank():
    assert rank_of(read_head(str(ROOT / "tests/tracetool/real/ddp.json.gz")), "ddp.json.gz") == 0
    assert "distributedInfo" not in read_head(PAGEABLE)
