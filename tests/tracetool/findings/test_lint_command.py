"""`tracetool lint` and `tracetool rules`: what they print, their exit codes, and the settings of a project."""

import json

import pytest

from tests.tracetool.small import Small
from tests.tracetool.traces import PAGEABLE, PINNED, TRACES
from tracetool.findings.registry import RULES


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A folder of its own; gives a way to write its settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "pyproject.toml").touch()

    def settings(text):
        (tmp_path / "pyproject.toml").write_text(f"[tool.tracetool.lint]\n{text}\n")

    return settings


def sends(copies=5, line=""):
    trace = Small()
    for number in range(3):
        with trace.step(number):
            with trace.range("load"):
                for _ in range(copies):
                    trace.copy(memory="Pinned", op="aten::copy_", us=5)
            trace.kernel("gemm", op="aten::mm")
    for event in trace.events:
        if line and event["cat"] == "cpu_op":
            event["args"]["Call line"] = line
    return trace


def linted(run, *arguments):
    code, out, err = run("lint", *arguments, "--format", "json")
    assert out, err
    return code, [
        [(one["rule"], "/".join(one["range"][1:])) for one in trace["findings"]] for trace in json.loads(out)["traces"]
    ]


def test_a_finding_in_a_terminal(run, tmp_path):
    path = sends(line="batch.py:12").write(tmp_path / "t.json")
    code, out, err = run("lint", path, "--select", "TT02")
    assert (code, err) == (1, "")
    first = (
        "Pack them into one pinned buffer and send that in one copy: each small copy costs its call, whatever its size."
    )
    assert out[out.index("a step takes") :].splitlines() == [
        "a step takes 41.0 us, in which the device works 26.0 us",
        "",
        "TT02 small-copies  load  28.0 us a step, 68% of it",
        "  5 HtoD copies of 64 B each that could be one",
        "  by aten::copy_ at batch.py:12 x 5 a step",
        "  cost: replayed with the first of them alone, without the CPU time of the others",
        f"  mend: {first}",
        "  Views of the buffer on the device take the place of the tensors.",
        "      packed = torch.empty(total, dtype=dtype, pin_memory=True)  # once",
        "      torch.cat(parts, out=packed)",
        "      on_device.copy_(packed, non_blocking=True)",
        "      views = on_device.split(sizes)",
        "  docs/rules.md#tt02-small-copies",
        "",
        "1 finding",
        f"next: tracetool summary {path} --range /load --all",
    ]


def test_nothing_found(run, tmp_path):
    path = sends(copies=2).write(tmp_path / "t.json")
    code, out, err = run("lint", path, "--ignore", "compile-in-step")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "no finding"


def test_how_to_mend_is_told_once_for_several_traces(run):
    code, out, _ = run("lint", PAGEABLE, PINNED, "--select", "TT05")
    assert code == 1
    assert out.count("TT05 launch-bound  train_step") == 2
    assert out.count("torch.cuda.CUDAGraph()") == 1
    assert "2 findings in 2 traces; costs of several do not add up" in out


def test_a_finding_as_an_annotation(run, tmp_path):
    path = sends(line="batch.py:12").write(tmp_path / "t.json")
    code, out, _ = run("lint", path, "--select", "TT02", "--format", "github")
    assert code == 1
    first, last = out.splitlines()
    assert first.startswith(
        "::warning file=batch.py,line=12,title=tracetool::TT02 small-copies in load, 28.0 us a step, 68%25 of it: "
        "5 HtoD copies of 64 B each that could be one. Pack them into one pinned buffer"
    )
    assert last == "::notice title=tracetool::1 finding"


def test_a_finding_in_markdown(run, tmp_path):
    path = sends(line="batch.py:12").write(tmp_path / "t.json")
    _, out, _ = run("lint", path, "--select", "TT02", "--format", "markdown")
    assert out.startswith("**1 finding**\n")
    assert (
        "| TT02 small-copies | `load` | 28.0 us a step, 68% of it | 5 HtoD copies of 64 B each that could be one | "
        "aten::copy\\_ at batch.py:12 x 5 a step |\n"
    ) in out
    assert "```python\npacked = torch.empty(total, dtype=dtype, pin_memory=True)  # once\n" in out


def test_names_from_traces_are_only_text(run, tmp_path):
    trace = Small()
    for number in range(3):
        with trace.step(number):
            with trace.range("a|b\n::error::<script>`"):
                for _ in range(5):
                    trace.copy(op="aten::copy_", us=5)
            trace.kernel("gemm")
    path = trace.write(tmp_path / "t.json")
    _, out, _ = run("lint", path, "--select", "TT02", "--format", "github")
    assert [line.split(" ")[0] for line in out.splitlines()] == ["::warning", "::notice"]
    _, out, _ = run("lint", path, "--select", "TT02", "--format", "markdown")
    [row] = [line for line in out.splitlines() if line.startswith("| TT02")]
    assert row.replace("\\|", "").count("|") == 6


def test_rules_are_chosen_by_id_or_name(run):
    assert linted(run, PAGEABLE, "--select", "TT02", "--select", "launch-bound") == (
        1,
        [[("TT05", "train_step"), ("TT02", "train_step/h2d_batch")]],
    )
    assert linted(run, PAGEABLE, "--ignore", "TT05", "--ignore", "tt02", "--ignore", "TT03") == (
        1,
        [[("TT01", "train_step/h2d_batch")]],
    )


@pytest.mark.parametrize(("cost", "count"), [("0 %", 4), ("10 %", 2), ("200 us", 2), ("1.3ms", 1), ("2 s", 0)])
def test_what_is_cheaper_is_counted_and_not_told(run, cost, count):
    code, out, _ = run("lint", PAGEABLE, "--min-cost", cost, "--format", "json")
    [trace] = json.loads(out)["traces"]
    assert (code, len(trace["findings"]), trace["cheaper"]) == (1 if count else 0, count, 4 - count)


def test_settings_of_the_project(run, project):
    project('select = ["TT01", "TT02"]\nignore = ["TT01"]\nmin_cost = "200 us"')
    assert linted(run, PAGEABLE) == (1, [[("TT02", "train_step/h2d_batch")]])
    # What the command line names takes the place of its setting.
    assert linted(run, PAGEABLE, "--select", "TT03", "--min-cost", "0%") == (1, [[("TT03", "train_step/h2d_batch")]])


def test_a_suppression_says_why(run, project):
    project(
        "suppress = [\n"
        '  { rule = "launch-bound", range = "train_*", reason = "graphs come with the next release" },\n'
        '  { rule = "TT02", range = "elsewhere", reason = "not here" },\n'
        '  { rule = "TT01", reason = "everywhere" },\n'
        '  { rule = "TT03", range = "/train_step/h2d_batch", reason = "as it is" },\n'
        "]"
    )
    code, out, _ = run("lint", PAGEABLE)
    assert code == 1
    assert [line for line in out.splitlines() if line.startswith("suppressed")] == [
        "suppressed TT05 launch-bound in train_step, 1.56 ms a step, 71% of it: graphs come with the next release",
        "suppressed TT01 pageable-copy in train_step/h2d_batch, 108 us a step, 5% of it: everywhere",
        "suppressed TT03 sync-in-step in train_step/h2d_batch, 104 us a step, 5% of it: as it is",
    ]
    assert "1 finding, 3 suppressed" in out
    code, out, _ = run("lint", PAGEABLE, "--ignore", "TT02", "--format", "markdown")
    assert code == 0
    assert "- suppressed: TT05 launch-bound in `train_step`, 1.56 ms a step, 71% of it: graphs come" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('sellect = ["TT01"]', "[tool.tracetool.lint] has no setting 'sellect': did you mean 'select'?"),
        ('select = "TT01"', "[tool.tracetool.lint]: select is a list of rules, as in ['TT05']"),
        ('ignore = ["TT99"]', "[tool.tracetool.lint]: ignore: there is no rule 'TT99': did you mean 'TT09'?"),
        ('min_cost = "much"', "min_cost: 'much' is no cost: write a share of a step, as in '1 %', or a time"),
        ("min_cost = 1", "min_cost: '1' is no cost"),
        ('suppress = "TT05"', "suppress is a list of tables with a rule, a range and a reason"),
        ('suppress = ["TT05"]', "each entry of suppress is a table of texts: rule, range and reason"),
        ("suppress = [{ rule = 5, reason = 'x' }]", "each entry of suppress is a table of texts"),
        ("suppress = [{ rule = 'TT05' }]", "an entry of suppress says why, in reason = '...'"),
        ("suppress = [{ rule = 'TT05', reason = ' ' }]", "an entry of suppress says why"),
        ("suppress = [{ reason = 'x' }]", "an entry of suppress names its rule, as in rule = 'TT05'"),
        ("suppress = [{ rule = 'lunch-bound', reason = 'x' }]", "there is no rule 'lunch-bound': did you mean 'launch"),
        (
            "suppress = [{ rule = 'TT05', raange = 'x', reason = 'x' }]",
            "has no setting 'raange': did you mean 'range'?",
        ),
        ("suppress = [{ rule = 'TT05', range = '', reason = 'x' }]", "suppress"),
        ("suppress = ", "is not TOML"),
        ("min_cost = " + "9" * 5000, "is not TOML"),
    ],
)
def test_wrong_settings_are_errors(run, project, text, message):
    project(text)
    for command in (("lint", PINNED), ("report", PINNED, "-o", "page.html")):
        code, out, err = run(*command)
        assert (code, out) == (2, "")
        assert message in err
        assert err.startswith("tracetool: ")
        assert "pyproject.toml" in err
        assert err.count("\n") == 1


def test_settings_that_are_no_table(run, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.tracetool]\nlint = 3\n")
    code, _, err = run("lint", PINNED)
    assert (code, "lint] is a table of select, ignore, min_cost, suppress" in err) == (2, True)
    (tmp_path / "pyproject.toml").write_bytes(b"\xff")
    code, _, err = run("lint", PINNED)
    assert (code, "cannot be read: it is not UTF-8 text" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--select", "TT1"), "there is no rule 'TT1': did you mean 'TT"),
        (("--ignore", "nothing like it"), "there is no rule 'nothing like it': there are TT01, TT02"),
        (("--min-cost", "5"), "'5' is no cost: write a share of a step, as in '1 %', or a time, as in '50 us'"),
    ],
)
def test_wrong_options_are_errors(run, arguments, message):
    code, out, err = run("lint", PINNED, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_file_is_not_overwritten(run, tmp_path):
    (tmp_path / "kept.md").write_text("kept")
    code, _, err = run("lint", PINNED, "-o", tmp_path / "kept.md")
    assert (code, "--force overwrites it" in err, (tmp_path / "kept.md").read_text()) == (2, True, "kept")


def test_a_sick_trace_is_no_clean_one(run, tmp_path):
    sick = Small()
    with sick.step(0), sick.range("f"):
        sick.lost_launch()
    path = sick.write(tmp_path / "sick.json")
    code, out, err = run("lint", path)
    assert code == 2
    assert out.splitlines()[-1] == "no finding"
    assert "is not healthy" in err
    assert "**not healthy**" in run("lint", path, "--format", "markdown")[1]
    assert run("lint", path, "--format", "github")[1].startswith("::error ")


def test_what_cannot_be_judged_is_said_once(run, tmp_path):
    cpu = Small(gpu=None)
    with cpu.step(0), cpu.range("f"), cpu.op("aten::add"):
        pass
    code, out, _ = run("lint", cpu.write(tmp_path / "cpu.json"))
    assert code == 0
    assert out.count("cannot judge") == 2
    assert (
        "TT01, TT02, TT03, TT05, TT06, TT07, TT08, TT09, TT10, TT11 cannot judge: the trace has no device work" in out
    )


def test_the_ranges_of_a_graph_may_be_told(run):
    eager, graph = TRACES / "toy_eager.json.gz", TRACES / "toy_graph.json.gz"
    code, found = linted(run, graph, "--ranges-from", eager)
    assert (code, found) == (0, [[]])


def test_an_empty_trace(run, tmp_path):
    code, out, err = run("lint", Small().write(tmp_path / "empty.json"))
    assert code == 2
    assert "no finding" in out
    assert "is not healthy" in err


def test_every_rule_is_explained(run):
    code, out, _ = run("rules")
    assert code == 0
    for rule in RULES.values():
        assert f"{rule.id} {rule.name}  docs/rules.md#{rule.id.lower()}-{rule.name}\n" in out
    told = json.loads(run("rules", "--format", "json")[1])["rules"]
    assert [one["id"] for one in told] == list(RULES)
    assert all(len(one["mends"]) >= 1 for one in told)
