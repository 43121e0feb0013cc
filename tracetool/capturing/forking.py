"""A process that imports once what the jobs of a workload need, and forks for each.

    python -m tracetool.capturing.forking WORKLOAD

On standard output it says `ready`, or `refused` and why. Then each line that it is given is the path of a job, which a
fork does as `tracetool.capturing.child` would, and is answered with a line: its exit code, negative where a signal
ended it. What the job says on standard error goes to a file beside it. Where the workload preloads nothing, the process
does one job itself and ends, since to begin another costs no more than to have begun this one.

A fork is a process like any other only while nothing runs beside the main thread, whose state it would inherit without
the thread, and while nobody has called the driver of the GPU: that is checked after each import. Threads of BLAS may
run; their libraries make new ones.

Interrupts are for jobs. When its parent is gone the process ends, and its job with it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tracetool.capturing.jobs import said_by
from tracetool.errors import CaptureError, SettingError
from tracetool.workloads import find_workloads

if TYPE_CHECKING:
    from collections.abc import Iterator

_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"
# What torch.profiler imports when it begins, for seconds.
_PROFILING = "torch._inductor.config"
_PR_SET_PDEATHSIG = 1
_CUDA_ERROR_NOT_INITIALIZED = 3


def main(workload: str) -> int:
    """Say whether jobs can be done, and do them; in a fork, the one that it is for."""
    _end_with_parent()
    # Before there are threads, which would take interrupts otherwise.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    with open(os.devnull, "r+b") as null:  # noqa: PTH123 - no file
        os.dup2(null.fileno(), 0)
        os.dup2(null.fileno(), 1)
    try:
        with _asking_nvml():
            forks = preload(workload)
    except (CaptureError, SettingError) as error:
        os.write(answers, f"refused {error}\n".encode())
        return error.exit_code
    os.write(answers, b"ready\n")
    server = os.getpid()
    for line in jobs:
        path = Path(os.fsdecode(line.removesuffix(b"\n")))
        child = os.fork() if forks else 0
        if not child:
            jobs.close()
            os.close(answers)
            if not forks:
                return _work(path)
            _end_with_parent(server)
            _leave(_work(path))
        if signal.SIGINT in signal.sigpending():
            # It came before there was a child to have it.
            os.kill(child, signal.SIGINT)
        _, status = os.waitpid(child, 0)
        os.write(answers, b"%d\n" % os.waitstatus_to_exitcode(status))
    return 0


def _end_with_parent(parent: int | None = None) -> None:
    """Be killed when the parent ends, or at once where it has."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent not in {None, os.getppid()}:
        os._exit(1)


@contextlib.contextmanager
def _asking_nvml() -> Iterator[None]:
    """Whether there is a GPU, torch asks NVML meanwhile and not the driver, which would be initialised by that."""
    before = os.environ.get(_NVML)
    os.environ[_NVML] = "1"
    try:
        yield
    finally:
        del os.environ[_NVML]
        if before is not None:
            os.environ[_NVML] = before


def preload(name: str) -> bool:
    """Import what all jobs of a workload need; False where it preloads nothing, or there is no such workload.

    Raises:
        SettingError: the workload's `preload` is no list of names.
        CaptureError: a module cannot be imported, or no process may be forked after that.
    """
    try:
        workload = find_workloads(Path.cwd()).get(name)
    except SettingError:
        # The job comes to the same, and says so.
        return False
    modules: Any = getattr(workload, "preload", ())
    if not isinstance(modules, list | tuple) or not all(isinstance(one, str) for one in modules):
        raise SettingError(f"the workload {name!r} has a preload that is no list of module names: {modules!r:.80}")
    if not modules:
        return False
    importlib.import_module("tracetool.capturing.child")
    wrong = _unforkable()
    if wrong:
        raise CaptureError(f"the workload {name!r} can preload nothing: {wrong} once it is imported")
    for module in (*modules, _PROFILING):
        try:
            importlib.import_module(module)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise CaptureError(f"the workload {name!r} cannot preload {module!r}: {why}") from error
        wrong = _unforkable()
        if wrong:
            raise CaptureError(f"the workload {name!r} cannot preload {module!r}: {wrong} once that is imported")
    return True


def _unforkable() -> str:
    """Why no process may be forked from this one; nothing where one may."""
    if threading.active_count() > 1:
        return "a thread runs"
    return "CUDA is initialised" if _cuda_is_initialised() else ""


def _cuda_is_initialised() -> bool:
    import torch

    if torch.cuda.is_initialized():
        return True
    try:
        driver = ctypes.CDLL("libcuda.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
    except OSError:
        # Nobody has loaded it.
        return False
    found: int = driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    return found != _CUDA_ERROR_NOT_INITIALIZED


def _work(path: Path) -> int:
    """Do a job, in a process as it would be if it had begun with it."""
    from tracetool.capturing import child

    with said_by(path).open("wb") as said:
        os.dup2(said.fileno(), 2)
    sys.argv = [child.__file__, str(path)]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    return child.main(path)


def _leave(code: int) -> NoReturn:
    """End as Python does, but leave modules as they are: to take down those that a fork inherits lasts seconds."""
    try:
        threading._shutdown()  # type: ignore[attr-defined] # noqa: SLF001 - waits for threads
        atexit._run_exitfuncs()  # noqa: SLF001 - which os._exit leaves out
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
