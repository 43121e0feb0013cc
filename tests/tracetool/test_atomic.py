"""Every file that a command writes is whole: the old one, or the new one, whatever happens in between."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tracetool
from tracetool.cli import cli, main
from tracetool.output import replacing

from .traces import GRAPH, PAGEABLE, PINNED, ROOT

WRITERS = {
    # command: its arguments; FILE is what it writes
    "summary": ["summary", PAGEABLE, "-o", "FILE", "--force"],
    "summary-json": ["summary", PAGEABLE, "--format", "json", "-o", "FILE", "--force"],
    "diff": ["diff", PAGEABLE, PINNED, "--format", "markdown", "-o", "FILE", "--force"],
    "diff-html": ["diff", PAGEABLE, PINNED, "--html", "FILE", "--force"],
    "report": ["report", PAGEABLE, "-o", "FILE", "--force"],
    "health": ["health", PAGEABLE, "-o", "FILE", "--force"],
    "metrics": ["metrics", "-o", "FILE", "--force"],
    "check": ["check", PAGEABLE, "--budgets", "BUDGETS", "-o", "FILE", "--force"],
    "check-update": ["check", PAGEABLE, "--baseline", "FILE", "--update"],
    "lint": ["lint", PAGEABLE, "-o", "FILE", "--force"],
    "rules": ["rules", "-o", "FILE", "--force"],
    "snapshot": ["snapshot", PAGEABLE, "-o", "FILE"],
    "merge": ["merge", PAGEABLE, PINNED, "-o", "FILE", "--force"],
    "merge-gz": ["merge", PAGEABLE, PINNED, "-o", "FILE.gz", "--force"],
    "capture": ["capture", "SAVE", "-o", "FILE"],
}
BUDGETS = '[[budgets]]\nper = "trace"\nh2d_copies = ">= 0"\n'
SNAPSHOT = "# tracetool snapshot 1\n"
OLD = "what was there before\n"

# Runs each command in a process of its own, forked when all is imported; tells how each ended.
WORK = """
import json, os, resource, signal, sys
from pathlib import Path
from tracetool.capturing.save import save
from tracetool.cli import main
from tracetool.errors import OutputError
import tracetool.breakdown

tracetool.breakdown.installed = lambda: False  # a report has HTA's tables too, which take long


def capture(target):
    raw = Path(target).with_name("raw.json")
    try:
        save(raw, Path(target), [], {"made by": "a test"}, {}, lambda path: path.stat().st_size)
    except OutputError as error:
        print(f"tracetool: {error}", file=sys.stderr)
        return 2
    return 0


def full():
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16))


def killed():
    Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


def whole():
    pass


how, jobs = globals()[sys.argv[1]], json.loads(sys.argv[2])
for name, words in jobs.items():
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(tell, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        how()
        os._exit(capture(words[-1]) if words[0] == "capture" else main(words))
    os.close(tell)
    said = os.fdopen(told).read()
    print(json.dumps([name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


@pytest.fixture
def places(tmp_path):
    """A folder for each command, with what stands there before: the command as it is typed, and its file."""
    found = {}
    for name, words in WRITERS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "budgets.toml").write_text(BUDGETS)
        (folder / "raw.json").write_text('{"schemaVersion": 1, "traceEvents": [{"ph": "M"}]}')
        file = folder / ("result.json" + (".gz" if "FILE.gz" in words else ""))
        file.write_text(before(name))
        known = {"FILE": file, "FILE.gz": file, "BUDGETS": folder / "budgets.toml"}
        found[name] = ([str(known.get(word, word)) for word in words], file)
    return found


def before(name):
    return SNAPSHOT if name in ("snapshot", "check-update") else OLD


def run_all(how, places):
    jobs = json.dumps({name: words for name, (words, _) in places.items()})
    command = [sys.executable, "-c", WORK, how, jobs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=500, check=True)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [name for name, *_ in told] == list(places)
    return {name: (code, said) for name, code, said in told}


def strays(file):
    return sorted(path.name for path in file.parent.iterdir() if path.name.startswith("."))


def test_every_command_that_writes_is_tried_here():
    writing = {
        (name, option.name)
        for name, command in cli.commands.items()
        for option in command.params
        if {"-o", "--html", "--update"} & set(option.opts)
    }
    tried = {(words[0], "output") for words in WRITERS.values() if "-o" in words}
    tried |= {("diff", "html"), ("check", "update")}
    # These write as `summary`, `diff` and `capture` do; what they need takes minutes.
    tried |= {("compare", "output"), ("compare", "html"), ("breakdown", "output")}
    assert writing == tried


def test_nothing_is_written_past_what_is_tried_here():
    writes = ("write_text", "write_bytes", "mkstemp", "NamedTemporaryFile", "export_chrome_trace", "open")
    found = set()
    for path in sorted(Path(tracetool.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                modes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
                if name in writes and (name != "open" or any(re.fullmatch("[wax]b?[+]?", mode) for mode in modes)):
                    found.add((path.relative_to(Path(tracetool.__file__).parent).as_posix(), name))
    in_folders_of_their_own = {
        ("processes.py", "write_bytes"),
        ("processes.py", "open"),
        ("capturing/forking.py", "open"),
        ("capturing/child.py", "write_bytes"),
        ("capturing/recorder.py", "export_chrome_trace"),
    }
    of_our_own = {("perfetto_commands.py", "write_bytes")}  # `output.write_bytes`
    assert (
        found
        == {("output.py", "NamedTemporaryFile"), ("output.py", "write_bytes")} | in_folders_of_their_own | of_our_own
    )


def test_a_full_disk_leaves_the_old_file_and_nothing_else(places):
    for name, (code, said) in run_all("full", places).items():
        _, file = places[name]
        assert (code, said) == (2, f"tracetool: {file} cannot be written: File too large\n"), name
        assert file.read_text() == before(name), name
        assert strays(file) == [], name


def test_a_kill_leaves_the_old_file_and_what_it_left_goes_with_the_next_one(places):
    for name, (code, said) in run_all("killed", places).items():
        _, file = places[name]
        assert (code, said) == (-signal.SIGKILL, ""), name
        assert file.read_text() == before(name), name
        assert len(strays(file)) == 1, name
    once_more = {name: places[name] for name in ("summary", "snapshot", "merge-gz", "capture")}
    for name, (code, _) in run_all("killed", once_more).items():
        assert code == -signal.SIGKILL
        assert len(strays(places[name][1])) == 1, name  # it does not grow
    for name, (code, _) in run_all("whole", once_more).items():
        _, file = places[name]
        assert code == 0, name
        assert file.read_bytes() not in (b"", before(name).encode()), name
        assert strays(file) == [], name


def test_what_another_process_is_writing_is_left_alone(tmp_path):
    target = tmp_path / "result.txt"
    with replacing(target) as first:
        first.write(b"first")
        with replacing(target) as second:
            second.write(b"second")
        assert target.read_bytes() == b"second"
        assert len(strays(target)) == 1
    assert target.read_bytes() == b"first"
    assert strays(target) == []


def test_a_name_as_long_as_names_can_be(tmp_path):
    target = tmp_path / ("x" * 255)
    assert main(["metrics", "-o", str(target)]) == 0
    assert target.read_text()


def test_a_result_is_as_readable_as_any_file(tmp_path):
    mask = os.umask(0o027)
    try:
        assert main(["metrics", "-o", str(tmp_path / "result")]) == 0
    finally:
        os.umask(mask)
    assert (tmp_path / "result").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real").write_text(OLD)
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    assert main(["health", GRAPH, "-o", str(tmp_path / "link"), "--force"]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_text() != OLD


def test_standard_output_on_a_full_device_is_one_sentence():
    with Path("/dev/full").open("w") as device:
        done = subprocess.run(
            [sys.executable, "-m", "tracetool", "metrics"],
            stdout=device,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert (done.returncode, done.stderr) == (
        2,
        "tracetool: standard output cannot be written: No space left on device\n",
    )
