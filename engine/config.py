"""The engine's options."""

import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any

from engine.errors import ConfigError, unknown

# What `admission=pack` does unless it is told otherwise.
PACK_LOOKAHEAD, PACK_FORCE_FIFO = 16, 8


def _option(default: Any, about: str, *, choices: tuple[str, ...] = (), least: int | None = None) -> Any:
    return field(default=default, metadata={"about": about, "choices": choices, "least": least})


@dataclass(frozen=True)
class EngineConfig:
    """Every option by name; `from_options` reads them from keywords or text.

    What is `auto` is settled when a model is loaded.
    """

    load_format: str = _option(
        "auto",
        "auto reads a checkpoint; dummy makes random weights for a preset or a folder's config.json",
        choices=("auto", "dummy"),
    )
    tokenizer: str | None = _option(None, "folder or hub id of a tokenizer, or byte; by default the model's own")
    dtype: str = _option(
        "auto",
        "auto is bfloat16 on a GPU and float32 on a CPU",
        choices=("auto", "float32", "float16", "bfloat16", "float64"),
    )
    device: str = _option("auto", "auto is a GPU where there is one", choices=("auto", "cpu", "cuda"))
    seed: int = _option(0, "of random weights, and of requests that have no seed of their own", least=0)

    max_model_len: int | None = _option(None, "tokens of a request at most; by default the model's context", least=2)
    block_size: int = _option(16, "positions a cache block", least=1)
    num_blocks: int | None = _option(None, "cache blocks; by default what free memory holds", least=1)
    gpu_memory_utilization: float = _option(
        0.9, "share of a GPU's memory for weights, activations and cache; a CPU's cache is 1 GiB"
    )
    prefix_cache: bool = _option(True, "keep full blocks for prompts that begin alike")

    mode: str = _option(
        "online",
        "online admits at any time, offline a batch at a time, naive a request at a time",
        choices=("online", "offline", "naive"),
    )
    admission: str = _option(
        "fifo",
        "fifo admits in the order of arrival; pack looks ahead for the longest prompt that fits a step whole",
        choices=("fifo", "pack"),
    )
    admission_lookahead: int | None = _option(
        None, f"waiting requests among which pack chooses; by default {PACK_LOOKAHEAD}", least=1
    )
    admission_force_fifo: int | None = _option(
        None,
        f"steps in which pack may pass over the oldest request before it must come next; by default {PACK_FORCE_FIFO}",
        least=0,
    )
    max_inflight: int | None = _option(
        None, "sequences that wait or run; more requests are refused; by default there is no limit", least=1
    )
    max_num_seqs: int = _option(256, "sequences that decode in a step", least=1)
    max_active: int | None = _option(None, "sequences that hold cache blocks; by default max_num_seqs", least=1)
    max_num_batched_tokens: int = _option(8192, "tokens of a step", least=1)
    prefill_max_batch_size: int | None = _option(None, "sequences that are prefilled in a step", least=1)
    prefill_max_tokens: int | None = _option(None, "tokens that are prefilled in a step", least=1)
    chunked_prefill: bool = _option(True, "cut prompts to fit a step; otherwise its first prompt is taken whole")
    decode_first: bool = _option(False, "decoding takes its tokens from a step first, not prefill")

    block_tables: str = _option("auto", "how block tables get to the GPU")
    dense_mask: str = _option(
        "off", "also build the dense mask that paged attention does not read", choices=("off", "on")
    )
    inputs: str = _option("auto", "how a decode step's tokens and lengths get to the GPU")
    kv_append: str = _option("auto", "how new keys and values get into the cache")
    kv_append_min_batch: int = _option(0, "the least batch for which kv_append's Triton forms are used", least=0)
    attention_backend: str = _option("auto", "how attention reads the paged cache")
    attention_launch: str = _option("auto", "how the attention kernel's launch parameters are chosen")
    ops: str = _option("auto", "small operations as torch calls or as kernels")
    sampler: str = _option("auto", "how tokens are chosen and reach the host")
    cuda_graph: str = _option("auto", "whether decode steps are launched as one")
    graph_sampling: str = _option("auto", "whether the graph of a step samples as well")
    overlap: str = _option("auto", "when the host looks at what a step has sampled")

    def __post_init__(self) -> None:
        """Check each value by itself.

        Raises:
            ConfigError: One is wrong.
        """
        for option in fields(self):
            value, choices, least = getattr(self, option.name), option.metadata["choices"], option.metadata["least"]
            if choices and value not in choices:
                raise ConfigError(unknown(f"value of {option.name}", value, choices))
            if least is not None and value is not None and value < least:
                raise ConfigError(f"{option.name} must be at least {least}, but is {value}")
        for name in ("admission_lookahead", "admission_force_fifo"):
            if getattr(self, name) is not None and self.admission != "pack":
                raise ConfigError(f"{name} is for admission='pack'; with {self.admission!r} it would change nothing")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization must be over 0 and at most 1, but is {self.gpu_memory_utilization}"
            )

    @classmethod
    def from_options(cls, **options: Any) -> "EngineConfig":
        """Options by name, values as they are or as text (`"64"`, `"off"`, `"none"`).

        Raises:
            ConfigError: There is no such option, or it cannot have this value.
        """
        names = {option.name for option in fields(cls)}
        kinds = typing.get_type_hints(cls)
        values = {}
        for name, value in options.items():
            if name not in names:
                raise ConfigError(unknown("option", name, sorted(names)))
            values[name] = _read(name, value, kinds[name])
        return cls(**values)


_BOOLS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
_WANTED = {int: "an integer", float: "a number", bool: "on or off", str: "text"}


def _read(name: str, value: Any, kind: Any) -> Any:
    """The value as the option's type, from that type or from text."""
    optional = isinstance(kind, types.UnionType)
    base: type = next(k for k in typing.get_args(kind) if k is not types.NoneType) if optional else kind
    if optional and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    if base is str and isinstance(value, bool):
        value = "on" if value else "off"
    if base is bool and str(value).lower() in _BOOLS:
        return _BOOLS[str(value).lower()]
    fits = isinstance(value, base) and not isinstance(value, bool)
    if fits or (base is float and isinstance(value, int) and not isinstance(value, bool)):
        return base(value)
    if isinstance(value, str) and base in {int, float}:
        try:
            return base(value)
        except ValueError:
            pass
    raise ConfigError(f"{name} must be {_WANTED[base]}, but is {value!r}")
