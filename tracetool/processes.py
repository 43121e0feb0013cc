"""Jobs of a comparison, each done in a process of its own.

The process of a script, module or function begins anew. A workload's comes from a server
(`tracetool.capturing.forking`), one for each environment, which has imported what the workload says that it may import
beforehand, and forks; where that cannot be done it begins anew, too, and a note says why. What is forked shares with
its like what a process is given when it begins: where libraries lie in memory, and the seed of hashes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from tracetool.capturing.jobs import Answer, Job, said_by
from tracetool.errors import CaptureError
from tracetool.workloads import may_be_workload

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Self

# Elsewhere there is no fork, or system libraries do not stand it.
_FORKS = sys.platform == "linux"


class Processes:
    """Has jobs done; at the end of its `with` block none of its processes is left.

    Attributes:
        notes: Why processes were not forked though their workload preloads.
    """

    def __init__(self) -> None:
        self._servers: dict[frozenset[tuple[str, str]], _Server] = {}
        self.notes: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.end()

    def renew(self) -> None:
        """Let what forks from here on begin anew, but for servers that have refused, which would again."""
        for key in [key for key, server in self._servers.items() if not server.refusal]:
            self._servers.pop(key).end()

    def do(self, job: Job, environment: Mapping[str, str]) -> Answer:
        """Have a job done; an interrupt meanwhile interrupts the job, and is raised when that has ended.

        Args:
            job: Which. All have one target.
            environment: Variables that its process has besides ours.

        Raises:
            CaptureError: it failed; the sentence that it ended with.
        """
        with tempfile.TemporaryDirectory(prefix="tracetool-") as folder:
            path = Path(folder) / "job.json"
            path.write_bytes(msgspec.json.encode(job))
            said_by(path).touch()
            server = None
            if _FORKS and not job.module and may_be_workload(job.target):
                server = self._server(job.target, environment)
            if server is not None and server.refusal:
                note = f"{server.refusal}; its processes begin anew"
                self.notes += [note] if note not in self.notes else []
                server = None
            code = _begin(path, environment) if server is None else server.do(path)
            if code:
                raise CaptureError(_failure(code, said_by(path).read_bytes()))
            return msgspec.json.decode(path.read_bytes(), type=Answer)

    def _server(self, workload: str, environment: Mapping[str, str]) -> _Server:
        key = frozenset(environment.items())
        if key in self._servers and self._servers[key].spent:
            self._servers.pop(key).end()
        if key not in self._servers:
            self._servers[key] = _Server(workload, environment)
        return self._servers[key]


class _Server:
    """A process that forks for jobs, once it is ready.

    Attributes:
        refusal: Why it does none, in a sentence; empty where it does.
    """

    def __init__(self, workload: str, environment: Mapping[str, str]) -> None:
        with tempfile.TemporaryFile() as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tracetool.capturing.forking", workload],
                env=_variables(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                bufsize=0,
                # With its jobs, so that these are interrupted by us alone, once.
                process_group=0,
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._jobs: IO[bytes] = self._process.stdin
            self._answers: IO[bytes] = self._process.stdout
            try:
                greeting = self._answers.readline()
                code = 0 if greeting else self._process.wait()
            except BaseException:
                self.end()
                raise
            said.seek(0)
            last = said.read()
        self.refusal = greeting.decode().strip().partition(" ")[2] if greeting else _failure(code, last)

    @property
    def spent(self) -> bool:
        """Whether it did jobs, and will do no more."""
        return not self.refusal and self._ended

    @property
    def _ended(self) -> bool:
        return self._process.poll() is not None

    def do(self, path: Path) -> int:
        """The exit code of a job; negative where a signal ended it."""
        try:
            self._jobs.write(os.fsencode(path) + b"\n")
            answer = self._answers.readline()
            return int(answer) if answer else self._process.wait()
        except BrokenPipeError:
            return self._process.wait()
        except BaseException:
            if not self._ended:
                os.killpg(self._process.pid, signal.SIGINT)
                self._answers.readline()
            raise

    def end(self) -> None:
        """End it, and a job that still runs."""
        with self._process:
            if not self._ended:
                os.killpg(self._process.pid, signal.SIGKILL)


def _begin(path: Path, environment: Mapping[str, str]) -> int:
    """The exit code of a job in a process that begins anew; negative where a signal ended it."""
    command = [sys.executable, "-m", "tracetool.capturing.child", str(path)]
    with said_by(path).open("wb") as said:
        child = subprocess.Popen(command, env=_variables(environment), stdout=subprocess.DEVNULL, stderr=said)
    try:
        return child.wait()
    except BaseException:
        child.send_signal(signal.SIGINT)
        child.wait()
        raise


def _variables(environment: Mapping[str, str]) -> dict[str, str]:
    quiet = {"KINETO_LOG_LEVEL": os.environ.get("KINETO_LOG_LEVEL", "6")}
    return {**os.environ, **quiet, **environment}


def _failure(code: int, said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    how = f"it ended with signal {-code}" if code < 0 else "it failed without a word"
    return lines[-1] if lines else how
