"""Names in traces and of files that would steer a terminal, a page, a table or a build: shown, and nothing else."""

import json
import re
import shutil

import pytest

from tracetool.output import STEERING

from .small import Small

STEER = "\x1b[31mred\x1b]0;title\x07\x9b2J\r\x08\x7f\u202egnp\u2066"
MARKUP = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"
TABLE = "a|b`c`\n# heading\n::error::no\n::set-output name=x::y\n%0A::warning::z"
EVIL = f"{STEER}{MARKUP}{TABLE}"
COMMANDS = {
    "summary": ["summary", "ONE", "--all"],
    "summary by call": ["summary", "ONE", "--per", "call", "--all"],
    "health": ["health", "ONE"],
    "diff": ["diff", "ONE", "OTHER", "--all"],
    "diff with labels": ["diff", "ONE", "OTHER", "--name", EVIL, "--name", f"{EVIL}2"],
    "check": ["check", "ONE", "--budgets", "BUDGETS", "--all"],
    "check a snapshot": ["check", "ONE", "--baseline", "SNAPSHOT", "--any-env", "--all"],
    "unknown range": ["summary", "ONE", "--range", f"{EVIL}x"],
    "unknown metric": ["summary", "ONE", "--metric", EVIL],
    "no such file": ["summary", "MISSING"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Traces whose every name is evil, under evil names, and what they are held against."""
    folder = tmp_path_factory.mktemp("evil")
    name = EVIL.replace("/", "").replace("\0", "")[:90]
    made = {}
    for word, copies in (("ONE", 2), ("OTHER", 3)):
        small = Small(gpu=EVIL, host=EVIL, tracetool={"workload": EVIL, "axes": {EVIL: EVIL}})
        for number in range(2):
            with small.step(number), small.range(EVIL), small.range(f"{EVIL}/*\\"):
                for _ in range(copies):
                    small.copy(op=EVIL)
                with small.op(f"aten::{EVIL}"):
                    small.kernel(EVIL, op=EVIL)
                small.sync()
        made[word] = small.write(folder / f"{name}{copies}.json")
    (folder / "budgets.toml").write_text('[[budgets]]\nrange = "**"\nh2d_copies = 1\nkernel_launches = "<= 0"\n')
    return {**made, "BUDGETS": str(folder / "budgets.toml"), "MISSING": str(folder / f"{name}9.json")}


@pytest.fixture
def snapshot(files, tmp_path, run):
    target = tmp_path / "snapshot.txt"
    assert run("snapshot", files["OTHER"], "-o", target)[0] == 0
    return {**files, "SNAPSHOT": str(target)}


def lines_of(text):
    return text.split("\n")


@pytest.mark.parametrize("form", ["terminal", "markdown", "json", "github"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_steers_what_it_is_printed_on(snapshot, run, command, form):
    if form == "github" and not command.startswith("check"):
        pytest.skip("only `check` writes for GitHub")
    words = [snapshot.get(word, word) for word in COMMANDS[command]]
    code, out, err = run(*words, "--format", form)
    assert code in (0, 1, 2)
    assert out or err
    for line in [*lines_of(out), *lines_of(err)]:
        assert STEERING.search(line) is None
    assert "defect" not in err
    if form == "json" and out:
        json.loads(out)
    if form == "github":
        told = [line for line in lines_of(out) if line]
        assert told
        assert all(re.match(r"::(error|warning|notice) (?:[a-z]+=[^:,]*,)*title=tracetool::", line) for line in told)
    if form == "markdown":
        assert not [line for line in lines_of(out) if re.match(r"# heading|::|<(?!/?details)", line)]


def test_a_snapshot_of_evil_names_is_the_same_after_it_was_read(snapshot, run):
    assert run("check", snapshot["OTHER"], "--baseline", snapshot["SNAPSHOT"])[0] == 0


def test_a_page_holds_them_as_text(files, tmp_path, run):
    target = tmp_path / "page.html"
    assert run("report", files["ONE"], files["OTHER"], "--name", EVIL, "--name", f"{EVIL}2", "-o", target)[0] == 0
    page = target.read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    # Each script is ours: it has the page's nonce, or holds data.
    scripts = re.findall(r"<script\b[^>]*>", page)
    assert scripts
    assert all(re.search(r"nonce=|type=.(application/json|text/plain)", one) for one in scripts)


def test_perfetto_gets_them_as_text(files, tmp_path, run):
    target = tmp_path / "merged.json"
    assert run("merge", files["ONE"], files["OTHER"], "--name", EVIL, "--name", "b", "-o", target)[0] == 0
    assert any(EVIL in str(one.get("name")) for one in json.loads(target.read_text())["traceEvents"])


def test_what_is_typed_next_is_left_out_where_it_cannot_be_typed(files, run, tmp_path):
    plain = tmp_path / "plain.json"
    shutil.copy(files["ONE"], plain)
    assert f"next: tracetool summary {plain}" in run("summary", plain)[1]
    assert "next:" not in run("summary", files["ONE"])[1]
