"""What a call of a kernel would compile, found out without a GPU.

`launches` runs a function as it is but takes each Triton launch down instead of making it; a launch then
tells its compile key and can be compiled for a GPU that is not there. Tensors may live on the `meta` device.
Not for a process with `TRITON_INTERPRET=1`, where kernels are Python functions and have neither.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, make_backend
from triton.compiler import compile as compile_source
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature

HOPPER = GPUTarget("cuda", 90, 32)


@functools.cache
def _binder(kernel: JITFunction, target: GPUTarget) -> Callable[..., Any]:
    return create_function_from_signature(kernel.signature, kernel.params, make_backend(target))


@dataclass(frozen=True)
class RecordedLaunch:
    """One launch: the kernel and what it was called with."""

    kernel: JITFunction
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def name(self) -> str:
        """The kernel's name in the source."""
        return self.kernel.fn.__name__

    def _bind(self, target: GPUTarget) -> tuple[Any, ...]:
        backend = make_backend(target)
        kwargs = {"debug": False, "instrumentation_mode": "", **self.kwargs}
        return backend, kwargs, *_binder(self.kernel, target)(*self.args, **kwargs)

    def key(self, target: GPUTarget = HOPPER) -> str:
        """What Triton looks a compiled kernel up by: two launches with one key share one compilation."""
        _, _, _, specialization, options = self._bind(target)
        return compute_cache_key({}, specialization, options)

    def compile(self, target: GPUTarget = HOPPER) -> CompiledKernel:
        """Compile down to the target's machine code."""
        backend, kwargs, bound, specialization, options = self._bind(target)
        pack = self.kernel._pack_args  # noqa: SLF001 - Triton has no public way from arguments to a source
        options, signature, constants, attributes = pack(backend, kwargs, bound, specialization, options)
        source = ASTSource(self.kernel, signature, constants, attributes)
        return compile_source(source, target=target, options=options.__dict__)


def launches(call: Callable[[], object]) -> list[RecordedLaunch]:
    """The launches that `call()` would make, in order."""
    taken: list[RecordedLaunch] = []

    def record(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:  # noqa: ANN401, ARG001
        taken.append(RecordedLaunch(kernel, grid, args, kwargs))

    with mock.patch.object(JITFunction, "run", record):
        call()
    return taken
