"""Commands, options, files, exit codes, and every way in which a run can end."""

import errno
import gzip
import io
import itertools
import json
import os
import pty
import shlex
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tracetool import opening, output
from tracetool.cli import cli

from .small import Small, healthy
from .traces import GRAPH, PAGEABLE, PINNED, invoke

FORMATS = ("terminal", "markdown", "json")
COMMANDS = {
    "summary": ("summary", PAGEABLE),
    "diff": ("diff", PAGEABLE, PINNED),
    "health": ("health", PAGEABLE),
    "metrics": ("metrics",),
}


@pytest.fixture
def traces(tmp_path):
    """Paths of hand-made traces by name."""
    cpu, sick, stepless = Small(gpu=None), Small(), Small()
    with cpu.range("f"), cpu.op("aten::add"):
        cpu.now += 1
    with sick.range("f"):
        sick.lost_launch()
    with stepless.range("train"):
        stepless.kernel()
    more = healthy()
    with more.range("late"):
        more.kernel()
    made = {"healthy": healthy(), "more": more, "cpu": cpu, "sick": sick, "stepless": stepless}
    return {name: trace.write(tmp_path / f"{name}.json") for name, trace in made.items()}


@pytest.fixture
def run(run, monkeypatch):
    """The command line, as wide as its tests expect."""
    monkeypatch.setenv("COLUMNS", "120")
    return run


def process(*arguments, **settings):
    """The same in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tracetool", *map(str, arguments)],
        capture_output=True,
        timeout=60,
        check=False,
        **{"stdin": subprocess.DEVNULL, **settings},
    )


def one_sentence(err):
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("tracetool: ")
    assert "Traceback" not in err
    return lines[0].removeprefix("tracetool: ")


# Commands and formats -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_in_each_format(run, command, form):
    code, out, err = run(*COMMANDS[command], "--format", form)
    assert (code, err) == (0, "")
    if form == "json":
        assert json.loads(out)["schema"] == f"tracetool.{command}/1"
    elif form == "markdown":
        assert out.startswith(("**", "- ", "| metric |"))
    assert out.endswith("\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_module_and_the_console_script_do_the_same(command):
    script = Path(sys.executable).with_name("tracetool")
    one = process(*COMMANDS[command])
    other = subprocess.run([script, *COMMANDS[command]], capture_output=True, timeout=60, check=False)
    assert (one.returncode, one.stdout) == (other.returncode, other.stdout)
    assert one.stdout


def test_help_and_version(run):
    assert run("--version")[1].startswith("tracetool, version ")
    for command in ((), *((name,) for name in COMMANDS)):
        code, out, _ = run(*command, "--help")
        assert code == 0
        assert out.startswith("Usage: tracetool")
        assert run(*command, "-h")[1] == out


# Each option changes the output -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "there", "not_there"),
    [
        (("--range", "forward"), "forward", "h2d_batch "),
        (("--range", "forward", "--range", "backward"), "backward", "h2d_batch "),
        (("--metric", "memsets"), "memsets", "launches"),
        (("--metric", 'op_calls["aten::copy_"]'), 'op_calls["aten::copy_"]', "launches  "),
        (("--depth", "1"), "train_step", "forward"),
        (("--all",), "(before the window)", "nothing"),
        (("--per", "call"), "range (per call)", "range (per step)"),
        (("--per", "trace"), "range (per trace)", "range (per step)"),
        (("--fold", "h2d"), "*_batch", "h2d_batch"),
        (("--ranges-as", "op:aten::linear"), "aten::linear ", "nothing"),
        (("--ranges-as", "thread"), "thread ", "nothing"),
    ],
)
def test_options_of_summary(run, option, there, not_there):
    plain, (code, out, err) = run("summary", PAGEABLE)[1], run("summary", PAGEABLE, *option)
    assert (code, err) == (0, "")
    assert out != plain
    table = out.split("made by")[0]
    assert there in table
    assert not_there not in table


@pytest.mark.parametrize(
    ("option", "there", "not_there"),
    [
        (("--range", "h2d_batch"), "train_step/h2d_batch\n", "\nProfilerStep"),
        (("--metric", "syncs"), "syncs a call", "ops a call"),
        (("--depth", "1"), "train_step\n", "train_step/h2d_batch\n"),
        (("--all",), "train_step/backward\n", "nothing"),
        (("--per", "step"), "syncs a step", "syncs a call"),
        (("--per", "trace"), "syncs a trace", "syncs a call"),
        (("--self",), "train_step/h2d_batch\n", "\ntrain_step\n"),
        (("--fold", "h2d"), "train_step/\\*_batch\n", "train_step/h2d_batch\n"),
        (("--name", "before", "--name", "after"), "\nbefore  ", "\ntrain_pageable  "),
        (("--ranges-as", "thread"), "thread ", "nothing"),
    ],
)
def test_options_of_diff(run, option, there, not_there):
    plain, (code, out, err) = run("diff", PAGEABLE, PINNED)[1], run("diff", PAGEABLE, PINNED, *option)
    assert (code, err) == (0, "")
    assert out != plain
    table = "\n" + out.rsplit("\n\n", 1)[0]
    assert there in table
    assert not_there not in table


def test_reading_options_of_health(run, traces):
    assert "4 ranges" in run("health", traces["healthy"])[1]
    assert "3 ranges" in run("health", traces["healthy"], "--fold", "load|forward")[1]
    assert "7 ranges" in run("health", traces["healthy"], "--ranges-as", "op:*")[1]


@pytest.mark.parametrize("option", [("--range", "forward"), ("--metric", "syncs"), ("--depth", "1"), ("--per", "step")])
def test_options_change_json_too(run, option):
    plain = json.loads(run("summary", PAGEABLE, "--format", "json")[1])
    found = json.loads(run("summary", PAGEABLE, "--format", "json", *option)[1])
    assert found["ranges"] != plain["ranges"]
    if option[0] != "--metric":
        assert found["totals"] == plain["totals"]


def test_several_variants(run):
    code, out, _ = run("diff", PAGEABLE, PINNED, GRAPH, "--format", "json")
    assert code == 0
    assert [side["label"] for side in json.loads(out)["variants"]] == ["train_pinned", "manual_graph"]


# The command for the next view --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("summary", PAGEABLE),
        ("summary", PAGEABLE, "--ranges-as", "thread", "--fold", r"\d+ x"),
        ("diff", PAGEABLE, PINNED),
        ("diff", PAGEABLE, PINNED, "--self", "--name", "a b", "--name", "c", "--ranges-as", "op:*"),
        ("diff", PAGEABLE, PAGEABLE),
        ("diff", PAGEABLE, GRAPH),
    ],
)
def test_following_the_next_command_leads_on_to_json(run, arguments):
    seen = []
    for _ in range(3):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        if "--format" in arguments:
            break
        last = out.splitlines()[-1]
        assert last.startswith("next: tracetool ")
        arguments = shlex.split(last)[2:]
        assert arguments not in seen
        seen.append(arguments)
    assert json.loads(out)["ranges"]


def test_what_came_through_a_pipe_has_no_next_command(traces):
    done = process("summary", "-", stdin=None, input=Path(traces["healthy"]).read_bytes())
    assert done.returncode == 0
    assert b"next:" not in done.stdout


# Exit codes ---------------------------------------------------------------------------------------------------


def test_exit_code_1_only_where_counts_differ_and_it_is_asked(run, traces):
    assert run("diff", PAGEABLE, PINNED)[0] == 0
    code, out, err = run("diff", PAGEABLE, PINNED, "--exit-code")
    assert (code, err) == (1, "")
    assert "h2d_batch" in out
    assert run("diff", PAGEABLE, PAGEABLE, "--exit-code")[0] == 0
    assert run("diff", traces["healthy"], traces["healthy"], traces["more"], "--exit-code")[0] == 1


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", ["summary", "health", "diff"])
def test_an_unhealthy_trace_is_shown_and_exits_2(run, traces, command, form):
    second = (traces["healthy"],) if command == "diff" else ()
    code, out, err = run(command, traces["sick"], *second, "--format", form, *(["--exit-code"] if second else []))
    assert code == 2
    assert one_sentence(err).startswith(f"{traces['sick']} is not healthy: ")
    assert "error" in out
    assert run("diff", traces["healthy"], traces["sick"])[0] == 2


def test_an_unhealthy_trace_is_still_written_to_a_file(run, traces, tmp_path):
    assert run("health", traces["sick"], "-o", tmp_path / "out.txt")[0] == 2
    assert "no_device_events" in (tmp_path / "out.txt").read_text()


# Wrong settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--metric", "kernel_launchs"), "'kernel_launchs' is no metric: did you mean 'kernel_launches'?"),
        (("--range", ""), "the range pattern '' is empty: name a range, or use '**' for all"),
        (("--range", "x\\"), "the pattern 'x\\' ends with a lone backslash: write \\\\ for a backslash"),
        (("--range", "forwrd"), "no range fits 'forwrd': did you mean /train/forward?"),
        (("--range", "/forward"), "no range fits '/forward': did you mean /train/forward?"),
        (("--range", "load", "--range", "zz"), "no range fits 'zz': `--depth 1` shows the outermost ranges"),
        (("--range", "z\x1bz"), "no range fits 'z\N{REPLACEMENT CHARACTER}z': `--depth 1` shows the outermost ranges"),
        (("--fold", "("), "the fold '(' is no regular expression: missing ), unterminated subpattern at position 0"),
        (("--fold", "x*"), "the fold 'x*' matches the empty text: name what is to be folded"),
        (("--ranges-as", "ops"), "'ops' cannot serve as ranges: write op:GLOB, python:GLOB, module or thread"),
        (("--ranges-as", "op:"), "'op:' cannot serve as ranges: write op:GLOB, python:GLOB, module or thread"),
        (
            ("--ranges-as", "thread:x"),
            "'thread:x' cannot serve as ranges: write op:GLOB, python:GLOB, module or thread",
        ),
    ],
)
@pytest.mark.parametrize("command", ["summary", "diff"])
def test_wrong_settings_in_one_sentence(run, traces, command, options, sentence):
    paths = [traces["healthy"]] * (1 if command == "summary" else 2)
    code, out, err = run(command, *paths, *options)
    assert (code, out) == (2, "")
    assert one_sentence(err) == sentence


def test_per_step_without_steps(run, traces):
    code, out, err = run("summary", traces["stepless"], "--per", "step")
    assert (code, out) == (2, "")
    assert one_sentence(err).endswith("has no profiler steps: give numbers per call or per trace instead")
    code, out, err = run("diff", traces["healthy"], traces["stepless"], "--per", "step")
    assert (code, out) == (2, "")
    assert one_sentence(err) == "'stepless' has no profiler steps: compare per call or per trace instead"


def test_a_range_of_one_side_only_may_be_asked_for(run, traces):
    code, out, _ = run("diff", traces["healthy"], traces["more"], "--range", "late")
    assert code == 0
    assert "late  added" in out


def test_names_one_for_each_side(run, traces):
    code, out, err = run("diff", traces["healthy"], traces["more"], "--name", "x", "--name", "y", "--name", "z")
    assert (code, out) == (2, "")
    assert one_sentence(err) == "3 names for 2 traces: give one name for each, in their order"


@pytest.mark.parametrize(
    "arguments",
    [("summary",), ("diff", "x"), ("nonsense",), ("summary", "x", "--depth", "0"), ("summary", "x", "--format", "xml")],
)
def test_bad_usage(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage: tracetool" in err
    assert "Error: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda _: None, "there is no such file; check the path"),
        (lambda path: path.mkdir(), ""),
        (lambda path: path.write_text(""), "is empty"),
        (lambda path: path.write_text("hello"), ""),
    ],
)
@pytest.mark.parametrize("command", ["summary", "health", "diff"])
def test_what_is_no_trace(run, tmp_path, traces, command, make, words):
    path = tmp_path / "odd"
    make(path)
    code, out, err = run(command, *([traces["healthy"]] if command == "diff" else []), path)
    assert (code, out) == (2, "")
    assert words in one_sentence(err)
    assert str(path) in err


# Standard input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input(traces, pack):
    data = Path(traces["healthy"]).read_bytes()
    done = process("summary", "-", "--format", "json", stdin=None, input=pack(data))
    assert done.returncode == 0
    assert json.loads(done.stdout)["totals"]["kernels"] == 2
    both = process("diff", traces["healthy"], "-", "--exit-code", stdin=None, input=pack(data))
    assert both.returncode == 0


def test_standard_input_is_read_once(run):
    code, out, err = run("diff", "-", "-")
    assert (code, out) == (2, "")
    assert one_sentence(err) == "standard input can be read only once: name a file for the other traces"


# Files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_result_can_go_to_a_file(run, tmp_path, command, form):
    target = tmp_path / "out"
    code, out, err = run(*COMMANDS[command], "--format", form, "-o", target)
    assert (code, out, err) == (0, "", "")
    _, printed, _ = run(*COMMANDS[command], "--format", form)
    assert target.read_text() == printed
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_is_overwritten_by_force_only(run, tmp_path):
    target = tmp_path / "out"
    target.write_text("mine")
    code, out, err = run("metrics", "-o", target)
    assert (code, out) == (2, "")
    assert one_sentence(err) == f"{target} exists already; --force overwrites it"
    assert target.read_text() == "mine"
    assert run("metrics", "-o", target, "--force")[0] == 0
    assert "kernel_launches" in target.read_text()


def test_a_target_is_refused_before_anything_is_read(run, tmp_path):
    (tmp_path / "out").write_text("mine")
    code, _, err = run("summary", tmp_path / "missing.json", "-o", tmp_path / "out")
    assert (code, one_sentence(err)) == (2, f"{tmp_path / 'out'} exists already; --force overwrites it")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (".", "is a directory; name a file in it"),
        ("no/such/out", "cannot be written: there is no folder"),
        ("x" * 300, "cannot be written: File name too long"),
        ("file/out", "cannot be written: there is no folder"),
    ],
)
def test_targets_that_cannot_be(run, tmp_path, target, words):
    (tmp_path / "file").write_text("")
    code, out, err = run("metrics", "-o", tmp_path / target)
    assert (code, out) == (2, "")
    assert words in one_sentence(err)


def test_a_folder_that_may_not_be_written(run, tmp_path, monkeypatch):
    if os.geteuid():
        tmp_path.chmod(0o500)
    else:  # nothing is forbidden to root

        def refuse(*_, **__):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(output.tempfile, "NamedTemporaryFile", refuse)
    code, out, err = run("metrics", "-o", tmp_path / "out")
    tmp_path.chmod(0o700)
    assert (code, out) == (2, "")
    assert one_sentence(err) == f"{tmp_path / 'out'} cannot be written: Permission denied"


def test_a_folder_that_may_not_be_entered(run, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(output.Path, "is_dir", refuse)
    code, _, err = run("metrics", "-o", tmp_path / "out")
    assert (code, one_sentence(err)) == (2, f"{tmp_path / 'out'} cannot be written: Permission denied")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(run, tmp_path, monkeypatch, failure):
    target = tmp_path / "out"
    target.write_text("mine")

    def fail(*_):
        raise failure

    monkeypatch.setattr(output.Path, "replace", fail)
    code, _, err = run("metrics", "-o", target, "--force")
    assert code == (130 if isinstance(failure, KeyboardInterrupt) else 2)
    assert one_sentence(err.strip())
    assert target.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_is_followed_and_kept(run, tmp_path):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "real", tmp_path / "link"
    link.symlink_to(target)
    assert run("metrics", "-o", link)[0] == 0
    assert link.is_symlink()
    assert "kernel_launches" in target.read_text()


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_a_device_is_written_to_and_stays_one(run, force):
    assert run("metrics", "-o", os.devnull, *force) == (0, "", "")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_file_has_no_colour_and_a_width_of_its_own(run, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    target = tmp_path / "out"
    assert run("metrics", "-o", target)[0] == 0
    longest = max(map(len, target.read_text().splitlines()))
    assert 100 < longest <= 120
    assert "\x1b" not in target.read_text()


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_name_that_is_no_text(tmp_path, form):
    name = os.fsencode(tmp_path) + b"/\xff.json"
    Path(os.fsdecode(name)).write_bytes(Path(healthy().write(tmp_path / "t.json")).read_bytes())
    for more in ([], ["-o", str(tmp_path / "out")]):
        done = subprocess.run(
            [sys.executable, "-m", "tracetool", "diff", name, name, "--format", form, *more],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
    text = (tmp_path / "out").read_text()
    shown = json.loads(text)["baseline"]["path"] if form == "json" else text.replace("\\\\", "\\")
    assert "\\udcff.json" in shown


# Terminals and locales ----------------------------------------------------------------------------------------


def in_a_terminal(*arguments, columns="100", **environment):
    """Standard output and standard error as a terminal of that width shows them."""
    leader, follower = pty.openpty()
    settings = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "TERM")}
    child = subprocess.Popen(
        [sys.executable, "-m", "tracetool", *arguments],
        stdout=follower,
        stderr=follower,
        stdin=subprocess.DEVNULL,
        env={**settings, "COLUMNS": columns, **environment},
    )
    os.close(follower)
    shown = b""
    with open(leader, "rb", buffering=0) as screen:  # noqa: PTH123 (a file descriptor)
        while True:
            try:
                piece = screen.read(65536)
            except OSError:  # Linux tells the end of a terminal so
                break
            if not piece:
                break
            shown += piece
    assert child.wait(60) == 0
    return shown.decode().replace("\r\n", "\n")


def test_colour_in_a_terminal_but_not_with_no_color(run, monkeypatch):
    coloured = in_a_terminal("summary", PINNED)
    assert "\x1b[" in coloured
    plain = in_a_terminal("summary", PINNED, NO_COLOR="1")
    assert "\x1b" not in plain
    monkeypatch.setenv("COLUMNS", "100")
    assert run("summary", PINNED)[1] == plain
    assert "\x1b[" in in_a_terminal("summary", PINNED, NO_COLOR="")
    assert in_a_terminal("summary", PINNED, TERM="dumb") == plain


def test_columns_decide_the_width(run, monkeypatch):
    widths = []
    for columns in ("60", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        widths.append(max(map(len, run("metrics")[1].splitlines())))
    assert widths[0] <= 60 < widths[1] <= 100


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_locale_without_the_letters(tmp_path, encoding):
    trace = Small()
    with trace.range("\u4e2d\u00e9"):
        trace.kernel()
    path = trace.write(tmp_path / "t.json")
    for form in FORMATS:
        done = process("summary", path, "--format", form, env={**os.environ, "PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, b"")
        text = done.stdout.decode(encoding)
        assert ("\u4e2d\u00e9" in text) is (encoding == "utf-8")
        assert ("\\u4e2d" in text) is (encoding != "utf-8")


# Ends that nobody planned -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_a_reader_that_goes_away(form):
    command = f"{shlex.quote(sys.executable)} -m tracetool summary {shlex.quote(PAGEABLE)} --format {form}"
    done = subprocess.run(
        ["bash", "-c", f"{command} --all | head -n 1; exit ${{PIPESTATUS[0]}}"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout.count(b"\n")) == (0, b"", 1)


def test_a_reader_that_was_never_there():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "tracetool", "summary", PAGEABLE],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_behind_standard_output():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tracetool", "metrics"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert done.returncode == 2
    assert one_sentence(done.stderr.decode()) == "standard output cannot be written: No space left on device"


def test_no_standard_output_at_all():
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m tracetool metrics >&-"],
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert one_sentence(done.stderr.decode()) == "standard output is closed: name a file with -o"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_ctrl_c_while_reading_a_slow_pipe(traces, pack):
    program = (
        "import signal, sys\n"
        # whoever started the tests in the background may have had SIGINT ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from tracetool import cli\n"
        "from tracetool.chrome import reader\n"
        "whole = reader.open_bytes\n"
        "def opened(path):\n"
        "    print('reading', flush=True)\n"
        "    return whole(path)\n"
        "reader.open_bytes = opened\n"
        "sys.exit(cli.main(['summary', '-']))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout.readline() == b"reading\n"
    data = pack(Path(traces["healthy"]).read_bytes())
    child.stdin.write(data[: len(data) // 2])
    child.stdin.flush()
    child.send_signal(signal.SIGINT)
    try:
        child.wait(20)
    finally:
        child.kill()
        out, err = child.stdout.read(), child.stderr.read().decode()
        child.stdin.close()
        child.stdout.close()
        child.stderr.close()
    assert (child.returncode, out) == (130, b"")
    assert one_sentence(err.strip()) == "interrupted; nothing was written"


def test_a_defect_in_one_sentence_and_its_traceback_on_demand(run, monkeypatch, traces):
    def crash(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("tracetool.summary.summarize", crash)
    monkeypatch.delenv("TRACETOOL_DEBUG", raising=False)
    code, out, err = run("summary", traces["healthy"])
    assert (code, out) == (2, "")
    assert one_sentence(err) == (
        "a defect in tracetool: ZeroDivisionError: oops; please report it with the output of the same command under "
        "TRACETOOL_DEBUG=1"
    )
    monkeypatch.setenv("TRACETOOL_DEBUG", "1")
    code, _, err = run("summary", traces["healthy"])
    assert code == 2
    assert "Traceback (most recent call last)" in err
    assert "in crash" in err


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [(MemoryError(), 2, "out of memory"), (KeyboardInterrupt(), 130, "interrupted"), (EOFError(), 130, "interrupted")],
)
def test_other_ends(run, monkeypatch, traces, failure, code, words):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr("tracetool.summary.summarize", fail)
    found, out, err = run("summary", traces["healthy"])
    assert (found, out) == (code, "")
    assert words in one_sentence(err.strip())


# Progress -----------------------------------------------------------------------------------------------------


class Clock:
    """Time that passes by so much each time it is asked for."""

    def __init__(self, seconds):
        self.now = itertools.count(0, seconds)

    def monotonic(self):
        return next(self.now)


def test_progress_is_for_files_that_take_over_a_second(run, monkeypatch, traces):
    monkeypatch.setattr(opening, "time", Clock(0.01))
    assert run("summary", traces["healthy"])[2] == ""
    monkeypatch.setattr(opening, "time", Clock(2))
    code, out, err = run("summary", traces["healthy"])
    assert code == 0
    assert err == f"reading {traces['healthy']} ...\n"
    assert "reading" not in out


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_in_a_terminal_is_one_line_that_goes_away(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(opening.sys, "stderr", screen)
    monkeypatch.setattr(opening, "time", Clock(0.6))
    with opening._Progress("big.json") as progress:
        progress.show(1 << 20)
        assert screen.getvalue() == ""
        progress.show(5 << 20)
        progress.show(6 << 20)
        assert screen.getvalue() == "\rreading big.json: 5 MiB\rreading big.json: 6 MiB"
    assert screen.getvalue().endswith("\r\x1b[K")
    assert "\n" not in screen.getvalue()


# Completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    script = Path(sys.executable).with_name("tracetool")
    environment = {**os.environ, "_TRACETOOL_COMPLETE": f"{shell}_source"}
    done = subprocess.run([script], capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0
    assert b"_TRACETOOL_COMPLETE=" + shell.encode() + b"_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("tracetool ", set(cli.commands)),
        ("tracetool summary --format ", set(FORMATS)),
        ("tracetool summary x --per ", {"call", "step", "trace"}),
        ("tracetool diff --exit", {"--exit-code"}),
    ],
)
def test_completion_answers(words, answer):
    script = Path(sys.executable).with_name("tracetool")
    environment = {
        **os.environ,
        "_TRACETOOL_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    done = subprocess.run([script], capture_output=True, env=environment, timeout=60, check=False)
    assert {line.partition(",")[2] for line in done.stdout.decode().splitlines()} == answer


def test_invoke_gives_the_exit_code_of_the_command():
    assert invoke("diff", PAGEABLE, PINNED, "--exit-code").exit_code == 1


def test_metrics_of_choice(run):
    code, out, _ = run("metrics", "--metric", "syncs", "--format", "json")
    assert code == 0
    assert [one["name"] for one in json.loads(out)["metrics"]] == ["syncs"]
    assert run("metrics", "--metric", "sync")[0] == 2
