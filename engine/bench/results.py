"""What a benchmark found, and what it ran: values that reports are made of."""

import dataclasses
import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.bench.measure import Run

if TYPE_CHECKING:
    import torch

    from engine.bench.options import RunOptions
    from engine.llm import LLM


def versions() -> dict[str, str | None]:
    """Of what decides about speed; None is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "triton", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def device_name(device: "torch.device") -> str:
    """The GPU's name, or CPU with its number of threads."""
    import torch  # noqa: PLC0415 - whoever has a device has torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


@dataclass(frozen=True)
class About:
    """What ran.

    Attributes:
        model: As the engine was given it.
        dtype: Of weights and cache.
        device: A name.
        versions: See `versions`.
        variants: A value for every axis.
        config: Every option of the engine.
        requests: What the requests were, by name.
        flags: The command's options.
        environment: Variables that were seen, and what came of each.
    """

    model: str
    dtype: str
    device: str
    versions: dict[str, str | None]
    variants: dict[str, str]
    config: dict[str, Any]
    requests: dict[str, Any]
    flags: dict[str, Any]
    environment: tuple[str, ...]

    @classmethod
    def of(cls, options: "RunOptions", llm: "LLM", requests: dict[str, Any], environment: list[str]) -> "About":
        """Of a loaded model."""
        keys = llm.core.runner.cache.keys
        return cls(
            model=options.model,
            dtype=str(keys.dtype).removeprefix("torch."),
            device=device_name(keys.device),
            versions=versions(),
            variants=dataclasses.asdict(llm.core.runner.variants),
            config=dataclasses.asdict(llm.config) | {"num_blocks": llm.core.runner.num_blocks},
            requests=requests,
            flags=dataclasses.asdict(options),
            environment=tuple(environment),
        )


@dataclass(frozen=True)
class PeerRuns:
    """What another engine made of the same requests.

    Attributes:
        name: Of the peer.
        compiled: Whether its decoding was compiled.
        tokens: Generated, in each run.
        seconds: Of each run.
    """

    name: str
    compiled: bool
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def throughputs(self) -> list[float]:
        """Tokens a second of each run."""
        return [tokens / seconds for tokens, seconds in zip(self.tokens, self.seconds, strict=True)]


@dataclass(frozen=True)
class Result:
    """One mode's measured runs, and what was run beside them.

    Attributes:
        recompiled: Graphs that torch compiled during measured runs, in spite of the warm-up; peers' times have that in
            them.
        trace: Of the run that was profiled.
    """

    benchmark: str
    about: About
    warmup_runs: int
    runs: tuple[Run, ...]
    peers: tuple[PeerRuns, ...] = ()
    recompiled: int = 0
    trace: Path | None = None

    @property
    def mode(self) -> str:
        """How requests were admitted."""
        return str(self.about.config["mode"])
