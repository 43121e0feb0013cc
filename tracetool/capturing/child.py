"""One process of a comparison: sets a program up, times steps without a profiler, and captures if that is asked for.

    python -m tracetool.capturing.child JOB

JOB is a file with a `Job` as JSON, in whose place the answer is put. A failure is one sentence on standard error.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec
import torch

from tracetool import stepping
from tracetool.capturing.jobs import Answer, Job
from tracetool.capturing.options import CaptureOptions, Window
from tracetool.capturing.session import Capture, capture_program, capture_steps
from tracetool.capturing.targets import Program, Stepper, find_target
from tracetool.errors import CaptureError, TracetoolError


def work(job: Job) -> Answer:
    """Do what a job says.

    Raises:
        TracetoolError: it cannot be done, or the program failed.
    """
    found = find_target(job.target, job.arguments, module=job.module, settings=job.settings)
    if isinstance(found, Program):
        return _run(found, job)
    session = found.set_up()
    for _ in range(job.warm_steps):
        session.step()
    timer = _Timer(job.steps_per_sample)
    for _ in range(job.samples * job.steps_per_sample):
        session.step()
        timer.step()
    if job.trace is not None:
        window = Window(**job.window) if job.window else Window()
        capture_steps(found, _capture(job, found, window, timer.samples), window)
    answer = Answer(timer.samples, found.result(), found.eager)
    found.close()
    return answer


def _run(program: Program, job: Job) -> Answer:
    """A program that runs once: timed in one process, captured in another, since it cannot be begun again."""
    if job.trace is not None:
        window = Window(**job.window) if job.window else None
        capture_program(program, _capture(job, program, window, []))
        return Answer([])
    timer = _Timer(job.steps_per_sample, skip=job.warm_steps)
    stepping.listen(timer.step)
    start = time.perf_counter_ns()
    try:
        program.run()
    except SystemExit as error:
        if error.code:
            raise CaptureError(f"{program.title} exited with {error.code!r}") from None
    finally:
        stepping.unlisten(timer.step)
    _wait()
    whole = [time.perf_counter_ns() - start]
    # Too few steps for a sample, or none: then the run is what there is to time.
    return Answer(timer.samples or whole)


def _capture(job: Job, found: Program | Stepper, window: Window | None, samples: list[int]) -> Capture:
    assert job.trace is not None
    by_process = [*job.earlier_samples, samples]
    measured = {"unprofiled_ns_per_step": [one for one in by_process if one]}
    options = CaptureOptions(**job.options)
    return Capture(Path(job.trace), window, force=True, about=found.facts | measured, options=options)


class _Timer:
    """Times runs of steps, each until the device has done its work, so that nothing is left for the next."""

    def __init__(self, steps_per_sample: int, skip: int = 0) -> None:
        self.samples: list[int] = []
        self.steps = 0
        self._each = steps_per_sample
        self._skip = skip
        _wait()
        self._began = time.perf_counter_ns()

    def step(self) -> None:
        """A step has ended."""
        self.steps += 1
        if self.steps == self._skip:
            _wait()
            self._began = time.perf_counter_ns()
        elif self.steps > self._skip and (self.steps - self._skip) % self._each == 0:
            _wait()
            now = time.perf_counter_ns()
            self.samples.append((now - self._began) // self._each)
            self._began = now


def _wait() -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def main(path: Path) -> int:
    """Read a job, do it, and put the answer in its place."""
    try:
        answer = work(msgspec.json.decode(path.read_bytes(), type=Job))
    except TracetoolError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # noqa: BLE001 - the program's own
        return _fail(_sentence(error))
    path.write_bytes(msgspec.json.encode(answer))
    return 0


def _sentence(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _fail(message: str) -> int:
    sys.stderr.write(f"\n{message}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
