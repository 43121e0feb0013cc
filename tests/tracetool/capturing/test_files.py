"""The file: whole or not there, never over another unasked; and what it says of where it was made."""

import errno
import gzip
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import tracetool
from tests.tracetool.capturing.captured import environment, files_in
from tracetool.capturing import save, session

WORK = "import torch\nfor i in range(50):\n    torch.ones(3).add(1)\n"
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def work(write):
    return write("work.py", WORK)


# Where it goes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.json", "t.gz", "t", ".json.gz", "t.json.gz.bak"])
def test_names_of_traces(capture, work, workplace, name):
    done = capture(work, to=name)
    assert (done.code, done.out) == (2, "")
    assert done.sentence == f"{name} must be named *.json.gz: traces are compressed"
    assert files_in(workplace) == ["work.py"]


def test_a_file_that_exists(capture, write, workplace):
    (workplace / "t.json.gz").write_bytes(b"mine")
    done = capture(write("note.py", "from pathlib import Path\nPath('ran').touch()\n"))
    assert (done.code, done.out) == (2, "")
    assert done.sentence == "t.json.gz exists already; --force overwrites it"
    assert (workplace / "t.json.gz").read_bytes() == b"mine"
    assert not (workplace / "ran").exists()


def test_a_file_that_exists_with_force(capture, work, workplace):
    (workplace / "t.json.gz").write_bytes(b"mine")
    done = capture(work, "--force")
    assert (done.code, done.err) == (0, "")
    assert done.count("ops", "(no range)") == 100


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no/t.json.gz", "no/t.json.gz cannot be written: there is no folder no; make it first"),
        ("work.py/t.json.gz", "work.py/t.json.gz cannot be written: there is no folder work.py; make it first"),
        ("folder.json.gz", "folder.json.gz is a directory; name a file in it"),
    ],
)
def test_places_that_are_none(capture, work, workplace, name, words):
    (workplace / "folder.json.gz").mkdir()
    done = capture(work, to=name)
    assert (done.code, done.out, done.sentence) == (2, "", words)


def test_a_read_only_folder_is_noticed_before_anything_runs(capture, write, workplace, monkeypatch):
    write("note.py", "raise SystemExit('ran')\n")
    (workplace / "shut").mkdir()
    if os.geteuid():
        (workplace / "shut").chmod(0o500)
    else:  # nothing is forbidden to root
        monkeypatch.setattr(session.os, "access", lambda *_: False)
    done = capture("note.py", to="shut/t.json.gz")
    assert (done.code, done.out) == (2, "")
    assert done.sentence == "shut/t.json.gz cannot be written: nothing may be written in shut"


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(capture, work, workplace, monkeypatch, failure):
    class Full(gzip.GzipFile):
        def write(self, _):
            raise failure

    def full(_, sink):
        return Full(filename="", mode="wb", fileobj=sink)

    monkeypatch.setattr(save, "_compressor", full)
    (workplace / "t.json.gz").write_bytes(b"mine")
    done = capture(work, "--force")
    assert done.out == ""
    if isinstance(failure, OSError):
        assert (done.code, done.sentence) == (2, f"{done.path} cannot be written: No space left on device")
    else:
        assert (done.code, done.sentence) == (130, "interrupted")
    assert files_in(workplace) == ["t.json.gz", "work.py"]
    assert (workplace / "t.json.gz").read_bytes() == b"mine"


def test_what_was_recorded_on_the_way_is_deleted(capture, work, write, workplace, monkeypatch):
    (workplace / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(workplace / "tmp"))
    assert capture(work).code == 0
    assert capture(write("fail.py", "import torch\ntorch.ones(3)\n1 / 0\n"), "--force").code == 2
    assert capture(work, "--active", "2", "--force").code == 2
    assert list((workplace / "tmp").iterdir()) == []


def test_a_trace_is_as_readable_as_any_file(capture, work):
    before = os.umask(0o027)
    try:
        done = capture(work)
    finally:
        os.umask(before)
    assert stat.S_IMODE(done.path.stat().st_mode) == 0o640


def test_equal_contents_make_equal_files(tmp_path):
    raw = tmp_path / "raw.json"
    raw.write_text('{"baseTimeNanoseconds": 1, "traceEvents": [ {"ph": "X"} ]}')
    for name in ("a", "b"):
        save.save(raw, tmp_path / name, [], {}, {}, lambda _: None)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"traceEvents": 3}'])
def test_what_is_no_trace_is_not_saved(tmp_path, text):
    (tmp_path / "raw.json").write_text(text)
    with pytest.raises(tracetool.errors.CaptureError, match="this version of torch is not known"):
        save.save(tmp_path / "raw.json", tmp_path / "t", [], {}, {}, lambda _: None)
    assert files_in(tmp_path) == ["raw.json"]


def test_a_large_file_is_compressed_in_a_hurry_and_whole(capture, work, monkeypatch):
    monkeypatch.setattr(save, "_LARGE_BYTES", 0)
    monkeypatch.setattr(save, "_HEAD_BYTES", 4096)
    monkeypatch.setattr(save, "_PIECE_BYTES", 100)
    done = capture(work)
    assert (done.code, done.count("ops", "(no range)")) == (0, 100)


# What it says of itself ---------------------------------------------------------------------------------------


def test_what_was_run_and_how(capture, work, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tracetool", "capture", "work.py"])
    about = capture(work, "a", "--shapes").about
    assert about["command"] == ["tracetool", "capture", "work.py"]
    assert {"kind": "script", "script": "work.py", "arguments": ["a"]}.items() <= about.items()
    assert about["version"] == tracetool.__version__
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", about["captured"])
    assert {name for name, value in about["options"].items() if value} == {"shapes"}
    assert about["compiles"] is True
    assert about["expects_device"] is False


def test_versions_and_host(capture, work):
    import torch  # noqa: PLC0415 - its version alone is asked for

    about = capture(work).about
    assert about["versions"]["torch"] == torch.__version__
    assert {"python", "numpy", "triton", "transformers"} <= about["versions"].keys()
    assert about["host"].keys() == {"cpu", "cores", "system"}
    assert all(about["host"].values())


def test_the_seed_is_the_programs(capture, write):
    assert capture(write("seeded.py", "import torch\ntorch.manual_seed(1234)\ntorch.rand(3)\n")).about["seed"] == 1234


def test_the_environment_without_secrets(capture, work, monkeypatch):
    secrets = ("HF_TOKEN", "HF_HUB_TOKEN", "TORCH_API_KEY", "CUDA_SECRET_PATH", "TRITON_PASSWORD", "HF_CREDENTIALS")
    for name in secrets:
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRITON_DEBUG", "0")
    monkeypatch.setenv("UNRELATED", "hunter2")
    done = capture(work)
    found = done.about["environment"]
    assert {"OMP_NUM_THREADS": "1", "TRITON_DEBUG": "0"}.items() <= found.items()
    assert "hunter2" not in gzip.decompress(done.path.read_bytes()).decode()
    assert done.summary.environment["TRITON_DEBUG"] == "0"


def git(*arguments):
    return subprocess.run(
        [*GIT, *arguments], check=True, capture_output=True, text=True, env=environment(GIT_CONFIG_GLOBAL=os.devnull)
    ).stdout.strip()


def test_the_commit_and_whether_files_differ(capture, work, write):
    assert capture(work).about["git"] is None
    git("init", "-q")
    git("add", "work.py")
    git("commit", "-q", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert capture(work, "--force").about["git"] == {"commit": commit, "dirty": False}
    write("work.py", WORK + "torch.ones(1)\n")
    done = capture(work, "--force")
    assert done.about["git"] == {"commit": commit, "dirty": True}
    assert done.summary.environment["git.dirty"] == "True"


def test_the_repository_is_that_of_the_folder_where_it_began(capture, write, workplace):
    (workplace / "other").mkdir()
    git("init", "-q", "other")
    git("-C", "other", "commit", "-q", "--allow-empty", "-m", "first")
    assert capture(write("away.py", "import os, torch\ntorch.ones(3)\nos.chdir('other')\n")).about["git"] is None


def test_without_git(capture, work, monkeypatch):
    monkeypatch.setenv("PATH", "")
    done = capture(work)
    assert (done.code, done.about["git"]) == (0, None)


# What is recorded besides -------------------------------------------------------------------------------------


def test_shapes(capture, work):
    assert not any("Input Dims" in event.get("args", {}) for event in capture(work).events)
    events = capture(work, "--shapes", "--force").events
    assert any(event.get("args", {}).get("Input Dims") == [[3], []] for event in events)


def test_memory(capture, write):
    write("work.py", "import torch\nfor i in range(50):\n    torch.empty(3)\n")
    assert "allocs" not in capture("work.py").summary.held
    done = capture("work.py", "--memory", "--force")
    assert done.count("allocs", "(no range)") == 50
    assert done.count("alloc_bytes", "(no range)") == 50 * 3 * 4


def test_stacks(capture, write):
    write("work.py", "import torch\ndef make():\n    return torch.ones(3)\nmake()\n")
    assert "python_function" not in {event.get("cat") for event in capture("work.py").events}
    done = capture("work.py", "--stacks", "--force")
    row = done.summary.paths.index(("(no range)",))
    assert done.summary.contributors(row, "function")["work.py:2 in make"]["ops"] == 1


def test_the_cpu_alone(capture, work):
    done = capture(work, "--cpu")
    assert (done.code, done.about["options"]["cpu"], done.about["expects_device"]) == (0, True, False)


def test_threads_of_the_program_bring_their_ranges(capture, write):
    done = capture(
        write(
            "threads.py",
            """
            import threading, torch
            from torch.profiler import record_function

            def work():
                with record_function("in a thread"):
                    torch.ones(3).add(1)

            threads = [threading.Thread(target=work) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            """,
        )
    )
    assert (done.code, done.err) == (0, "")
    assert done.count("calls", "in a thread") == 3
    assert done.count("ops", "in a thread") == 6


COLD = """
    import os, torch
    from pathlib import Path

    torch.ones(3)
    folders = [os.environ[name] for name in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")]
    assert not any(Path(folder).exists() for folder in folders)
    Path("seen").write_text("\\n".join(folders))
"""


def test_cold_caches_are_of_the_capture_alone(capture, write, workplace, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", "mine")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    done = capture(write("cold.py", COLD), "--cold")
    assert (done.code, done.err) == (0, "")
    seen = (workplace / "seen").read_text().splitlines()
    assert len({*seen, "mine"}) == 3
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
    assert not any(Path(folder).exists() for folder in seen)
    # What the trace tells of the environment is what the user set.
    assert done.about["environment"]["TRITON_CACHE_DIR"] == "mine"
    assert done.about["options"]["cold"] is True


def test_our_own_command_goes_by_its_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(Path(tracetool.__file__).parent / "__main__.py"), "capture", "decode"])
    assert session._command() == ["tracetool", "capture", "decode"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.1"])
    assert session._command() == ["train.py", "--lr", "0.1"]
